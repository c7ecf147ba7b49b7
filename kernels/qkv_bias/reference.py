"""The ground truth in plain torch: Q = turn(X W_qᵀ + 1 b_qᵀ), K likewise, V = X W_vᵀ + 1 b_vᵀ, and their gradients."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minibeft.theory.rotary import Rotation

Triple = tuple[Tensor, Tensor, Tensor]
OptionalTriple = tuple[Tensor | None, Tensor | None, Tensor | None]


def qkv_bias_reference(
    x: Float[Tensor, "B T C"],
    weights: Triple,
    biases: OptionalTriple,
    rotation: Rotation | None,
    heads: int,
    each: Int[Tensor, " M"] | None = None,
) -> Triple:
    """Q (B,H,T,D), K and V (B,G,T,D), contiguous; weights (H·D,C), (G·D,C), (G·D,C) and biases (H·D), (G·D), (G·D).

    A bias of a wider type than x is added in its own type. each: the set of each row; a bias (R, …) is then a table, of
    which a row adds that of its set.
    """
    (w_q, w_k, w_v), (b_q, b_k, b_v) = weights, biases
    size = w_q.shape[0] // heads

    def project(w: Tensor, b: Tensor | None) -> Tensor:
        if b is None or (b.ndim == 1 and b.dtype == x.dtype):
            y = F.linear(x, w, b)
        else:
            own = b if b.ndim == 1 else b[each].view(*x.shape[:2], b.shape[1])
            y = (F.linear(x, w) + own).to(x.dtype)
        return y.unflatten(-1, (-1, size)).transpose(1, 2)  # (B, h, T, D)

    q, k, v = project(w_q, b_q), project(w_k, b_k), project(w_v, b_v)
    if rotation is not None:
        q, k = rotation(q), rotation(k)
    return q.contiguous(), k.contiguous(), v.contiguous()


def unproject(d_out: Float[Tensor, "B h T D"], rotation: Rotation | None) -> Float[Tensor, "B T hD"]:
    """The gradient before rotation, heads side by side again: what one nn.Linear would have received."""
    d_out = d_out if rotation is None else rotation.inverse()(d_out)
    return d_out.transpose(1, 2).flatten(2)


def input_grad_reference(grads: Triple, weights: Triple, rotation: Rotation | None) -> Float[Tensor, "B T C"]:
    """dX = dQ W_q + dK W_k + dV W_v, from dQ (B,H,T,D), dK and dV (B,G,T,D)."""
    (d_q, d_k, d_v), (w_q, w_k, w_v) = grads, weights
    return unproject(d_q, rotation) @ w_q + unproject(d_k, rotation) @ w_k + unproject(d_v, None) @ w_v


def weight_grad_reference(
    d_out: Float[Tensor, "B h T D"], x: Float[Tensor, "B T C"], rotation: Rotation | None
) -> Float[Tensor, "hD C"]:
    """dW = Σ over batch and tokens of d_out xᵀ."""
    return torch.einsum("btn,btc->nc", unproject(d_out, rotation), x)
