"""Q8 in numbers: the gradient of b_q is a covariance of keys and values under P, and bounded by their diameters."""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.bounds import gamma, logit_gradient
from minibeft.theory.instance import Instance
from minibeft.theory.statements import Gap, gradients


def diameters(p: Instance, x: Float[Tensor, "B H S D"]) -> Float[Tensor, "B H T"]:
    """The largest distance between two vectors whose keys a row sees; 0 where it sees none."""
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").unsqueeze(2)  # (B, H, 1, S, S)
    if p.mask is not None:
        hidden = p.mask.isneginf()
        apart = apart.masked_fill(hidden.unsqueeze(-1) | hidden.unsqueeze(-2), 0.0)
    return apart.amax((-2, -1)).expand(-1, -1, p.x.shape[1])


def rounding(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
    """How far rounding may move a row's part of ∂L/∂b_q, s Σ_j (∂L/∂Z_ij) k_j, from its exact value."""
    a, q, k_abs = p.arithmetic, p.q(p.b_q), p.sizes("k", p.b_k)
    largest, error = logit_gradient(d_o, q, p.k(p.b_k), p.v(p.b_v), k_abs, a)
    sums = gamma(k_abs.shape[-2] + d_o.shape[0] * d_o.shape[2] + a.roundings + 2, a.u)
    return a.scale * ((1 + sums) * error + sums * largest).unsqueeze(-1) * k_abs.amax(-2, keepdim=True)


def covariance(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Gap:
    """Q8: |∂L/∂b_q − s Σ_ij P_ij (∂L/∂O_i)·(v_j − O_i) (k_j − k̄_i)|, the sum in float64."""
    exact = p.exact()
    weights, k, v = exact.weights(), exact.k(exact.b_k), exact.v(exact.b_v)
    pull = d_o @ v.mT  # (∂L/∂O_i)·v_j
    spread = weights * (pull - (weights * pull).sum(-1, keepdim=True))
    found = p.factor * (spread.unsqueeze(-1) * (k.unsqueeze(2) - (weights @ k).unsqueeze(3))).sum(3)  # (B, H, T, D)
    # The float64 P comes from unrounded queries and keys, the layer's from rounded ones: a second error of this size.
    return Gap(
        (gradients(p, d_o, "b_q")["b_q"] - found.sum((0, 2)).flatten()).abs(),
        2 * rounding(p, d_o).sum((0, 2)).flatten(),
    )


def slope_bound(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Gap:
    """Q8: ‖∂L/∂b_q‖ of each head, within (s/4) Σ_i diam(K) diam(V) ‖∂L/∂O_i‖ and rounding."""
    slope = gradients(p, d_o, "b_q")["b_q"].unflatten(0, (p.heads, -1)).norm(dim=-1)
    exact = p.exact()
    wide = diameters(p, exact.k(exact.b_k)) * diameters(p, exact.v(exact.b_v))
    most = p.factor / 4 * (wide * d_o.norm(dim=-1)).sum((0, 2))
    return Gap(slope, most + rounding(p, d_o).sum((0, 2)).norm(dim=-1))
