"""What a LayerNorm hides, in numbers: a direction of W_k in front of attention (K8), the mean of b_o behind it (V7).

The bounds on rounding hold however mean and variance are computed in C operations each and applied to an entry in
three. They grow with r Σ_c (|x_c| + |mean|), because what a LayerNorm subtracts may be larger than what it leaves.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.bounds import gamma, key_gradient_bound, logit_gradient, unit_roundoff
from minibeft.theory.instance import Instance
from minibeft.theory.statements import Gap, gradients


class Normed(NamedTuple):
    """A norm and its input x; an RMSNorm has no bias."""

    x: Float[Tensor, "B T C"]
    weight: Float[Tensor, " C"]
    bias: Float[Tensor, " C"] | None
    eps: float

    @property
    def direction(self) -> Float[Tensor, " C"]:
        """n = 1/γ."""
        return 1 / self.weight.double()

    @property
    def fixed(self) -> Float[Tensor, " C"]:
        """n_c β_c, whose sum is n·y for every token y of a LayerNorm."""
        return torch.zeros_like(self.direction) if self.bias is None else self.direction * self.bias.double()

    @property
    def size(self) -> Float[Tensor, "B T"]:
        """r Σ_c (|x_c| + |mean|), with the largest r = 1/√(variance + ε) that rounding of the variance, at most
        γ_{2C+4} mean x², leaves possible."""
        x = self.x.double()
        rounds = gamma(2 * x.shape[-1] + 4, unit_roundoff(self.x.dtype)) * x.square().mean(-1)
        rate = ((x.var(-1, unbiased=False) - rounds).clamp_min(0.0) + self.eps).rsqrt()
        return rate * 2 * x.abs().sum(-1)

    def uneven(self) -> Float[Tensor, "B T"]:
        """How far rounding may take n·y from n·β: the computed mean errs by γ_{C+1} mean |x|, which all C entries
        share; γ_3 for each entry of x̂, γ_2 for γx̂ + β, and n itself is rounded. r multiplies all, and may be off."""
        u, width = unit_roundoff(self.x.dtype), self.x.shape[-1]
        return gamma(width + 8, u) * self.size + gamma(3, u) * self.fixed.abs().sum()

    def slope_sum(self, slope: Float[Tensor, "B T C"], additions: int) -> Float[Tensor, "B T"]:
        """How far from 0 rounding may take Σ_c ∂L/∂x_c, which is r (h − mean h − x̂ mean(h∘x̂)) with h = γ∘∂L/∂y: means
        and sums are C roundings each, an entry at most 8, and `additions` of gradients follow."""
        u, width = unit_roundoff(self.x.dtype), self.x.shape[-1]
        x, h = self.x.double(), (self.weight.double() * slope.double()).abs()
        rate = self.size / (2 * x.abs().sum(-1)).clamp_min(torch.finfo(torch.float64).tiny)
        lifted = rate.unsqueeze(-1) * (x.abs() + x.mean(-1, keepdim=True).abs())  # ≥ |x̂|
        terms = 2 * h.sum(-1) + lifted.sum(-1) * (h * lifted).mean(-1)
        return gamma(3 * width + 8 + additions, u) * rate * terms


def hidden_gradient(p: Instance, d_o: Float[Tensor, "B H T D"], source: Normed) -> Gap:
    """K8: |(∂L/∂W_k) n| where the keys are read from what `source` gave.

    It is Σ_j ∂L/∂k_j (n·y_j): n·β times the gradient of a b_k (K2), and what rounding leaves of n·y_j − n·β, and of the
    sums over tokens and channels.
    """
    n, y, a = source.direction, p.source.double(), p.arithmetic
    batch, keys, width = y.shape
    q, k, v, k_abs = p.q(p.b_q), p.k(p.b_k), p.v(p.b_v), p.sizes("k", p.b_k)
    grad = gradients(p, d_o, "w_k")["w_k"]
    shared = source.fixed.sum().abs() * p.over_group(key_gradient_bound(d_o, q, k, v, k_abs, a))
    largest, error = logit_gradient(d_o, q, k, v, k_abs, a)
    slopes = a.scale * (q.abs() * (largest + error).unsqueeze(-1)).sum((0, 2))  # Σ_j |∂L/∂k_j|
    slopes = p.over_group(slopes) * (1 + gamma(q.shape[2] + p.group + 1, a.u))
    sums = gamma(batch * keys + width + 3, a.u) * (y.abs() @ n.abs()).max()
    return Gap((grad @ n).abs(), shared + slopes * (source.uneven().max() + sums))


def unread_mean(d_out: Float[Tensor, "B T C"], readers: Iterable[tuple[Normed, Float[Tensor, "B T C"]]]) -> Gap:
    """V7: |Σ_c ∂L/∂out_c| of each token, and so of b_o and of every column of W_o. The readers are the norms through
    which the stream is read from there on, each with the gradient of L at its output."""
    found = list(readers)
    return Gap(d_out.double().sum(-1).abs(), sum((x.slope_sum(g, 2 * len(found)) for x, g in found), torch.zeros(())))
