"""Any two options of a run work together: all pairs of their values, in as few runs on a small BERT as a greedy choice
finds, each run to its end and saved."""

import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from small_run import small_settings

from minibeft.training.reparam import FORMS
from minibeft.training.runs import finetune

OPTIONS: dict[str, tuple[Any, ...]] = {
    "terms": ("v", "q", "k", "none", "all", "full", "ln1", "v,m2"),
    "form": ("plain", *FORMS),
    "dtype": ("float32", "bfloat16"),
    "backend": ("fused", "plain", "triton"),
    "pad": ("bucket", "longest", "24"),
    "dropout": (True, False),
    "task": ("sst2", "stsb"),
    "held_out": (0, 8),
}


def has_a_form(options: dict[str, Any]) -> bool:
    """A form applies to single biases, so it cannot go with "none" or with full training."""
    return options["form"] == "plain" or options["terms"] not in ("none", "full")


def pairs(options: dict[str, Any]) -> set[tuple[Any, ...]]:
    return {(a, options[a], b, options[b]) for a, b in combinations(OPTIONS, 2)}


def covering() -> Iterator[dict[str, Any]]:
    """Options with at least one new pair of values each, until no drawn options have a new pair."""
    draw, seen = random.Random(0), set[tuple[Any, ...]]()
    while True:
        drawn = ({name: draw.choice(values) for name, values in OPTIONS.items()} for _ in range(500))
        best = max(filter(has_a_form, drawn), key=lambda options: len(pairs(options) - seen))
        if not pairs(best) - seen:
            return
        seen |= pairs(best)
        yield best


RUNS = list(covering())


def test_all_pairs_are_there():
    wanted = {(a, x, b, y) for a, b in combinations(OPTIONS, 2) for x in OPTIONS[a] for y in OPTIONS[b]}
    never = {("terms", terms, "form", form) for terms in ("none", "full") for form in FORMS}
    assert set().union(*map(pairs, RUNS)) == wanted - never


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.mark.parametrize("options", RUNS, ids=lambda options: " ".join(map(str, options.values())))
def test_they_train(options: dict[str, Any], place: Path, tmp_path: Path):
    settings = small_settings(place, examples=16, epochs=1, **options)
    record = finetune(settings, tmp_path / "run", progress=lambda step: None)
    assert record["complete"]
    assert all(value == record["settings"][name] for name, value in options.items())
