"""The statements K1, K2, V1 to V3 and Q1 to Q4 as checks on one problem; each takes the function it is about.

What they allow comes from minibeft.bounds: rounding, and nothing else.
"""

import torch
from strategies import Attend, Problem
from torch import Tensor

from minibeft.certificate.witness import double_difference
from minibeft.theory.attention import attend
from minibeft.theory.bounds import (
    evaluation_error,
    gamma,
    key_bias_effect_bound,
    key_gradient_bound,
    logit_error,
    oscillation,
    total_variation_bound,
    unit_roundoff,
    value_fold_bound,
    value_gradient_bound,
    value_shift_bound,
)
from minibeft.theory.draws import Draws

U = unit_roundoff(torch.float64)


def check_invariance(p: Problem, function: Attend = attend) -> None:
    """K1: adding b_k moves no output by more than K4's rounding bound."""
    moved = (p.heads_out(function) - p.heads_out(function, b_k=None)).abs().amax(-1)
    assert (moved <= effect_bound(p)).all(), f"moved {moved.max():.3e}, allowed {effect_bound(p).max():.3e}"


def effect_bound(p: Problem, v: Tensor | None = None) -> Tensor:
    return key_bias_effect_bound(
        p.q(p.b_q), p.k(None), p.v(p.b_v) if v is None else v, p.sizes(p.w_k, p.kv_heads), p.per_head(p.b_k),
        mask=p.mask64, scale=p.factor, u=p.u, roundings=p.roundings,
    )  # fmt: skip


def bias_gradients(p: Problem, function: Attend = attend, **changes) -> tuple[Tensor, dict[str, Tensor]]:
    """∂L/∂O (B, H, T, D) of a random linear loss, and ∂L/∂b for each of b_q, b_k, b_v in float64."""
    names = ("b_q", "b_k", "b_v")
    leaves = {name: getattr(p, name).clone().requires_grad_() for name in names}
    output = p.run(function, **leaves, **changes).output
    loss_weights = Draws(0).normal(*output.shape).to(output)
    grads = torch.autograd.grad(output, list(leaves.values()), loss_weights)
    d_o = loss_weights.double().unflatten(-1, (p.heads, -1)).transpose(1, 2)
    return d_o, {name: grad.double() for name, grad in zip(names, grads, strict=True)}


def check_zero_gradient(p: Problem, function: Attend = attend) -> None:
    """K2: ∂L/∂b_k is within rounding of 0."""
    d_o, grads = bias_gradients(p, function)
    k_abs = p.sizes(p.w_k, p.kv_heads, p.b_k)
    bound = key_gradient_bound(
        d_o, p.q(p.b_q), p.k(p.b_k), p.v(p.b_v), k_abs,
        mask=p.mask64, scale=p.factor, u=p.u, roundings=p.roundings,
    )  # fmt: skip
    allowed = bound.view(p.kv_heads, p.group, -1).sum(1).flatten()
    assert (grads["b_k"].abs() <= allowed).all(), (
        f"|∂L/∂b_k| {grads['b_k'].abs().max():.3e}, allowed {allowed.max():.3e}"
    )


def check_shift(p: Problem, function: Attend = attend) -> None:
    """V1: O(b_v) = O(0) + 1 b_vᵀ in every row that sees a key; V5: 0 · b_v in a row that sees none."""
    shift = p.per_head(p.b_v) * p.sees.unsqueeze(-1)
    residual = (p.heads_out(function) - p.heads_out(function, b_v=None) - shift).abs()
    allowed = value_shift_bound(p.sizes(p.w_v, p.kv_heads), p.per_head(p.b_v), u=p.u, roundings=p.roundings)
    assert (residual <= allowed).all(), f"residual {residual.max():.3e}, allowed {allowed.max():.3e}"


def check_fold(p: Problem, function: Attend = attend) -> None:
    """V2: b_o' = b_o + W_o b_v, b_v repeated over its group, gives the same output without b_v."""
    b_v = p.per_head(p.b_v).flatten()
    folded = p.b_o + p.w_o @ b_v.to(p.w_o)
    with_bias = p.run(function, w_o=p.w_o, b_o=p.b_o).output.double()
    without_it = p.run(function, w_o=p.w_o, b_o=folded, b_v=None).output.double()
    sizes = p.sizes(p.w_v, p.kv_heads)
    shift = value_shift_bound(sizes, p.per_head(p.b_v), u=p.u, roundings=p.roundings).amax((0, 2)).flatten()
    exact = p.exact()
    allowed = value_fold_bound(shift, 2 * sizes.amax((0, 2)).flatten(), exact.w_o, b_v, exact.b_o, u=p.u)
    assert ((with_bias - without_it).abs() <= allowed).all()


def check_gradient(p: Problem, function: Attend = attend) -> None:
    """V3: ∂L/∂b_v = Σ_i ∂L/∂O_i over the rows that see a key, summed over the group."""
    d_o, grads = bias_gradients(p, function)
    d_o = d_o * p.sees.unsqueeze(-1)
    sums = value_gradient_bound(
        d_o, p.q(p.b_q), p.k(p.b_k), p.sizes(p.w_k, p.kv_heads, p.b_k),
        mask=p.mask64, scale=p.factor, u=p.u, roundings=p.roundings,
    )  # fmt: skip

    def over_group(by_head: Tensor) -> Tensor:
        return by_head.view(p.kv_heads, p.group, -1).sum(1).flatten()

    residual = (grads["b_v"] - over_group(d_o.sum((0, 2)))).abs()
    assert (residual <= over_group(sums) + p.u * grads["b_v"].abs()).all(), f"residual {residual.max():.3e}"


