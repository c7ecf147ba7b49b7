"""Every family that load_model knows computes what transformers computes, to the rounding of float64, on random
configurations with every parameter drawn anew; and is saved again bit for bit."""

from pathlib import Path

import pytest
import torch
from families import DRAWN, drawn
from parity import joined, run_ours, runs
from safetensors.torch import load_file
from tiny import batch, reference
from tolerance import assert_agrees

import minibeft
from minibeft.families import BODIES
from minibeft.models.config import Task

CASES: list[tuple[str, Task]] = [(name, task) for name, body in BODIES.items() for task in ("hidden", *body.heads)]
# Hidden states are compared beside logits, where there are some.
HEADS = [case for case in CASES if case[1] != "hidden" or not BODIES[case[0]].heads]
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow)]


def test_every_family_is_drawn():
    assert set(DRAWN) == set(BODIES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("family", "task"), HEADS)
def test_computes_what_transformers_computes(family: str, task: Task, seed: int, tmp_path: Path):
    """Hidden states, logits, and the gradient of every parameter of a block or head."""
    raw = drawn(family, task, seed)
    theirs = reference(raw, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = minibeft.load_model(tmp_path / "theirs", dtype=torch.float64)
    b = batch(raw, seed, rows=3, length=7, padding=("none", "left", "right")[seed % 3])
    gold, _, doubles = runs(theirs, b, ours, single=False)
    run = run_ours(ours, b)
    assert run.keys() == gold.keys()
    for name in gold:
        beside = joined(name)
        assert_agrees(beside(run), [beside(sample) for sample in doubles], beside(gold), what=name)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_is_saved_bit_for_bit(family: str, task: Task, tmp_path: Path):
    theirs = reference(drawn(family, task, 3), 3)
    theirs.save_pretrained(tmp_path / "theirs")
    minibeft.save_model(minibeft.load_model(tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    kept = {name: value for name, value in before.items() if name not in BODIES[family].copies}
    assert kept.keys() <= after.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
