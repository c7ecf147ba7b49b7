"""Each statement as a number on one instance: what was measured, and the most that theorem and rounding allow.

The allowance is zero in exact arithmetic for every identity; what is left is rounding, from bounds.py. A value above
its allowance means that the statement does not hold for this instance. verify, certify and the tests read these.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.attention import mix
from minibeft.theory.bounds import (
    evaluation_error,
    gamma,
    key_bias_effect_bound,
    key_gradient_bound,
    log_weights_error,
    logit_error,
    oscillation,
    total_variation_bound,
    unit_roundoff,
    value_fold_bound,
    value_gradient_bound,
    value_shift_bound,
    weights_error,
)
from minibeft.theory.instance import Instance

READABLE = 1e-30  # a smaller weight has lost its digits, or all of itself, in its logarithm


class Gap(NamedTuple):
    """Value and allowance, entry by entry, broadcastable to each other."""

    value: Tensor
    allowed: Tensor

    @property
    def holds(self) -> bool:
        """Every entry is within a finite allowance; NaN and infinity are not (agreement.py)."""
        return bool(((self.value <= self.allowed) & self.value.isfinite() & self.allowed.isfinite()).all())


def key_effect(p: Instance) -> Gap:
    """K1: max |O(b_k) − O(0)| of each row, within K4's bound."""
    assert p.b_k is not None
    moved = (p.outputs() - p.outputs(b_k=None)).abs().amax(-1)  # (B, H, T)
    return Gap(moved, key_effect_allowed(p))


def key_effect_allowed(p: Instance, v: Float[Tensor, "B H n D"] | None = None) -> Float[Tensor, "B H T"]:
    """K4: the largest effect of b_k that rounding explains; v replaces the values where a test has others."""
    assert p.b_k is not None
    values = p.v(p.b_v) if v is None else v
    return key_bias_effect_bound(p.q(p.b_q), p.k(None), values, p.sizes("k"), p.per_head(p.b_k), p.arithmetic)


def cached_keys(p: Instance, c: Float[Tensor, "B G 1 D"]) -> Gap:
    """K9: max |O(K − 1cᵀ) − O(K)| of each row, K as a cache holds it, within K4's bound for keys already computed."""
    q = p.q(p.b_q)
    k, v = p.k(p.b_k)[:, :: p.group], p.v(p.b_v)[:, :: p.group]
    given = {"mask": p.mask, "scale": p.factor, "softcap": p.softcap, "fused": p.fused}
    kept, taken = (
        mix(*(x.to(p.x.dtype) for x in (q, keys, v)), **given)[0].double().unflatten(-1, (p.heads, -1)).transpose(1, 2)
        for keys in (k, k - c)
    )
    spread = lambda x: x.repeat_interleave(p.group, 1)  # noqa: E731
    a = p.arithmetic._replace(roundings=1)
    allowed = key_bias_effect_bound(q, spread(k), spread(v), spread(k).abs(), spread(c), a)
    return Gap((taken - kept).abs().amax(-1), allowed)


def rotary_variation(p: Instance, frequencies: Float[Tensor, " half"], interleaved: bool) -> Gap:
    """K10: TV(P(0), P(b_k)) of each row, within tanh(¼ s Σ_u ‖q^u‖ ‖b_k^u‖ min(2, ω_u W)), W the reach of the keys that
    the row sees, at positions 0, 1, 2, …, and rounding: of the logits, and of angles, cosines and sines in float32."""
    assert p.b_k is not None
    half = len(frequencies)

    def planes(x: Tensor) -> Tensor:
        """The length of x in each plane."""
        turned = x[..., : 2 * half]
        pair = turned.unflatten(-1, (half, 2)) if interleaved else turned.unflatten(-1, (2, half)).mT
        return pair.norm(dim=-1)

    shape = (p.x.shape[0], p.heads, p.x.shape[1], p.source.shape[1])
    seen = torch.ones(shape, dtype=torch.bool) if p.mask is None else ~p.mask.isneginf().expand(shape)
    place = torch.arange(shape[-1], dtype=torch.float64)
    high, low = place.masked_fill(~seen, 0.0).amax(-1), place.masked_fill(~seen, float(shape[-1])).amin(-1)
    reach = frequencies.double() * (high - low).clamp_min(0.0).unsqueeze(-1)  # (B, H, T, half)
    u32 = unit_roundoff(torch.float32)
    angles = reach.clamp_max(2.0) + 2 * u32 * (shape[-1] * frequencies.double() + 4)
    q, bias = p.q(p.b_q), p.per_head(p.b_k)
    limit = p.factor * (planes(q) * planes(bias) * angles).sum(-1)
    moved = (p.weights() - p.weights(b_k=None)).abs().sum(-1) / 2
    epsilon = logit_errors(p, p.b_q)[0]
    errors = [weights_error(epsilon, evaluation_error(q, p.k(b), p.arithmetic)) for b in (None, p.b_k)]
    return Gap(moved, total_variation_bound(limit) + errors[0] + errors[1])


