"""frozen_linear is F.linear to rounding, and asks oneDNN only where no gradient is recorded."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minibeft.models import layers
from minibeft.models.layers import Linear
from minibeft.models.packed import frozen
from minibeft.models.packed.frozen import frozen_linear
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws

SHAPES = [((7, 24), 40), ((3, 5, 24), 8), ((1, 300), 9)]


def compare(shape: tuple[int, ...], n: int, biased: bool) -> None:
    """Each entry is an inner product of m terms: |error| ≤ m u Σ|terms| to first order (Higham, 2002, §3.1)."""
    draw = Draws(0)
    x, weight = (draw.normal(*size, dtype=torch.float32) for size in (shape, (n, shape[-1])))
    bias = draw.normal(n, dtype=torch.float32) if biased else None
    with torch.inference_mode():
        ours = frozen_linear(x, weight, bias)
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    exact = F.linear(*wide)  # type: ignore[arg-type]
    sizes = F.linear(*(None if t is None else t.abs() for t in wide))  # type: ignore[arg-type]
    assert ours.shape == exact.shape
    assert ((ours - exact).abs() <= (shape[-1] + 1) * unit_roundoff(torch.float32) * sizes).all(), "beyond rounding"


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("shape", "n"), SHAPES)
def test_it_is_a_linear_map(shape, n, biased):
    compare(shape, n, biased)


@pytest.mark.skipif(not frozen.has_onednn(), reason="this torch has no oneDNN")
def test_the_comparison_sees_a_wrong_product(monkeypatch):
    right = frozen.product
    monkeypatch.setattr(frozen, "product", lambda *inputs: 1.0001 * right(*inputs))
    with pytest.raises(AssertionError, match="beyond rounding"):
        compare((7, 24), 40, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_training_take_torchs_way(dtype, monkeypatch):
    def asked(*_: Tensor | None) -> Tensor:
        pytest.fail("oneDNN was asked")

    monkeypatch.setattr(frozen, "product", asked)
    x, weight = (Draws(n).normal(n, 6, dtype=dtype) for n in (4, 5))
    with torch.inference_mode():
        assert torch.equal(frozen_linear(x, weight, None), F.linear(x, weight))
    bias = torch.zeros(5, requires_grad=True)
    frozen_linear(torch.ones(4, 6), torch.ones(5, 6), bias).sum().backward()
    assert bias.grad is not None


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_bias_of_a_wider_type_is_added_in_its_own(evaluated: bool):
    x, weight = (Draws(n).normal(n, 6, dtype=torch.bfloat16) for n in (4, 5))
    bias = Draws(6).normal(5, dtype=torch.float32)
    with torch.inference_mode(evaluated):
        assert torch.equal(frozen_linear(x, weight, bias), (F.linear(x, weight) + bias).to(torch.bfloat16))


def test_onednn_is_asked_where_torch_has_it(monkeypatch):
    """Its operator is private in torch: this test fails when a new version of torch no longer has it by this name."""
    assert frozen.has_onednn.__wrapped__() == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not frozen.has_onednn.__wrapped__()


def test_a_map_says_whether_it_is_frozen(monkeypatch):
    monkeypatch.setattr(layers, "frozen_linear", lambda x, *_: x)
    linear, x = Linear(3, 5), torch.ones(2, 3)
    assert linear(x) is not x
    linear.frozen = True
    assert linear(x) is x
