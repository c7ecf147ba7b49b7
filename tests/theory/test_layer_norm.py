"""K8 and V7: what a LayerNorm hides; each with what must be rejected."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from breakers import PLAIN, breaking, far_above, some
from checks import some_loss
from hypothesis import given
from hypothesis import strategies as st
from planted import off_by_one, rejects, rotated
from strategies import problems
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws
from minibeft.theory.norms import Normed, hidden_gradient, unread_mean
from minibeft.theory.variants import without


@st.composite
def behind_a_norm(draw: st.DrawFn, dtype: torch.dtype, *, kind: str = "layer", **given) -> tuple[Any, Normed]:
    """A problem whose keys are read from what a norm gave, one token of which was the zero vector."""
    p, g = draw(problems((dtype,), **given)), Draws(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.floats(-2, 2))
    raw = (p.source * size + g.normal(1).to(dtype) * size).contiguous()
    raw[0, 0] = 0.0
    width = raw.shape[-1]
    weight = ((0.1 + g.uniform(width)) * g.normal(width).sign()).to(dtype)
    bias = g.normal(width).to(dtype) if kind == "layer" else None
    y = normed(kind, raw, weight, bias)
    return replace(p, x=y) if p.y is None else replace(p, y=y), Normed(raw, weight, bias, 1e-5)


def normed(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5)


def check_hidden(example, function=attend) -> None:
    p, source = example
    p = replace(p, function=function)
    gap = hidden_gradient(p, some_loss(p), source)
    assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_K8(dtype):
    @given(behind_a_norm(dtype, blind=True))
    def holds(example):
        check_hidden(example)

    holds()


def test_K8_and_the_bound_is_no_excuse():
    """In float64 with moderate numbers the allowance is far below the gradient of W_k itself."""

    @given(behind_a_norm(torch.float64, magnitude=1.0))
    def tight(example):
        p, source = example
        assert hidden_gradient(p, some_loss(p), source).allowed.max() < 1e-6 * (1 + p.v(p.b_v).abs().max())

    tight()


@pytest.mark.parametrize("bug", [off_by_one, rotated])
def test_K8_rejects(bug):
    assert rejects(check_hidden, behind_a_norm(torch.float64, magnitude=1.0), function=bug)


def test_K8_needs_layer_norm():
    assert rejects(check_hidden, behind_a_norm(torch.float64, magnitude=1.0, kind="rms"))


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("k"))
def test_K8_needs(hypothesis, spec):
    """W_k + t nᵀ, t being b_k, moves the output where a b_k does."""
    layer, g = Layer.random(spec), Draws(1)
    weight, bias = 0.5 + g.uniform(PLAIN.width), g.normal(PLAIN.width)
    x, y = (normed("layer", t, weight, bias) for t in (layer.x, layer.y))
    layer = replace(layer, x=x, y=x if layer.y is layer.x else y)
    p = without(layer.params, "k")
    raised = replace(p, w_k=p.w_k + torch.outer(some(layer.params.b_k), 1 / weight))
    (before, _), (after, _) = (layer.run(params) for params in (p, raised))
    assert (after - before).abs().max() > 1e-4


def streamed(kind: str, post: bool, g: Draws, dtype: torch.dtype) -> tuple[Tensor, list[tuple[Normed, Tensor]]]:
    """∂L/∂out of W_o's output in a stream with two more blocks behind it, and the norms that read it."""
    batch, tokens, width = 2, 3, 1 + int(g.uniform(1).item() * 6)
    weight = [((0.1 + g.uniform(width)) * g.normal(width).sign()).to(dtype) for _ in range(3)]
    bias = [g.normal(width).to(dtype) if kind == "layer" else None for _ in range(3)]
    x, heads = (10.0 * g.normal(batch, tokens, width)).to(dtype), g.normal(batch, tokens, 4).to(dtype)
    x[0, 0] = 0.0
    out = (heads @ g.normal(4, width).to(dtype) + g.normal(width).to(dtype)).requires_grad_()
    read: list[tuple[Tensor, Tensor, int]] = []

    def norm(stream: Tensor, at: int) -> Tensor:
        y = normed(kind, stream, weight[at], bias[at])
        read.append((stream.detach(), y, at))
        return y

    s = x + out
    for at in range(2):
        block = torch.tanh(norm(s, at) @ g.normal(width, width).to(dtype))
        s = (read[-1][1] if post else s) + block
    y = norm(s, 2)
    slopes = torch.autograd.grad((y * g.normal(*y.shape).to(dtype)).sum(), [out, *(y for _, y, _ in read)])
    readers = [(Normed(s, weight[at], bias[at], 1e-5), g) for (s, _, at), g in zip(read, slopes[1:], strict=True)]
    return slopes[0], readers[:1] if post else readers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(seed=st.integers(0, 2**31), post=st.booleans())
def test_V7(dtype, seed, post):
    gap = unread_mean(*streamed("layer", post, Draws(seed), dtype))
    assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"


@pytest.mark.parametrize("post", [True, False])
def test_V7_needs_layer_norm(post):
    gap = unread_mean(*streamed("rms", post, Draws(0), torch.float64))
    assert far_above(gap)


def test_V7_and_the_bound_is_no_excuse():
    d_out, readers = streamed("layer", False, Draws(0), torch.float64)
    assert unread_mean(d_out, readers).allowed.max() < 1e-12 * d_out.abs().max()


@pytest.mark.parametrize("at", [0, 1])
def test_V7_every_reader_must_be_a_layer_norm(at):
    """One reader that takes the stream as it is, and the mean is read."""
    g = Draws(0)
    x, out = g.normal(3, 4), g.normal(3, 4).requires_grad_()
    readers = [lambda s: F.layer_norm(s, (4,)), lambda s: s]
    for plain in (False, True):
        s = x + out
        s = s + torch.tanh(readers[plain and at == 0](s) @ g.normal(4, 4))
        y = readers[plain and at == 1](s)
        (slope,) = torch.autograd.grad((y * g.normal(3, 4)).sum(), out)
        assert (slope.sum(-1).abs().max() > 1e-3) == plain
