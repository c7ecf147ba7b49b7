"""Bias gradients as torch sees them: minibeft::column_sum, and value_bias_grad, which by V3 needs no attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.dispatch import on_kernels
from minibeft.kernels.owners import as_owners
from minibeft.theory.rotary import Rotation


@torch.library.custom_op("minibeft::column_sum", mutates_args=())
def column_sum(
    d_out: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    shared: int,
    dtype: torch.dtype,
    each: Tensor | None = None,
    order: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """(B, h, T, D) → (h·D/shared): the sum over batch and tokens, turned back where angles are given, in dtype.

    each, order, starts  all or none, as in Owners: the result is then (R, h·D/shared), one sum per set
    """
    rotation = None if cos is None or sin is None else Rotation(cos, sin, interleaved)
    sets = as_owners(each, order, starts)
    if not on_kernels(d_out):
        return column_sum_reference(d_out, rotation, shared, dtype, sets)
    from minibeft.kernels.bias_grad.forward import plan_column_sum

    out = _sum_like(d_out, shared, dtype, starts)
    for launch in plan_column_sum(d_out, out, rotation, shared, sets):
        launch.run()
    return out


def _sum_like(d_out: Tensor, shared: int, dtype: torch.dtype, starts: Tensor | None) -> Tensor:
    sets = () if starts is None else (starts.shape[0] - 1,)
    return d_out.new_empty((*sets, d_out.shape[1] * d_out.shape[3] // shared), dtype=dtype)


@column_sum.register_fake
def _(d_out, cos, sin, interleaved, shared, dtype, each=None, order=None, starts=None):
    return _sum_like(d_out, shared, dtype, starts)


def value_bias_grad(d_out: Float[Tensor, "B T HD"], *, heads: int, kv_heads: int, verdict: str) -> Float[Tensor, " GD"]:
    """∂L/∂b_v = Σ_i ∂L/∂O_i, summed over the query heads that share a value head: no attention backward (theorem V3).

    d_out     gradient of the attention output before W_o, heads side by side
    verdict   what certify says of b_v in this configuration; only "foldable" means that V1, and so V3, holds
    """
    if verdict != "foldable":
        raise ValueError(
            f'b_v is "{verdict}" here, not "foldable": theorem V3 (∂L/∂b_v = Σ ∂L/∂O) does not hold, '
            "take the gradient through attention"
        )
    if d_out.ndim != 3 or d_out.shape[2] % heads or heads % kv_heads:
        raise ValueError(
            f"d_out has shape {tuple(d_out.shape)}, heads = {heads}, kv_heads = {kv_heads}: "
            "expected (B, T, heads·D) and kv_heads dividing heads"
        )
    by_head = d_out.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, T, D)
    return column_sum(by_head, None, None, False, heads // kv_heads, d_out.dtype)