def beta(p: Problem, b_q: Tensor) -> Tensor:
    """β_j = s k_j·b_q in float64, (B, H, 1, S): what b_q adds to every row of logits (Q1)."""
    return p.factor * p.per_head(b_q) @ p.exact().k(p.b_k.double()).mT


def rounding(p: Problem, b_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """ε and η of the computed logits: both projections round, so |q| is replaced by |x||W_q|ᵀ + |b_q|."""
    e = p.exact()
    q, k = e.q(None if b_q is None else b_q.double()), e.k(e.b_k)
    sizes = p.sizes(p.w_q, p.heads, b_q), p.sizes(p.w_k, p.kv_heads, p.b_k)
    epsilon = logit_error(*sizes, p.mask64, p.factor, p.u, 2 * p.roundings)
    return epsilon, evaluation_error(q, k, p.mask64, p.factor, p.u)


def weight_errors(p: Problem) -> Tensor:
    """What rounding may do to the total variation between P without and with b_q: to P twice, and to β (ε again)."""
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    return torch.tanh(e0 / 2) + 2 * torch.tanh(e1 / 2) + n0 + n1


def check_form(p: Problem, function: Attend = attend) -> None:
    """Q1: log P(b_q) − log P(0) − β is constant in each row, where no weight has underflowed."""
    before, after = p.weights(function, b_q=None), p.weights(function)
    residual = (after.log() - before.log() - beta(p, p.b_q)).masked_fill((before < 1e-30) | (after < 1e-30), torch.nan)
    spread = residual.nan_to_num(-torch.inf).amax(-1) - residual.nan_to_num(torch.inf).amin(-1)
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    allowed = 2 * (log_weights_error_of(e0, n0) + log_weights_error_of(e1, n1) + e1)
    assert (spread <= allowed).all(), f"{spread.max():.3e} > {allowed.max():.3e}"


def log_weights_error_of(epsilon: Tensor, eta: Tensor) -> Tensor:
    """As bounds.log_weights_error, from its two parts; and the logarithm itself, of numbers above 1e-30."""
    return 2 * epsilon + 2 * eta + 70 * U


def check_hull(p: Problem, function: Attend = attend) -> None:
    """Q2: no direction g in which O reaches further than the visible values; tried in eight random ones."""
    v, o = p.exact().v(p.exact().b_v), p.heads_out(function)
    g = Draws(0).normal(v.shape[-1], 8)
    values = (v @ g).unsqueeze(2)  # (B, H, 1, S, 8)
    if p.mask64 is not None:
        hidden = p.mask64.isneginf().unsqueeze(-1)
        values = values.masked_fill(hidden, -torch.inf)
    excess = (o @ g - values.amax(3)).masked_fill(~p.sees.unsqueeze(-1), 0.0)
    # V rounds (γ_{C+1} |y||W_v|ᵀ); the row sum and the weighted sum err by γ_{2S+1} of the largest value.
    size = p.sizes(p.w_v, p.kv_heads, p.b_v).amax(-2, keepdim=True)
    allowed = (2 * gamma(p.roundings, p.u) + 2 * gamma(2 * v.shape[2] + 1, p.u)) * (size @ g.abs())
    assert (excess <= allowed).all(), f"excess {excess.max():.3e}, allowed {allowed.max():.3e}"


def check_bound(p: Problem, function: Attend = attend) -> None:
    """Q3: TV(P(0), P(b_q)) ≤ tanh(osc(β)/4) in every row, and the outputs move by at most diam(V) times that."""
    distance = (p.weights(function) - p.weights(function, b_q=None)).abs().sum(-1) / 2
    shape = distance.shape
    mask = None if p.mask64 is None else p.mask64.expand(*shape, -1)
    bound = total_variation_bound(oscillation(beta(p, p.b_q).expand(*shape, -1), mask)) + weight_errors(p)
    assert (distance <= bound).all(), f"TV {distance.max():.3e}, allowed {bound.max():.3e}"
    v = p.v(p.b_v)
    moved = (p.heads_out(function) - p.heads_out(function, b_q=None)).norm(dim=-1)
    diameter = torch.cdist(v, v).amax((-2, -1)).unsqueeze(-1)
    sums = 4 * gamma(2 * v.shape[2] + 1, p.u) * v.norm(dim=-1).amax(-1, keepdim=True)
    assert (moved <= diameter * bound + sums).all()


def check_blindness(p: Problem, function: Attend = attend) -> None:
    """Q4: log P_ij − log P_il − log P_rj + log P_rl does not change with b_q, where no weight has underflowed."""
    before, after = p.weights(function, b_q=None), p.weights(function)
    tiny = (before < 1e-30) | (after < 1e-30)
    changed = double_difference(before.masked_fill(tiny, 0.0), after.masked_fill(tiny, 0.0))
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    allowed = 4 * (log_weights_error_of(e0, n0) + log_weights_error_of(e1, n1)).max().item()
    assert changed <= allowed, f"changed by {changed:.3e}, allowed {allowed:.3e}"


CHECKS = {"Q1": check_form, "Q2": check_hull, "Q3": check_bound, "Q4": check_blindness}
