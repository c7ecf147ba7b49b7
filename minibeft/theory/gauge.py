"""G2 and G1 in numbers: how the gradients of a head's matrices agree, and what follows from that under weight decay.

Query heads that share keys and values are summed over. W̃ = [W b] has a bias as one more column.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.bounds import evaluation_error, gamma, log_weights_error, logit_error, logit_gradient
from minibeft.theory.instance import Instance
from minibeft.theory.statements import Gap, gradients


def product(one: Tensor, other: Tensor, *biases: Tensor, heads: int) -> Float[Tensor, "h D D"]:
    """Ã B̃ᵀ of each head, for two matrices with their biases."""
    a, b, p, q = (x.double().unflatten(0, (heads, -1)) for x in (one, other, *biases))
    return a @ b.mT + p.unsqueeze(-1) * q.unsqueeze(-2)


def over_group(p: Instance, by_head: Float[Tensor, "H D D"]) -> Float[Tensor, "G D D"]:
    """The sum over the query heads that share a key-value head."""
    return by_head.unflatten(0, (p.kv_heads, -1)).sum(1)


def queries_and_keys(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Gap:
    """G2: |G̃_q W̃_qᵀ − W̃_k G̃_kᵀ|. Both are s Σ_ij (∂L/∂Z_ij) k_j q_iᵀ, each with a ∂L/∂Z that may be computed anew; the
    roundings are those of q and k, and of the sums over tokens and channels."""
    assert p.b_q is not None
    assert p.b_k is not None
    g = gradients(p, d_o, "w_q", "b_q", "w_k", "b_k")
    left = over_group(p, product(g["w_q"], p.w_q, g["b_q"], p.b_q, heads=p.heads))
    right = product(p.w_k, g["w_k"], p.b_k, g["b_k"], heads=p.kv_heads)
    a, q_abs, k_abs = p.arithmetic, p.sizes("q", p.b_q), p.sizes("k", p.b_k)
    largest, error = logit_gradient(d_o, p.q(p.b_q), p.k(p.b_k), p.v(p.b_v), k_abs, a)
    rounds = 2 * gamma(length(p) + 2 * a.roundings + p.w_q.shape[1], a.u)
    row = (2 + rounds) * error + rounds * largest  # of each Σ_j |∂L/∂Z_ij|
    seen = k_abs.amax(-2, keepdim=True)  # (B, H, 1, D)
    return Gap((left - right).abs(), over_group(p, a.scale * (seen.mT * (row.unsqueeze(-2) @ q_abs)).sum(0)))


def values_and_output(p: Instance, d_out: Float[Tensor, "B T C"]) -> Gap:
    """G2: |G̃_v W̃_vᵀ − W_oᵀ G_o|. Both are Σ_i (W_oᵀ ∂L/∂out_i)(P V)_i, each with a P that may be computed anew."""
    assert p.w_o is not None
    assert p.b_v is not None
    leaves = {name: getattr(p, name).detach().clone().requires_grad_() for name in ("w_v", "b_v", "w_o")}
    output = p.run(b_o=p.b_o, **leaves).output
    g_v, g_b, g_o = torch.autograd.grad(output, list(leaves.values()), d_out.to(output))
    left = product(g_v, p.w_v, g_b, p.b_v, heads=p.kv_heads)
    w_o, g_o = (x.double().unflatten(1, (p.heads, -1)) for x in (p.w_o, g_o))  # (C, H, D)
    right = over_group(p, torch.einsum("chd,che->hde", w_o, g_o))
    a = p.arithmetic
    off = log_weights_error(
        logit_error(p.q(p.b_q), p.sizes("k", p.b_k), a), evaluation_error(p.q(p.b_q), p.k(p.b_k), a)
    ).expm1()
    rounds = 2 * gamma(length(p) + a.roundings + p.w_v.shape[1] + 2 * w_o.shape[0], a.u)
    back = torch.einsum("bic,chd->bhid", d_out.double().abs(), w_o.abs())
    row = (rounds + (2 + rounds) * off).unsqueeze(-1) * back
    seen = p.sizes("v", p.b_v).amax(-2)  # (B, H, D)
    return Gap((left - right).abs(), over_group(p, torch.einsum("bhid,bhe->hde", row, seen)))


def length(p: Instance) -> int:
    """The roundings of the sums over queries and keys, of a batch and of a group."""
    batch, queries, keys = p.x.shape[0], p.x.shape[1], p.source.shape[1]
    return (batch + 1) * (queries + keys) + p.group + 6


def at_rest(p: Instance, slopes: dict[str, Tensor], decay: float) -> Gap:
    """G1: |b_k|, |b_v − W_oᵀ b_o|, |W̃_q W̃_qᵀ − W̃_k W̃_kᵀ| and |W̃_v W̃_vᵀ − W_oᵀ W_o| at their largest.

    `slopes` are the gradients of L + λ/2 ‖θ‖². λ times each of the four is a sum of them, some alone and some times a
    parameter. The part of L in these sums is 0 up to rounding, so the gradients must be larger than rounding.
    """
    assert p.b_q is not None
    assert p.b_k is not None
    assert p.b_v is not None
    assert p.w_o is not None
    assert p.b_o is not None
    w_o = p.w_o.double().unflatten(1, (p.heads, -1))  # (C, H, D)
    shared = lambda x: x.unflatten(0, (p.kv_heads, -1)).sum(1).flatten()  # noqa: E731
    found = (
        p.b_k,
        p.b_v - shared(torch.einsum("chd,c->hd", w_o, p.b_o.double())),
        over_group(p, product(p.w_q, p.w_q, p.b_q, p.b_q, heads=p.heads))
        - product(p.w_k, p.w_k, p.b_k, p.b_k, heads=p.kv_heads),
        product(p.w_v, p.w_v, p.b_v, p.b_v, heads=p.kv_heads) - over_group(p, torch.einsum("chd,che->hde", w_o, w_o)),
    )
    size = {name: getattr(p, name).double().norm() for name in slopes}
    slope = {name: x.double().norm() for name, x in slopes.items()}
    times = lambda *names: sum((slope[n] * size[n] for n in names), torch.zeros(()))  # noqa: E731
    allowed = (
        slope["b_k"],
        slope["b_v"] + size["w_o"] * slope["b_o"],
        times("w_q", "b_q", "w_k", "b_k"),
        times("w_v", "b_v", "w_o"),
    )
    return Gap(torch.stack([x.abs().max() for x in found]), torch.stack(allowed) / decay)
