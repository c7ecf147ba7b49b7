"""The comparator accepts a candidate as good as the plain computation and rejects one with a planted bug."""

import pytest
import torch
from tolerance import assert_agrees, assert_close_float64, error

from minibeft.theory.attention import attend


def product(dtype: torch.dtype) -> torch.Tensor:
    """A matrix product of fixed numbers, exact inputs in every type."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 40, generator=g).to(torch.bfloat16).to(dtype) for _ in range(2))
    return a @ b


GOLD, PLAIN = product(torch.float64), product(torch.float32)


def test_the_plain_computation_itself_passes():
    assert_agrees(PLAIN, PLAIN, GOLD)


def test_the_rounded_gold_passes():
    assert_agrees(GOLD.float(), PLAIN, GOLD)


def test_another_order_of_summation_passes():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 40, generator=g).to(torch.bfloat16).float() for _ in range(2))
    assert_agrees(a[:, 20:] @ b[20:] + a[:, :20] @ b[:20], PLAIN, GOLD)


def off_by(entry: float) -> torch.Tensor:
    wrong = PLAIN.clone()
    wrong[3, 5] += entry
    return wrong


BUGS = {
    "one entry off by 1e-4": off_by(1e-4),
    "one entry NaN": off_by(float("nan")),
    "one entry infinite": off_by(float("inf")),
    "scaled": PLAIN * 1.0001,
    "transposed": PLAIN.mT.contiguous(),
    "rows swapped": PLAIN.roll(1, 0),
    "sign": -PLAIN,
    "zero": torch.zeros_like(PLAIN),
    "computed in bfloat16": product(torch.bfloat16).float(),
}


@pytest.mark.parametrize("name", BUGS)
def test_bugs_are_rejected(name):
    with pytest.raises(AssertionError, match="allowed"):
        assert_agrees(BUGS[name], PLAIN, GOLD)


def test_shape_and_type_must_match():
    with pytest.raises(AssertionError, match="shapes"):
        assert_agrees(PLAIN[:1], PLAIN, GOLD)
    with pytest.raises(AssertionError, match="plain is"):
        assert_agrees(PLAIN.bfloat16(), PLAIN, GOLD)
    with pytest.raises(AssertionError, match="float64"):
        assert_agrees(PLAIN, PLAIN, PLAIN)
    with pytest.raises(AssertionError, match="finite"):
        assert_agrees(PLAIN, PLAIN, GOLD / 0)


def test_float64_runs_are_held_to_float64():
    """1e-12 is nothing beside a float32 error and much beside a float64 one."""
    yardstick = error(PLAIN, GOLD)
    assert_close_float64(GOLD + 1e-15, GOLD, yardstick)
    with pytest.raises(AssertionError, match="differ"):
        assert_close_float64(GOLD + 1e-12, GOLD, yardstick)
    with pytest.raises(AssertionError, match="differ"):
        assert_close_float64(PLAIN.double(), GOLD, yardstick)


@pytest.mark.parametrize("dropped", ["b_q", "b_v", "mask", "scale"])
def test_attention_that_drops_an_argument_is_rejected(dropped):
    """The comparator sees what a kernel may forget. (b_k may be dropped: that is K1.)"""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(2, 5, 8, generator=g), torch.randn(3, 8, 8, generator=g)
    b = torch.randn(3, 8, generator=g)
    causal = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)[None, None]

    def run(dtype: torch.dtype, *, drop: str | None = None) -> torch.Tensor:
        given = {"b_q": b[0], "b_k": b[1], "b_v": b[2], "mask": causal}
        given = {name: None if name == drop else value.to(dtype) for name, value in given.items()}
        w_q, w_k, w_v = w.to(dtype)
        scale = 1.0 if drop == "scale" else None
        return attend(
            x.to(dtype), w_q, w_k, w_v, heads=2, scale=scale, fused=False,
            b_q=given["b_q"], b_k=given["b_k"], b_v=given["b_v"], mask=given["mask"],
        ).output  # fmt: skip

    gold, plain = run(torch.float64), run(torch.float32)
    assert error(run(torch.float64, drop="b_k"), gold) < 1e-12
    with pytest.raises(AssertionError, match="allowed"):
        assert_agrees(run(torch.float32, drop=dropped), plain, gold)
