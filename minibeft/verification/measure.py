"""Each theorem as a number on one attention layer: what was measured, and the most that the theorem allows.

The allowance is zero in exact arithmetic for every identity; what is left is the rounding of the type in use, from
bounds.py. A value above its allowance therefore means that the statement does not hold for this layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from minibeft.theory import bounds
from minibeft.verification.probe import Layer


@dataclass(frozen=True)
class Measurement:
    """The entry that comes closest to its allowance (or exceeds it most), and the largest value of all entries."""

    layer: int
    value: float
    allowed: float
    largest: float

    @property
    def ratio(self) -> float:
        return self.value / self.allowed if self.allowed else float(self.value > 0)


def worst(layer: int, value: Tensor, allowed: Tensor) -> Measurement:
    """The entry with the largest value/allowed. NaN counts as an infinite violation."""
    value, allowed = torch.broadcast_tensors(value.double(), allowed.double())
    value = value.nan_to_num(nan=torch.inf)
    at = int((value / allowed.clamp_min(torch.finfo(torch.float64).tiny)).argmax())
    return Measurement(layer, value.flatten()[at].item(), allowed.flatten()[at].item(), value.max().item())


def draw(like: Tensor, magnitude: float, generator: Generator) -> Tensor:
    """Normal numbers with this standard deviation, the same in every type."""
    return (magnitude * torch.randn(like.shape, generator=generator, dtype=torch.float64)).to(like)


def key_bias(layer: Layer, turned: slice, magnitude: float, generator: Generator) -> Measurement:
    """K1: |O(b_k) − O(0)| for a random b_k on the entries `turned` of each head, against the float bound of K4."""
    b_k = torch.zeros_like(layer.arguments["b_k"]).view(layer.kv_heads, -1)
    b_k[:, turned] = draw(b_k[:, turned], magnitude, generator)
    b_k = b_k.flatten()
    moved = (layer.outputs(b_k=b_k) - layer.outputs(b_k=None)).abs().amax(-1)  # (B, H, T)
    allowed = bounds.key_bias_effect_bound(
        layer.queries(layer.arguments["b_q"]),
        layer.grouped(layer.keys(None)),
        layer.grouped(layer.values(layer.arguments["b_v"])),
        layer.magnitude("w_k"),
        layer.bias_heads(b_k),
        **layer.arithmetic,
    )
    return worst(layer.index, moved, allowed)


def value_shift(layer: Layer, magnitude: float, generator: Generator) -> Measurement:
    """V1: |O(b_v) − O(0) − b_v| for a random b_v, in the rows that see a key."""
    b_v = draw(layer.arguments["b_v"], magnitude, generator)
    shift = layer.bias_heads(b_v)
    residual = (layer.outputs(b_v=b_v) - layer.outputs(b_v=None) - shift).abs()
    allowed = bounds.value_shift_bound(layer.magnitude("w_v"), shift, u=layer.unit_roundoff, roundings=layer.roundings)
    return worst(layer.index, residual.masked_fill(~layer.sees[:, None, :, None], 0.0), allowed)


def hull(layer: Layer, b_q: Tensor, generator: Generator, directions: int = 16) -> Measurement:
    """Q2: how far O reaches beyond the convex hull of the visible values, in random directions g.

    max_j v_j·g bounds O_i·g. Rounding: the row sum and the weighted sum (γ_{2S+1}), the two products with g (γ_{2D}).
    """
    v = layer.grouped(layer.values(layer.arguments["b_v"]))
    o = layer.outputs(b_q=b_q)
    u = layer.unit_roundoff
    excess, allowed = [], []
    for _ in range(directions):
        g = draw(v[0, 0, 0], 1.0, generator)
        reach = (v @ g)[:, :, None, :]  # (B, H, 1, S)
        reach = reach if layer.mask is None else reach + layer.mask
        excess.append((o @ g - reach.amax(-1)).masked_fill(~layer.sees[:, None], 0.0).clamp_min(0.0).amax())
        allowed.append(bounds.gamma(2 * v.shape[-2] + 2 * v.shape[-1] + 1, u) * g.abs().sum() * v.abs().amax())
    return worst(layer.index, torch.stack(excess), torch.stack(allowed))


def query_total_variation(layer: Layer, b_q: Tensor) -> Measurement:
    """Q3: TV(P(0), P(b_q)) against tanh(osc(β)/4), β taken row by row, as rotary positions need it (Q7)."""
    zero = torch.zeros_like(b_q)
    moved = (layer.weights(b_q) - layer.weights(zero)).abs().sum(-1) / 2  # (B, H, T)
    k = layer.grouped(layer.keys(layer.arguments["b_k"]))
    beta = layer.scale * (layer.queries(b_q) - layer.queries(zero)) @ k.mT  # (B, H, T, S)
    rounding = weights_error(layer, zero, bounds.weights_error) + weights_error(layer, b_q, bounds.weights_error)
    return worst(layer.index, moved, bounds.total_variation_bound(bounds.oscillation(beta, layer.mask)) + rounding)


def query_double_difference(layer: Layer, b_q: Tensor) -> Measurement:
    """Q4: the change of log P_ij − log P_il − log P_rj + log P_rl with b_q; r is the last row, l the first key it sees.

    Pairs that a mask hides, or whose weight underflowed, are left out.
    """
    zero = torch.zeros_like(b_q)
    before, after = layer.weights(zero), layer.weights(b_q)
    change = after.log() - before.log()  # (B, H, T, S); not finite where a weight is 0
    row = layer.sees.shape[1] - 1 - layer.sees.flip(1).int().argmax(1)  # (B): last row that sees anything
    reference = change[torch.arange(len(row)), :, row]  # (B, H, S)
    key = reference.isfinite().int().argmax(-1)  # (B, H)
    change = change - reference[:, :, None, :]
    change = change - change.gather(-1, key[:, :, None, None].expand(*change.shape[:3], 1))
    both = (weights_error(layer, b, bounds.log_weights_error) for b in (zero, b_q))
    errors = torch.stack(tuple(both)).sum(0)  # (B, H, T)
    anchor = errors[torch.arange(len(row)), :, row][:, :, None, None]
    value = change.abs().masked_fill(~change.isfinite(), 0.0)
    return worst(layer.index, value, 2 * (errors[..., None] + anchor))


def weights_error(layer: Layer, b_q: Tensor, bound) -> Float[Tensor, "B H T"]:
    """A bound of bounds.py on P for this b_q. The error of Q itself counts too: |q| is bounded by |x||W_q|ᵀ + |b_q|."""
    q_size = (layer.x.abs() @ layer.arguments["w_q"].abs().mT + b_q.abs()).unflatten(-1, (layer.heads, -1))
    q_size = q_size.transpose(1, 2)
    q, k = layer.queries(b_q), layer.grouped(layer.keys(layer.arguments["b_k"]))
    k_size = layer.magnitude("w_k") + layer.bias_heads(layer.arguments["b_k"]).abs()
    u = layer.unit_roundoff
    return bound(q_size.maximum(q.abs()), k, k_size, layer.mask, layer.scale, u, 2 * layer.roundings)


def key_gradient(layer: Layer, d_o: Float[Tensor, "B H T D"]) -> tuple[Measurement, float, float]:
    """K2: |∂L/∂b_k| against its float bound; and the norms of ∂L/∂b_k and ∂L/∂b_v, for scale."""
    grad_k, grad_v = bias_gradients(layer, d_o)
    allowed = bounds.key_gradient_bound(
        d_o,
        layer.queries(layer.arguments["b_q"]),
        layer.grouped(layer.keys(layer.arguments["b_k"])),
        layer.grouped(layer.values(layer.arguments["b_v"])),
        layer.magnitude("w_k") + layer.bias_heads(layer.arguments["b_k"]).abs(),
        **layer.arithmetic,
    )
    measured = worst(layer.index, grad_k.abs(), over_group(layer, allowed))
    return measured, grad_k.norm().item(), grad_v.norm().item()


def value_gradient(layer: Layer, d_o: Float[Tensor, "B H T D"]) -> Measurement:
    """V3: |∂L/∂b_v − Σ_i ∂L/∂O_i|, the gradient through the attention against the sum that needs none."""
    _, grad_v = bias_gradients(layer, d_o)
    allowed = bounds.value_gradient_bound(
        d_o,
        layer.queries(layer.arguments["b_q"]),
        layer.grouped(layer.keys(layer.arguments["b_k"])),
        layer.magnitude("w_k") + layer.bias_heads(layer.arguments["b_k"]).abs(),
        **layer.arithmetic,
    )
    return worst(layer.index, (grad_v - over_group(layer, d_o.sum((0, 2)))).abs(), over_group(layer, allowed))


def output_gradient(layer: Layer, d_out: Float[Tensor, "B T C"]) -> Measurement:
    """V3, the other way: |Σ_i W_oᵀ ∂L/∂out_i − W_oᵀ ∂L/∂b_o|; both are sums of B·T·C products in another order."""
    w_o = layer.arguments["w_o"]
    one, other = (d_out @ w_o).sum((0, 1)), d_out.sum((0, 1)) @ w_o
    rows = d_out.shape[0] * d_out.shape[1]
    u = layer.unit_roundoff
    return worst(
        layer.index,
        (one - other).abs(),
        2 * bounds.gamma(rows + w_o.shape[0], u) * (d_out.abs() @ w_o.abs()).sum((0, 1)),
    )


def bias_gradients(layer: Layer, d_o: Float[Tensor, "B H T D"]) -> tuple[Float[Tensor, " GD"], Float[Tensor, " GD"]]:
    """∂L/∂b_k and ∂L/∂b_v through the attention, for a loss whose gradient at O is d_o."""
    b_k, b_v = (layer.arguments[name].clone().requires_grad_() for name in ("b_k", "b_v"))
    grad_k, grad_v = torch.autograd.grad((layer.outputs(b_k=b_k, b_v=b_v) * d_o).sum(), (b_k, b_v))
    return grad_k, grad_v


def over_group(layer: Layer, per_head: Float[Tensor, "H D"]) -> Float[Tensor, " GD"]:
    """Summed over the query heads that share a key-value head."""
    return per_head.unflatten(0, (layer.kv_heads, -1)).sum(1).flatten()
