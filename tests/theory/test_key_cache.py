"""K9 and K10: keys as a cache holds them, and b_k under rotary positions; each with what must be rejected."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import rejects
from strategies import problems

from minibeft.theory import statements
from minibeft.theory.attention import HeadNorm, attend
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary


@st.composite
def turned(draw: st.DrawFn, dtype: torch.dtype, **given) -> tuple[Instance, Rotary]:
    """A self-attention problem under rotary positions, partial ones too, of fast and of slow planes."""
    p = draw(problems((dtype,), **given).filter(lambda p: p.y is None and p.w_q.shape[0] // p.heads > 1))
    size = p.w_q.shape[0] // p.heads
    dims = 2 * draw(st.integers(1, size // 2))
    turn = Rotary(dims, interleaved=draw(st.booleans()), scale=draw(st.sampled_from((1.0, 0.1, 1e3))))
    return replace(p, rotate=turn.rotate(torch.arange(p.x.shape[1]))), turn


def check_cache(p: Instance) -> None:
    """The mean over the tokens is taken off, as a quantised cache would, and a hundred times a drawn vector."""
    keys = p.k(p.b_k)[:, :: p.group]
    for c in (keys.mean(-2, keepdim=True), 100 * Draws(0).normal(*keys[:, :, :1].shape)):
        c = c.to(p.x.dtype).double()
        gap = statements.cached_keys(p, c)
        assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(data=st.data())
def test_K9(dtype, data):
    check_cache(data.draw(problems((dtype,), blind=True)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(data=st.data())
def test_K9_under_rotary_positions(dtype, data):
    check_cache(data.draw(turned(dtype, blind=True))[0])


@given(problems((torch.float64,), magnitude=1.0))
def test_K9_and_the_bound_is_no_excuse(p):
    c = p.k(p.b_k)[:, :: p.group].mean(-2, keepdim=True)
    assert statements.cached_keys(p, c).allowed.max() < 1e-9 * (1 + p.v(p.b_v).abs().max())


def test_K9_needs_no_softcap():
    """A cap bends what a row shares."""
    g = Draws(0)
    given: list[Any] = [g.normal(1, 4, 3), *(g.normal(2, 3) for _ in "qkv"), *[None] * 5]
    p = Instance(*given, heads=1, kv_heads=1)
    keys = p.k(None)
    off = keys.mean(-2, keepdim=True)
    gap = statements.cached_keys(replace(p, softcap=1.0), off)
    assert gap.value.max() > 1e6 * gap.allowed.max()


def frequencies(turn: Rotary) -> torch.Tensor:
    """ω_u: the angles from one position to the next."""
    return turn.angles(torch.ones(1, dtype=torch.int64))[0]


def check_rotary(example, function=attend) -> None:
    p, turn = example
    gap = statements.rotary_variation(replace(p, function=function), frequencies(turn), turn.interleaved)
    assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"


@given(turned(torch.float64, blind=True, magnitude=10.0))
def test_K10_float64(example):
    check_rotary(example)


@given(turned(torch.float32, blind=True, magnitude=10.0))
def test_K10_float32(example):
    check_rotary(example)


def test_K10_the_bound_is_small_in_slow_planes():
    """Positions a thousand times closer: what b_k may do is a thousandth; K1 is the limit."""
    g = Draws(0)
    given = [g.normal(1, 6, 3), *(g.normal(4, 3) for _ in "qkv"), None, *(g.normal(4) for _ in "qkv"), None]
    bounds = []
    for scale in (1.0, 1e3):
        turn = Rotary(4, scale=scale)
        p = Instance(*given, 1, 1, rotate=turn.rotate(torch.arange(6)))  # type: ignore[arg-type]
        gap = statements.rotary_variation(p, frequencies(turn), False)
        assert gap.holds
        bounds.append(gap.allowed.max())
    assert bounds[1] < 0.01 * bounds[0]


NORM = HeadNorm(torch.ones(4, dtype=torch.float64), 1e-6)


def quadruple_b_k(x, w_q, w_k, w_v, w_o=None, *, b_k=None, **given):
    """b_k counts four times."""
    return attend(x, w_q, w_k, w_v, w_o, b_k=None if b_k is None else 4 * b_k, **given)


def test_K10_rejects():
    assert rejects(check_rotary, turned(torch.float64, magnitude=1.0), function=quadruple_b_k)


@pytest.mark.parametrize("change", [{"softcap": 0.5}, {"q_norm": NORM, "k_norm": NORM}], ids=["cap", "norm"])
def test_K10_needs(change):
    """With a slow plane, where the bound is next to nothing, a cap or a norm makes b_k felt."""
    g = Draws(0)
    given = [g.normal(1, 6, 3), *(g.normal(4, 3) for _ in "qkv"), None, *(g.normal(4) for _ in "qkv"), None]
    turn = Rotary(4, scale=1e6)
    p = Instance(*given, 1, 1, rotate=turn.rotate(torch.arange(6)), **change)  # type: ignore[arg-type]
    gap = statements.rotary_variation(p, frequencies(turn), False)
    assert gap.value.max() > 100 * gap.allowed.max()
