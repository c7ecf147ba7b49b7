"""I1 to I3: what the three measures of importance are, and where the first is not defined."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minibeft.errors import BadInput
from minibeft.theory.bounds import gamma, unit_roundoff
from minibeft.theory.draws import Draws
from minibeft.training.importance import fisher, mag_angle, magnitude

U = unit_roundoff(torch.float64)
seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 40)


def pair(width: int, seed: int, distance: float = 1.0):
    generator = Draws(seed)
    b = generator.normal(width)
    return b, b + distance * generator.normal(width)


def rounding(b: torch.Tensor, t: torch.Tensor) -> float:
    """How far mag_angle may err: d + 4 roundings of Σ|l||l − s| over ‖l‖², twice that for the choice of l and a tie."""
    longer, shorter = (b, t) if b.norm() > t.norm() else (t, b)
    return (2 * gamma(b.numel() + 4, U) * (longer.abs() @ (longer.abs() + shorter.abs())) / (longer @ longer)).item()


@given(widths, seeds)
def test_i1_is_one_minus_cosine_times_ratio(width, seed):
    b, t = pair(width, seed)
    cosine = (b @ t / b.norm() / t.norm()).item()
    ratio = min(b.norm(), t.norm()) / max(b.norm(), t.norm())
    assert abs(mag_angle(b, t) - (1 - cosine * ratio)) <= 2 * rounding(b, t) + gamma(3 * width + 8, U)


@given(widths, seeds, st.floats(1e-3, 1e3))
def test_i1_is_symmetric_and_invariant_to_scale_and_rotation(width, seed, scale):
    b, t = pair(width, seed)
    value, slack = mag_angle(b, t), 4 * rounding(b, t)
    assert abs(mag_angle(t, b) - value) <= slack
    assert abs(mag_angle(scale * b, scale * t) - value) <= slack
    # A reflection I − 2vvᵀ/vᵀv is orthogonal up to γ_{2d+6} of the vector's length, on each of four vectors used.
    v = Draws(seed).normal(width)
    turn = lambda x: x - 2 * (v @ x) / (v @ v) * v  # noqa: E731
    assert abs(mag_angle(turn(b), turn(t)) - value) <= slack + 16 * gamma(2 * width + 6, U)


@given(widths, seeds)
def test_i1_is_zero_iff_nothing_moved_and_at_most_one_up_to_90_degrees_two_beyond(width, seed):
    b, t = pair(width, seed)
    assert mag_angle(b, b.clone()) == 0
    assert mag_angle(b, t) > 0
    assert mag_angle(b, t) <= 2 + rounding(b, t)
    if b @ t >= 0:
        assert mag_angle(b, t) <= 1 + rounding(b, t)
    assert mag_angle(b, -b) == 2


def test_i1_sees_a_change_that_one_minus_cosine_rounds_away():
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    t = b + torch.tensor([1e-9, 0.0, 0.0], dtype=torch.float64)
    # 1 − b·t/‖t‖² = t·(t − b)/‖t‖² = 1e-9 · t₁/‖t‖²; t₁ − b₁ itself is rounded to within 2u of 1
    assert abs(mag_angle(b, t) - (t[0] - b[0]).item() / 14) <= 1e-9 * 1e-8


@pytest.mark.parametrize("swap", [False, True])
def test_i1_is_undefined_at_zero(swap):
    pairs = (torch.zeros(4), torch.ones(4))
    with pytest.raises(BadInput, match="undefined"):
        mag_angle(*(reversed(pairs) if swap else pairs))


# No scale so small that products underflow.
@given(widths, seeds, st.floats(-8, 8).filter(lambda scale: scale == 0 or abs(scale) > 1e-200))
def test_i2_is_a_metric_that_scales(width, seed, scale):
    b, t = pair(width, seed)
    c, _ = pair(width, seed + 1)
    value, slack = magnitude(b, t), gamma(width + 3, U) * magnitude(b.abs(), -t.abs())
    assert magnitude(b, b) == 0 < value
    assert magnitude(t, b) == value
    assert value <= magnitude(b, c) + magnitude(c, t) + slack + gamma(width + 3, U) * 2 * magnitude(c.abs(), -b.abs())
    assert abs(magnitude(scale * b, scale * t) - abs(scale) * value) <= 2 * abs(scale) * slack


def test_i2_is_not_invariant_to_a_rotation():
    b, t, turn = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
    assert magnitude(b, t) == 0.5
    assert magnitude(turn @ b, turn @ t) > 0.7


@given(seeds, st.integers(1, 4), st.floats(1e-3, 1e3))
def test_i3_is_the_mean_square_of_clipped_gradients(seed, batches, size):
    """Linear losses g·p: the gradients are known. At most 1/d each, and Σ d·I ≤ 1 over what is clipped together."""
    generator = Draws(seed)
    parameters = {
        "a": nn.Parameter(torch.zeros(5)),
        "b": nn.Parameter(torch.zeros(3)),
        "idle": nn.Parameter(torch.zeros(2)),
    }
    rows = size * generator.normal(batches, 8, dtype=torch.float32)
    losses = (row[:5] @ parameters["a"] + row[5:] @ parameters["b"] + 0.0 * parameters["idle"].sum() for row in rows)
    found = fisher(parameters, losses)
    exact = rows.double()
    clipped = exact * (1 / (exact.norm(dim=1, keepdim=True) + 1e-6)).clamp_max(1.0)
    slack = 1 + gamma(
        2 * 12, unit_roundoff(torch.float32)
    )  # the norm is float32: 8 squares, a sum, a root; used squared
    for name, part in (("a", clipped[:, :5]), ("b", clipped[:, 5:])):
        gold = part.square().mean().item()
        assert gold / slack <= found[name] <= gold * slack
        assert found[name] <= slack / parameters[name].numel()
    assert found["idle"] == 0
    assert sum(value * parameters[name].numel() for name, value in found.items()) <= slack


def test_i3_needs_a_batch():
    with pytest.raises(BadInput, match="at least one batch"):
        fisher({"a": nn.Parameter(torch.zeros(1))}, [])
