"""A linear map whose weight is frozen: the product that bias-only training is made of, forward and backward."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@cache
def has_onednn() -> bool:
    """Whether torch was built with oneDNN, whose float32 products are up to half as fast again as aten's on a CPU."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def frozen_linear(
    x: Float[Tensor, "*B C"], weight: Float[Tensor, "n C"], bias: Float[Tensor, " n"] | None
) -> Float[Tensor, "*B n"]:
    """x Wᵀ + 1 bᵀ without a gradient of W. It keeps nothing for the backward pass: d_x = d_y W, d_b = Σ d_y."""
    float32 = all(t is None or t.dtype == torch.float32 for t in (x, weight, bias))
    if float32 and x.device.type == "cpu" and not weight.requires_grad and has_onednn():
        return OneDNN.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def product(x: Float[Tensor, "*B C"], weight: Float[Tensor, "n C"], bias: Tensor | None) -> Float[Tensor, "*B n"]:
    """Through oneDNN's linear, which torch's compiler uses too and which has no derivative of its own."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNN(torch.autograd.Function):
    """frozen_linear in float32 on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*B C"], weight: Float[Tensor, "n C"], bias: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "*B n"]:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "*B n"]) -> tuple[Tensor | None, None, Tensor | None]:
        (d_y,) = grad_outputs
        d_x = product(d_y.contiguous(), ctx.weight.T, None) if ctx.needs_input_grad[0] else None
        return d_x, None, d_y.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
