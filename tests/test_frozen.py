"""frozen_linear is F.linear, value and gradients, and keeps no tensor for its backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minibeft import frozen
from minibeft.bounds import unit_roundoff
from minibeft.frozen import OneDNN, frozen_linear

needs_onednn = pytest.mark.skipif(not frozen.has_onednn(), reason="this torch has no oneDNN")
SHAPES = [((7, 24), 40), ((3, 5, 24), 8), ((1, 300), 9)]


def results(function, x: Tensor, weight: Tensor, bias: Tensor | None, d_y: Tensor) -> list[Tensor]:
    """The value, and the gradients of what has one."""
    leaves = [t.clone().requires_grad_() for t in (x, bias) if t is not None]
    y = function(leaves[0], weight, *leaves[1:], *(() if len(leaves) > 1 else (None,)))
    return [y.detach(), *torch.autograd.grad(y, leaves, d_y)]


def compare(shape: tuple[int, ...], n: int, biased: bool) -> None:
    """Each entry is an inner product of m terms: |error| ≤ m u Σ|terms| to first order (Higham, 2002, §3.1)."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, d_y = (
        torch.randn(size, generator=draw) for size in (shape, (n, shape[-1]), (n,), (*shape[:-1], n))
    )
    b = bias if biased else None
    found = results(frozen_linear, x, weight, b, d_y)
    wide = [None if t is None else t.double() for t in (x, weight, b, d_y)]
    exact = results(F.linear, *wide)  # type: ignore[arg-type]
    sizes = results(F.linear, *(None if t is None else t.abs() for t in wide))  # type: ignore[arg-type]
    terms = max(shape[-1] + 1, n, x[..., 0].numel())
    for ours, gold, size in zip(found, exact, sizes, strict=True):
        assert ours.shape == gold.shape
        assert ((ours - gold).abs() <= terms * unit_roundoff(torch.float32) * size).all(), "beyond rounding"


@needs_onednn
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("shape", "n"), SHAPES)
def test_it_is_a_linear_map(shape, n, biased):
    compare(shape, n, biased)


BACKWARD = OneDNN.backward


@needs_onednn
@pytest.mark.parametrize("which", [0, 2])
def test_the_comparison_sees_a_wrong_gradient(which, monkeypatch):
    def wrong(ctx, d_y):
        return tuple(t if t is None or i != which else 1.0001 * t for i, t in enumerate(BACKWARD(ctx, d_y)))

    monkeypatch.setattr(OneDNN, "backward", staticmethod(wrong))
    with pytest.raises(AssertionError, match="beyond rounding"):
        compare((7, 24), 40, True)


@needs_onednn
def test_it_keeps_nothing():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        frozen_linear(torch.randn(4, 6, requires_grad=True), torch.randn(5, 6), torch.zeros(5))
    assert kept == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_weights_that_train_take_torchs_way(dtype, monkeypatch):
    monkeypatch.setattr(frozen, "product", lambda *_: pytest.fail("oneDNN was asked"))
    x, weight = torch.randn(4, 6, dtype=dtype), torch.randn(5, 6, dtype=dtype)
    assert torch.equal(frozen_linear(x, weight, None), F.linear(x, weight))
    trained = torch.randn(5, 6, requires_grad=True)
    frozen_linear(torch.randn(4, 6), trained, None).sum().backward()
    assert trained.grad is not None
