"""The table of regimes, on the small model: each regime's own search, and whether importance predicts the scores."""

from pathlib import Path
from statistics import mean

import pytest
from scipy.stats import spearmanr
from small_run import FEW_REGIMES, small_settings

from minibeft.reproduce import measures, plan
from minibeft.reproduce.plots import plots
from minibeft.reproduce.report import predictions
from minibeft.reproduce.reproduce import reproduce
from minibeft.training.settings import Settings


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a smaller table; --examples makes its regimes one size."""
    root = tmp_path_factory.mktemp("regimes")
    base = small_settings(root, examples=24, epochs=1, learning_rate=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.TABLES, "regimes", FEW_REGIMES)
        return reproduce("regimes", base, root / "out", seeds=(0, 1), rates=(1e-3, 1e-1), held_out=20)[0]


def test_each_regime_has_its_own_search(record: dict):
    found = {(one["row"], one["regime"]): one["best"] for one in record["searches"]}
    assert [*found] == [("v", "low"), ("v", "high")]
    own = {(c["row"], c["regime"]): c["learning_rate"] for c in record["cells"] if c["rate"] == "own"}
    assert own == found
    assert {cell["regime"] for cell in record["cells"] if cell["row"] == "k"} == {"low", "high"}


def test_rows_are_compared_where_both_were_run(record: dict):
    assert [(one["regime"], one["rate"]) for one in record["verdicts"]] == [("low", "protocol"), ("high", "protocol")]


def test_the_first_picture_is_over_the_training_examples(record: dict):
    """Each row's means, from the smallest regime; runs of one epoch have no learning curve."""
    first, *others = plots(record)
    for cells in zip(*(iter(sorted(record["cells"], key=lambda cell: (cell["row"], cell["rate"]))),) * 2, strict=True):
        values = ", ".join(f"{100 * mean(cell['scores']):.1f}" for cell in cells)
        assert f"{cells[0]['row']}, {cells[0]['rate']} rate: {values}" in first.alt
    titles = [f"Over the learning rate, {regime} regime" for regime in FEW_REGIMES.regimes]
    assert [picture.title for picture in others] == titles


def test_importance_is_measured_in_each_regime(record: dict):
    """Of every term, by the same three measures; b_k, whose gradient is rounding, is far below b_v in Fisher's."""
    assert record["ok"]
    assert record["importance"].keys() == {"low", "high"}
    for of_regime in record["importance"].values():
        assert of_regime.keys() == {"mag_angle", "magnitude", "fisher"}
        for scores in of_regime.values():
            assert {*scores} == {"v", "k"}
            assert all(len(by_seed) == 2 for by_seed in scores.values())
        assert max(of_regime["fisher"]["k"]) < 1e-6 * min(of_regime["fisher"]["v"])


def test_importance_is_measured_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, calls = {"fisher": {"v": [0.1, 1 / 3]}}, []
    monkeypatch.setattr(measures, "scores_of", lambda _, folder: calls.append(folder) or found)
    runs = [(Settings("minilm", "sst2"), tmp_path)]
    assert measures.importance_of(runs) == measures.importance_of(runs) == [found]
    assert calls == [tmp_path]


def test_the_correlation_is_of_importance_and_the_score_alone():
    """By hand: a measure that orders three terms as their scores in one seed, and two of three the other way in the
    other; equal means have equal places."""
    cells = [{"row": n, "regime": "low", "rate": "protocol", "scores": s} for n, s in SCORES.items()]
    cells += [{"row": n, "regime": "low", "rate": "own", "scores": s[::-1]} for n, s in SCORES.items()]
    found = predictions({"importance": {"low": {"fisher": MEASURED}}, "cells": cells, "seeds": [0, 1]})
    (row,) = found.rows
    assert row[:4] == ("low", "Fisher", "v > q > k", "v > q = k")
    by_seed = [spearmanr([m[i] for m in MEASURED.values()], [s[i] for s in SCORES.values()])[0] for i in (0, 1)]
    assert by_seed == pytest.approx([1.0, 0.5])  # type: ignore[arg-type]
    assert row[4].startswith(f"{mean(by_seed):.2f} ± ")  # type: ignore[type-var]
    assert float(row[5]) == 0.5


SCORES = {"v": [0.9, 0.8], "q": [0.7, 0.6], "k": [0.6, 0.7]}
MEASURED = {"v": [3.0, 3.0], "q": [2.0, 2.0], "k": [1.0, 1.0]}


def test_a_decoder_has_the_biases_of_attention_alone():
    small = plan.TABLES["regimes"].of_decoder()
    assert [row.name for row in small.rows] == ["v", "q", "k", "none"]
    assert small.ordered == plan.ORDER
    assert not small.ranked
