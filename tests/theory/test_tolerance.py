"""The comparator accepts a candidate as good as the plain computation and rejects one with a planted bug."""

import math
from collections.abc import Callable

import pytest
import torch
from rounding import assert_same
from tolerance import FACTOR, SAMPLES, assert_agrees, error, in_float64, in_other_type, samples

from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws


def factors(dtype: torch.dtype) -> list[torch.Tensor]:
    """Two matrices of fixed numbers that every type holds exactly."""
    g = Draws(0)
    return [g.normal(40, 40, dtype=torch.bfloat16).to(dtype) for _ in range(2)]


def product(pair: list[torch.Tensor]) -> torch.Tensor:
    return pair[0] @ pair[1]


GOLD, PLAIN = product(factors(torch.float64)), product(factors(torch.float32))
DRAWN = samples(product, factors(torch.float32))
DOUBLES = in_other_type(DRAWN, GOLD, torch.float32, torch.float64)


def test_the_plain_computation_itself_passes():
    assert_agrees(PLAIN, DRAWN, GOLD)


def test_the_rounded_gold_passes():
    assert_agrees(GOLD.float(), DRAWN, GOLD)


def test_another_order_of_summation_passes():
    a, b = factors(torch.float32)
    assert_agrees(a[:, 20:] @ b[20:] + a[:, :20] @ b[:20], DRAWN, GOLD)


def test_the_chance_of_a_false_alarm_is_as_stated():
    """Of one normal number against the largest of twelve, the worst case: (2/π)⁶ · 11!!/20¹², below 2e-13."""
    double_factorial = math.prod(range(SAMPLES - 1, 0, -2))
    assert (2 / math.pi) ** (SAMPLES / 2) * double_factorial / FACTOR**SAMPLES < 2e-13
    one, others = Draws(0).normal(1_000_000), Draws(1).normal(1_000_000, 2)
    seen = (one.abs() > 20 * others.abs().amax(1)).double().mean().item()
    stated = (2 / math.pi) * 1 / 20**2  # the same formula for two samples: 1.6e-3, which a million draws show
    assert 0.5 * stated < seen <= stated * 1.1


def one_entry_off_by(entry: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def bug(right: torch.Tensor) -> torch.Tensor:
        wrong = right.clone()
        wrong[3, 5] += entry
        return wrong

    return bug


BUGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one entry off by 1e-4": one_entry_off_by(1e-4),
    "one entry off by 1e-12": one_entry_off_by(1e-12),
    "one entry NaN": one_entry_off_by(float("nan")),
    "one entry infinite": one_entry_off_by(float("inf")),
    "scaled": lambda right: right * 1.0001,
    "transposed": lambda right: right.mT.contiguous(),
    "rows swapped": lambda right: right.roll(1, 0),
    "sign": lambda right: -right,
    "zero": torch.zeros_like,
    "computed in bfloat16": lambda right: product(factors(torch.bfloat16)).to(right),
}


@pytest.mark.parametrize("name", BUGS)
def test_bugs_are_rejected(name):
    """A wrong formula is wrong in every type; the float64 comparison sees what float32's rounding would hide."""
    with pytest.raises(AssertionError, match="allowed"):
        assert_same(BUGS[name](PLAIN), BUGS[name](GOLD), GOLD, DRAWN, DOUBLES, "product")


def test_shape_and_type_must_match():
    with pytest.raises(AssertionError, match="shapes"):
        assert_agrees(PLAIN[:1], DRAWN, GOLD)
    with pytest.raises(AssertionError, match="float64"):
        assert_agrees(PLAIN, DRAWN, PLAIN)
    with pytest.raises(AssertionError, match="finite"):
        assert_agrees(PLAIN, DRAWN, GOLD / 0)
    with pytest.raises(AssertionError, match="too few"):
        assert_agrees(PLAIN, DRAWN[:4], GOLD)


def test_float64_runs_are_held_to_float64():
    """1e-12 is nothing beside a float32 error and much beside a float64 one."""
    assert_agrees(GOLD + 1e-12, DRAWN, GOLD)
    assert_agrees(GOLD + 1e-15, DOUBLES, GOLD)
    with pytest.raises(AssertionError, match="allowed"):
        assert_agrees(GOLD + 1e-12, DOUBLES, GOLD)
    with pytest.raises(AssertionError, match="allowed"):
        assert_agrees(PLAIN.double(), DOUBLES, GOLD)


@pytest.mark.parametrize("dropped", ["b_q", "b_v", "mask", "scale"])
def test_attention_that_drops_an_argument_is_rejected(dropped):
    """The comparator sees what a kernel may forget. (b_k may be dropped: that is K1.)"""
    g = Draws(1)
    x, w = g.normal(2, 5, 8, dtype=torch.float32), g.normal(3, 8, 8, dtype=torch.float32)
    b = g.normal(3, 8, dtype=torch.float32)
    causal = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)[None, None]

    def run(inputs: list[torch.Tensor], *, drop: str | None = None) -> torch.Tensor:
        x, w, b = inputs
        given = {"b_q": b[0], "b_k": b[1], "b_v": b[2], "mask": causal}
        given = {name: None if name == drop else value.to(x) for name, value in given.items()}
        w_q, w_k, w_v = w
        scale = 1.0 if drop == "scale" else None
        return attend(
            x, w_q, w_k, w_v, heads=2, scale=scale, fused=False,
            b_q=given["b_q"], b_k=given["b_k"], b_v=given["b_v"], mask=given["mask"],
        ).output  # fmt: skip

    inputs = [x, w, b]
    gold, drawn = run(in_float64(inputs)), samples(run, inputs)
    assert error(run(in_float64(inputs), drop="b_k"), gold) < 1e-12
    with pytest.raises(AssertionError, match="allowed"):
        assert_agrees(run(inputs, drop=dropped), drawn, gold)
