"""What is not finite agrees with nothing: each place that compares two runs refuses an infinite allowance and a NaN."""

from inspect import unwrap
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tolerance import SAMPLES, assert_agrees

from minibeft.benchmarks import agreement as bench
from minibeft.certificate.witness import Witness
from minibeft.errors import BadInput
from minibeft.kernels.gate import assert_right
from minibeft.reproduce import same
from minibeft.surgery.equivalence import Difference
from minibeft.theory.agreement import FACTOR, distance, explained, within
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.statements import Gap
from minibeft.verification.findings import Check
from minibeft.verification.measure import worst

OVERFLOWED = [(inf, inf), (1.0, inf), (nan, inf), (nan, 1.0), (0.0, nan), (inf, 1.0)]
ONES = torch.ones(4, dtype=torch.float64)
ONE_INFINITE = torch.tensor([1.0, 1.0, 1.0, inf], dtype=torch.float64)


@pytest.mark.parametrize(("value", "allowed"), OVERFLOWED)
def test_no_comparison_takes_it_for_agreement(value, allowed):
    run = ("a", "b", "full", 1e-3, 0, 0)
    assert not within(value, allowed)
    assert not Gap(torch.tensor([0.0, value]), torch.tensor([1.0, allowed])).holds
    assert not Witness("", value, allowed).within
    assert not Difference("float32", value, allowed).within
    assert not same.Same(*run, difference=value, allowed=allowed, same_epochs=1, epochs=1).ok


def test_what_is_finite_and_allowed_agrees():
    assert within(1.0, 1.0)
    assert within(0.0, 0.0)
    assert not within(1.0, 0.5)
    assert Gap(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])).holds
    assert not Gap(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5])).holds


@pytest.mark.parametrize(("value", "allowed"), OVERFLOWED)
def test_verify_sees_an_overflow_among_finite_entries(value, allowed):
    check = Check("K1", "", (worst(0, Gap(torch.tensor([0.5, value]), torch.tensor([1.0, allowed]))),))
    assert not check.measurable
    assert check.verdict == "VIOLATED"


def test_verify_shows_the_entry_closest_to_its_allowance():
    found = worst(3, Gap(torch.tensor([0.5, 2.0, 9.0]), torch.tensor([1.0, 2.5, 90.0])))
    assert (found.layer, found.value, found.allowed, found.largest) == (3, 2.0, 2.5, 9.0)


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_nan_in_any_tensor_of_a_head_is_no_agreement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    settings = {"regime": "full", "learning_rate": 1e-3, "held_out": 0, "seed": 0, "epochs": 1, "examples": 8}
    settings |= {"batch": 8, "dtype": "float32", "beta1": 0.9, "beta2": 0.999, "model": str(tmp_path)}
    run = {"settings": settings, "epochs": [{"dev": {"accuracy": 1.0}}]}
    heads = {"one": {"a": torch.zeros(2), "b": torch.zeros(2)}, "other": {"a": torch.zeros(2), "b": torch.zeros(2)}}
    heads["other"][place][0] = nan
    monkeypatch.setattr(same, "read_trained", lambda folder: heads[folder.name])
    pair = same.compare(("one", "other"), (run, run), (Path("one"), Path("other")))
    assert pair.difference == inf
    assert not pair.ok


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_nan_among_metrics_is_infinitely_far(order):
    one, other = (
        {"dev": {name: value[name] for name in order}} for value in ({"a": 1.0, "b": nan}, {"a": 1.0, "b": 1})
    )
    assert same.furthest(one, other) == inf
    assert same.furthest(other, other) == 0.0


def test_no_speed_is_reported_when_the_losses_overflow(monkeypatch):
    """A contestant that is off by a million passed while the plain run overflowed."""

    def measured(plain: torch.Tensor, contestant: torch.Tensor) -> dict[str, float]:
        monkeypatch.setattr(bench, "replace", lambda settings, **_: settings)
        monkeypatch.setattr(bench, "batches", lambda *_: [])
        monkeypatch.setattr(bench, "exact", lambda *_: ONES)
        monkeypatch.setattr(bench, "Ours", lambda _: plain)
        monkeypatch.setattr(bench, "losses", lambda side, _: side)
        settings = SimpleNamespace(dtype="float32")
        return unwrap(bench.require_same_losses)({"peer": contestant}, settings)

    with pytest.raises(BadInput, match="overflow in float32"):
        measured(ONE_INFINITE, ONES + 1e6)
    with pytest.raises(BadInput, match="do not compute the same"):
        measured(ONES, ONES + 1e6)
    assert measured(ONES, ONES)["peer"] == 0.0


@pytest.mark.parametrize("place", ["fused", "gold", "allowed"])
def test_the_gate_of_the_kernels_refuses_what_is_not_finite(place):
    given = {"fused": ONES, "gold": ONES, "allowed": ONES}
    assert_right("sum", **given)
    for wrong in (inf, nan):
        with pytest.raises(RuntimeError, match="the correctness gate is red"):
            assert_right("sum", **given | {place: torch.tensor([1.0, 1.0, 1.0, wrong], dtype=torch.float64)})


def test_the_comparator_of_the_tests_refuses_an_overflow():
    with pytest.raises(AssertionError, match="error"):
        assert_agrees(ONES + 1e6, [ONE_INFINITE] * SAMPLES, ONES)


def test_errors_carry_over_to_another_type_in_proportion_to_its_unit_roundoff():
    u32, u64 = unit_roundoff(torch.float32), unit_roundoff(torch.float64)
    assert explained(u32, 0.0, torch.float64, sampled_in=torch.float32) == pytest.approx(FACTOR * u64)
    assert explained(0.0, 3.0, torch.float64, roundings=2) == 6 * u64
    assert explained(2.0, 0.0, torch.float32) == 2 * FACTOR
    assert distance(torch.tensor([1.0, nan]), torch.tensor([1.0, 0.0])) == inf
    assert distance(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0])) == 3.0
