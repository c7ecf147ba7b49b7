"""A record with more seeds, run elsewhere: it becomes what one run of all seeds gives, and nothing else fits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import FEW_REGIMES, small_settings

from minibeft.checkpoints.tensors import read_json
from minibeft.errors import BadInput
from minibeft.reproduce import plan
from minibeft.reproduce.reproduce import reproduce
from minibeft.show.record import MADE, made_by
from minibeft.training.settings import Settings

SEARCH = {"rates": (1e-3, 1e-1), "held_out": 20}


@pytest.fixture(scope="module", autouse=True)
def smaller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.TABLES, "regimes", FEW_REGIMES)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return small_settings(tmp_path_factory.mktemp("extend"), examples=24, epochs=1, learning_rate=None)


@pytest.fixture(scope="module")
def first(base: Settings) -> Path:
    """The record of seeds 0 and 1, alone in its folder."""
    folder = Path(base.model).parent / "first"
    reproduce("regimes", base, folder, seeds=(0, 1), **SEARCH)
    return folder / "regimes.json"


def test_it_is_the_record_of_all_seeds(base: Settings, first: Path):
    """Seed 2 in another folder, where nothing of the others lies; then the runs of both in one, read as one table."""
    folder = first.parents[1] / "more"
    extended, _ = reproduce("regimes", base, folder, seeds=(2,), extend=first)
    assert {read_json(file)["settings"]["seed"] for file in folder.glob("runs/*/run.json")} == {2}
    shutil.copytree(first.parent / "runs", folder / "runs", dirs_exist_ok=True)
    whole, _ = reproduce("regimes", base, folder, seeds=(0, 1, 2), **SEARCH)
    old = read_json(first)
    assert extended.pop("extends") == {"seeds": [0, 1], **{name: old[name] for name in MADE}}
    assert as_json(extended) == as_json(whole)


def as_json(record: dict) -> dict:
    """Without what differs by the command; as a file has it, the pairs of K3 in one order."""
    found = json.loads(json.dumps({name: value for name, value in record.items() if name not in MADE}))
    return found | {"same": sorted(found["same"], key=lambda pair: [*map(str, pair.values())])}


def test_extended_twice_names_all_commands(base: Settings, first: Path, tmp_path: Path):
    reproduce("regimes", base, tmp_path / "two", seeds=(2,), extend=first)
    twice, _ = reproduce("regimes", base, tmp_path / "three", seeds=(3,), extend=tmp_path / "two" / "regimes.json")
    assert twice["seeds"] == [0, 1, 2, 3]
    assert {len(cell["scores"]) for cell in twice["cells"]} == {4}
    assert twice["least_p"] == 2 / 2**4
    assert twice["extends"]["extends"]["seeds"] == [0, 1]
    assert made_by(twice).count("; it extends ") == 2


def test_what_does_not_fit_is_one_line(base: Settings, first: Path, tmp_path: Path):
    def rest(**changes: Any) -> dict[str, Any]:
        return {"seeds": (2,), "extend": first, **changes}

    record, another = read_json(first), tmp_path / "another.json"
    of_v = [cell for cell in record["cells"] if (cell["row"], cell["rate"]) == ("v", "protocol")]
    more_rows = [*record["cells"], *(cell | {"row": "ln1"} for cell in of_v)]
    another.write_text(json.dumps(record | {"cells": more_rows}))
    for table, settings, options, message in (
        ("regimes", base, rest(seeds=(1, 2)), "regimes.json: has seed 1 already; give --seeds"),
        ("regimes", base, rest(seeds=range(2, 21)), "give at most 20 seeds"),
        ("biases", base, rest(), "regimes.json: holds no record of biases"),
        ("ranking", base, rest(), "goes with tables whose rows are compared, not with ranking"),
        ("rates", base, rest(), "goes with tables whose rows are compared, not with rates"),
        ("regimes", base, rest(extend=tmp_path / "none.json"), "none.json: missing"),
        ("regimes", base, rest(extend=another), "another.json: ln1 low protocol rate: learning_rate, examples,"),
        ("regimes", replace(base, pad="longest"), rest(), "holds another reproduction (pad is 'bucket' there, 'long"),
        ("regimes", replace(base, epochs=2), rest(), "v low protocol rate: learning_rate, examples, epochs are"),
    ):
        with pytest.raises(BadInput) as caught:
            reproduce(table, settings, tmp_path / "out", **options)
        assert message in str(caught.value)
        assert not list(tmp_path.glob("out/runs/*"))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("part", ["seeds", "cells", "searches", "runs", "same", "importance", "machine"])
@pytest.mark.parametrize("damage", [None, 3, [3], {"a": 3}, "missing"])
def test_a_damaged_record_is_refused_before_anything_runs(base: Settings, first: Path, tmp_path: Path, part, damage):
    record = read_json(first) | {part: damage}
    if damage == "missing":
        del record[part]
    refused_as_damaged(base, record, tmp_path)


@pytest.mark.parametrize("part", ["epochs", "validation"])
def test_a_run_of_a_record_is_read_before_anything_runs(base: Settings, first: Path, tmp_path: Path, part: str):
    record = read_json(first)
    run = record["runs"][record["cells"][0]["runs"][0]]
    assert isinstance(run.pop(part), int | dict)
    refused_as_damaged(base, record, tmp_path)


def refused_as_damaged(base: Settings, record: dict, tmp_path: Path) -> None:
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"damaged\.json: is damaged, or another version's"):
        reproduce("regimes", base, tmp_path / "out", seeds=(2,), extend=file)
    assert not (tmp_path / "out").exists()