def gradients(p: Instance, d_o: Float[Tensor, "B H T D"], *names: str) -> dict[str, Tensor]:
    """∂L with respect to these arguments, for a loss with gradient d_o at O, by the function's backward pass."""
    leaves = {name: getattr(p, name).detach().clone().requires_grad_() for name in names}
    output = p.run(**leaves).output
    grads = torch.autograd.grad(output, list(leaves.values()), d_o.transpose(1, 2).flatten(2).to(output))
    return {name: grad.double() for name, grad in zip(leaves, grads, strict=True)}


def bias_gradients(p: Instance, d_o: Float[Tensor, "B H T D"]) -> dict[str, Float[Tensor, " n"]]:
    """∂L/∂b_q, ∂L/∂b_k and ∂L/∂b_v of a loss whose gradient at O is d_o."""
    return gradients(p, d_o, "b_q", "b_k", "b_v")


def key_gradient(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Gap:
    """K2: |∂L/∂b_k|."""
    bound = key_gradient_bound(d_o, p.q(p.b_q), p.k(p.b_k), p.v(p.b_v), p.sizes("k", p.b_k), p.arithmetic)
    return Gap(bias_gradients(p, d_o)["b_k"].abs(), p.over_group(bound))


def value_shift(p: Instance) -> Gap:
    """V1: |O(b_v) − O(0) − b_v| in rows that see a key; V5: |O(b_v) − O(0)| in rows that see none."""
    assert p.b_v is not None
    shift = p.per_head(p.b_v)
    residual = (p.outputs() - p.outputs(b_v=None) - shift * p.sees.unsqueeze(-1)).abs()
    return Gap(residual, value_shift_bound(p.sizes("v"), shift, p.arithmetic))


def value_fold(p: Instance) -> Gap:
    """V2: how far the output with b_v is from the one with b_o' = b_o + W_o b_v, b_v repeated over its group."""
    assert p.b_v is not None
    assert p.w_o is not None
    assert p.b_o is not None
    b_v, sizes = p.per_head(p.b_v).flatten(), p.sizes("v")
    with_bias = p.run(w_o=p.w_o, b_o=p.b_o).output.double()
    without_it = p.run(w_o=p.w_o, b_o=p.b_o + p.w_o @ b_v.to(p.w_o), b_v=None).output.double()
    shift = value_shift_bound(sizes, p.per_head(p.b_v), p.arithmetic).amax((0, 2)).flatten()
    o_abs = 2 * sizes.amax((0, 2)).flatten()  # O is a mean of the values; 2 leaves room for its own rounding
    allowed = value_fold_bound(shift, o_abs, p.w_o.double(), b_v, p.b_o.double(), p.arithmetic)
    return Gap((with_bias - without_it).abs(), allowed)


def value_gradient(p: Instance, d_o: Float[Tensor, "B H T D"]) -> Gap:
    """V3: |∂L/∂b_v − Σ_i ∂L/∂O_i|, over the rows that see a key and summed over the group."""
    d_o = d_o * p.sees.unsqueeze(-1)
    grad = bias_gradients(p, d_o)["b_v"]
    bound = value_gradient_bound(d_o, p.q(p.b_q), p.k(p.b_k), p.sizes("k", p.b_k), p.arithmetic)
    residual = (grad - p.over_group(d_o.sum((0, 2)))).abs()
    return Gap(residual, p.over_group(bound) + p.arithmetic.u * grad.abs())


def logit_errors(p: Instance, b_q: Float[Tensor, " HD"] | None) -> tuple[Tensor, Tensor]:
    """ε and η (B, H, T) of the computed logits with this b_q. Both projections round, so ε comes from their sizes; η
    needs the oscillation of the logits themselves, and so q and k."""
    exact, a = p.exact(), p.arithmetic
    epsilon = logit_error(p.sizes("q", b_q), p.sizes("k", p.b_k), a._replace(roundings=2 * a.roundings))
    q = exact.q(None if b_q is None else b_q.double())
    return epsilon, evaluation_error(q, exact.k(exact.b_k), a)


def query_errors(p: Instance) -> Float[Tensor, "B H T"]:
    """What rounding may do to the total variation between P without and with b_q: to each P, and to β (ε again)."""
    without, with_it = logit_errors(p, None), logit_errors(p, p.b_q)
    return weights_error(*without) + weights_error(*with_it) + torch.tanh(with_it[0] / 2)


def log_errors(p: Instance) -> Float[Tensor, "B H T"]:
    """What rounding may do to log P_ij(b_q) − log P_ij(0), the logarithm of numbers above READABLE included."""
    logarithm = 2 * 70 * unit_roundoff(torch.float64)
    return sum((log_weights_error(*logit_errors(p, b)) for b in (None, p.b_q)), torch.tensor(logarithm))


def log_change(p: Instance) -> Float[Tensor, "B H T S"]:
    """log P(b_q) − log P(0); NaN where a weight is hidden or has underflowed."""
    before, after = p.weights(b_q=None), p.weights()
    return (after.log() - before.log()).masked_fill((before < READABLE) | (after < READABLE), torch.nan)


def spread(x: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch"]:
    """max − min over the entries that are not NaN; 0 where there are none."""
    high, low = x.nan_to_num(-torch.inf).amax(-1), x.nan_to_num(torch.inf).amin(-1)
    return (high - low).clamp_min(0.0)


def query_form(p: Instance) -> Gap:
    """Q1: the spread over the keys of a row of log P(b_q) − log P(0) − β."""
    assert p.b_q is not None
    return Gap(spread(log_change(p) - p.shift(p.b_q)), 2 * (log_errors(p) + logit_errors(p, p.b_q)[0]))


def hull(p: Instance, directions: Float[Tensor, "D n"]) -> Gap:
    """Q2: how far O reaches beyond the visible values in each direction g: O_i·g − max_j v_j·g."""
    v = p.exact().v(p.exact().b_v)
    reach = (v @ directions).unsqueeze(2)  # (B, H, 1, S, n)
    if p.mask is not None:
        reach = reach.masked_fill(p.mask.isneginf().unsqueeze(-1), -torch.inf)
    excess = (p.outputs() @ directions - reach.amax(3)).masked_fill(~p.sees.unsqueeze(-1), 0.0).clamp_min(0.0)
    # V rounds (γ_{C+1} |y||W_v|ᵀ); the row sum and the weighted sum err by γ_{2S+1} of the largest value.
    size, a = p.sizes("v", p.b_v).amax(-2, keepdim=True), p.arithmetic
    return Gap(excess, 2 * (gamma(a.roundings, a.u) + gamma(2 * v.shape[2] + 1, a.u)) * (size @ directions.abs()))


def query_variation(p: Instance) -> Gap:
    """Q3: TV(P(0), P(b_q)) of each row, within tanh(osc(β)/4); under rotary positions β is taken row by row (Q7)."""
    assert p.b_q is not None
    moved = (p.weights() - p.weights(b_q=None)).abs().sum(-1) / 2  # (B, H, T)
    limit = total_variation_bound(oscillation(p.shift(p.b_q), p.arithmetic.mask))
    return Gap(moved, limit + query_errors(p))


def nats(p: Instance) -> Gap:
    """Q9: the larger of KL(P(0)‖P(b_q)) and KL(P(b_q)‖P(0)) of each row, within osc(β)²/8. Weights below READABLE are
    left out of the sums: S·READABLE·osc(β) at most, where rounding alone is allowed more than u·osc(β)."""
    assert p.b_q is not None
    change, osc = log_change(p).nan_to_num(0.0), oscillation(p.shift(p.b_q), p.arithmetic.mask)
    spent = torch.stack([-(p.weights(b_q=None) * change).sum(-1), (p.weights() * change).sum(-1)]).amax(0)
    without, with_it = logit_errors(p, None), logit_errors(p, p.b_q)
    off = weights_error(*without) + weights_error(*with_it)
    rounds = log_errors(p) + 2 * off * (osc + log_errors(p)) + 2 * osc * with_it[0]
    return Gap(spent, osc.square() / 8 + rounds)


def query_effect(p: Instance) -> Gap:
    """Q3: ‖O_i(b_q) − O_i(0)‖ of each row, within diam(V) times what P may move."""
    v, a = p.v(p.b_v), p.arithmetic
    moved = (p.outputs() - p.outputs(b_q=None)).norm(dim=-1)
    diameter = torch.cdist(v, v).flatten(2).amax(-1, keepdim=True)
    sums = 4 * gamma(2 * v.shape[2] + 1, a.u) * v.norm(dim=-1).amax(-1, keepdim=True)
    return Gap(moved, diameter * query_variation(p).allowed + sums)


def blindness(p: Instance) -> Gap:
    """Q4: how much log P_ij − log P_il − log P_rj + log P_rl changes with b_q, for any two rows i, r and keys j, l."""
    errors = log_errors(p)  # (B, H, T)
    return Gap(double_differences(log_change(p)), 2 * (errors.unsqueeze(-1) + errors.unsqueeze(-2)))


def double_differences(change: Float[Tensor, "B H T S"]) -> Float[Tensor, "B H T T"]:
    """For rows i and r, the largest x_ij − x_il − x_rj + x_rl over keys that are not NaN in either."""
    return spread(change.unsqueeze(-2) - change.unsqueeze(-3))


def diameter(p: Instance) -> Float[Tensor, "B H T"]:
    """The largest ‖k_j − k_l‖ of two keys that a row sees; their rounding is added, so it is no smaller."""
    k, a = p.k(p.b_k), p.arithmetic
    rounding = 2 * gamma(a.roundings, a.u) * p.sizes("k", p.b_k).norm(dim=-1).amax(-1, keepdim=True)  # (B, H, 1)
    apart = torch.cdist(k, k, compute_mode="donot_use_mm_for_euclid_dist")  # (B, H, S, S)
    if p.mask is None:
        return (apart.flatten(2).amax(-1, keepdim=True) + rounding).expand(-1, -1, p.x.shape[1])
    seen = (~p.mask.isneginf()).to(apart)  # a hidden key is at distance 0 from all
    rows = [(apart * row[..., None] * row[..., None, :]).flatten(2).amax(-1) for row in seen.unbind(2)]
    return torch.stack(rows, -1) + rounding


def query_price(p: Instance) -> Gap:
    """Q10: the length 4 artanh(TV)/(s diam(K)) that b_q needs to move a row as far as it does, within ‖b_q‖."""
    assert p.b_q is not None
    variation = query_variation(p)
    moved = (variation.value - query_errors(p)).clamp(0.0, 1 - 2**-50)  # a wrong function's rows may move further
    needed = torch.where(moved > 0, 4 * torch.atanh(moved) / (p.factor * diameter(p)), torch.zeros_like(moved))
    length = p.exact().per_head(p.b_q).norm(dim=-1)  # (H, 1)
    return Gap(needed, length * (1 + 64 * unit_roundoff(torch.float64)))


def enough(p: Instance, rest: float) -> Float[Tensor, " H"]:
    """Q10: how long b_q must be, in its own direction, to leave all keys but one at most `rest` of every row of a head;
    infinite where two keys of a row are level."""
    assert p.b_q is not None
    length = p.exact().per_head(p.b_q).norm(dim=-1)  # (H, 1)
    along = p.shift(p.b_q) / length[..., None]  # s k_j·b_q/‖b_q‖
    logits = p.factor * p.q(None) @ p.k(p.b_k).mT
    if p.mask is not None:
        along, logits = along.masked_fill(p.mask.isneginf(), -torch.inf), logits + p.mask
    seen = along.isfinite().sum(-1)
    lead = along.topk(min(2, along.shape[-1]), -1).values
    gap = lead[..., 0] - lead[..., -1]
    price = (oscillation(logits, p.mask) + ((seen - 1).double() / rest).log()) / gap
    return price.masked_fill(seen < 2, 0.0).amax((0, 2))


def saturated(p: Instance, rest: float) -> Gap:
    """Q10: what the other keys keep where b_q is that long, within `rest`."""
    assert p.b_q is not None
    length = enough(p, rest)
    heads = p.b_q.view(p.heads, -1)
    along = heads * (length / heads.double().norm(dim=1)).to(heads)[:, None]
    longer = replace(p, b_q=along.flatten())
    left = 1 - longer.weights().amax(-1)
    return Gap(left * p.sees, rest + query_errors(longer))
