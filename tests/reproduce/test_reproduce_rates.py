"""The table of rates, on the small model: the search alone, every row at every rate, epoch by epoch."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from small_run import small_settings

from minibeft.errors import BadInput
from minibeft.reproduce import plan
from minibeft.reproduce.plots import plots
from minibeft.reproduce.report import grids, judged
from minibeft.reproduce.reproduce import reproduce

FEW = replace(
    plan.TABLES["rates"],
    regimes=("low", "high"),
    tuned=tuple(row for row in plan.TABLES["rates"].tuned if row.name in ("v", "v lora")),
)
RATES, SEEDS, EPOCHS = (1e-3, 1e-1), (0, 1), 2


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a smaller table; --examples makes its regimes one size."""
    root = tmp_path_factory.mktemp("rates")
    base = small_settings(root, examples=24, epochs=EPOCHS, learning_rate=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.TABLES, "rates", FEW)
        return reproduce("rates", base, root / "out", seeds=SEEDS, rates=RATES, held_out=20)[0]


def test_every_run_is_of_the_search(record: dict):
    """None is judged on the validation split: it has no say in a rate."""
    wanted = {(row.name, regime, rate, seed) for row in FEW.tuned for regime in FEW.regimes for rate in RATES
              for seed in SEEDS}  # fmt: skip
    names = {(row.terms, row.form): row.name for row in FEW.tuned}
    found = {
        (names[run["terms"], run["form"]], run["regime"], run["learning_rate"], run["seed"])
        for run in record["runs"].values()
    }
    assert found == wanted
    assert all(run["held_out"] and "validation" not in run for run in record["runs"].values())
    assert record["cells"] == record["verdicts"] == []


def test_a_score_is_the_mean_over_the_seeds_after_the_last_epoch(record: dict):
    assert [(one["row"], one["regime"]) for one in record["searches"]] == [
        (row.name, regime) for regime in FEW.regimes for row in FEW.tuned
    ]
    for one in record["searches"]:
        curves = judged(record, one["row"], one["regime"])
        assert [len(scores) for by_seed in curves.values() for scores in by_seed] == [EPOCHS] * len(RATES) * len(SEEDS)
        ends = {rate: mean(scores[-1] for scores in by_seed) for rate, by_seed in curves.items()}
        assert dict(one["scores"]) == pytest.approx(ends, abs=1e-6)
        assert ends[one["best"]] == max(ends.values())


def test_the_pictures_have_every_rate_and_row_in_every_regime(record: dict):
    pictures = {picture.title: picture.alt for picture in plots(record)}
    for regime in FEW.regimes:
        alt = pictures[f"Over the learning rate and the epochs, {regime} regime"]
        for row in FEW.tuned:
            for rate, by_seed in judged(record, row.name, regime).items():
                assert f"{row.name} at {rate:g} ends at {100 * mean(scores[-1] for scores in by_seed):.1f}" in alt
        assert f"Over the learning rate, {regime} regime" in pictures


def test_the_tables_are_one_a_regime(record: dict):
    found = grids(record)
    assert [grid.title for grid in found] == [
        f"the search for each row's own learning rate, {regime}" for regime in FEW.regimes
    ]
    assert all("after 2 epochs of 24 others; 2 seeds" in grid.note for grid in found)


def test_without_rates_there_is_nothing_to_run(tmp_path: Path):
    with pytest.raises(BadInput, match="--rates"):
        reproduce("rates", small_settings(tmp_path, examples=24), tmp_path / "out", seeds=(0,))
