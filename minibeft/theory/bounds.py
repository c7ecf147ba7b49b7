"""How far rounding can move attention: the forward error bounds that tolerances come from (theorems K4, Q3).

Arithmetic is the standard model, fl(a ∘ b) = (a ∘ b)(1 + δ) with |δ| ≤ u, so a dot product of length n in any order of
summation errs by at most γ_n |x|ᵀ|y|, γ_n = nu/(1 − nu) (Higham, Accuracy and Stability, §3.1).

proofs/query_bound.py derives total_variation_bound (Q3); proofs/rounding.py derives logit_error, evaluation_error and
key_bias_effect_bound (K4), and proofs/measured.py shows how tight the last one is. The other bounds, of sums of
weights, of logarithms, of values and of gradients, are derived from the same model in their docstrings alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.attention import Mask


class Arithmetic(NamedTuple):
    """How logits are made: the additive mask, their scale, the unit roundoff, and how many roundings make an entry of K
    (or V): C + 1 for a projection with a bias, 1 where a bias is added to a K that is already computed."""

    mask: Mask | None
    scale: float
    u: float
    roundings: int


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number (2⁻²⁴ for float32, 2⁻⁸ for bfloat16, 2⁻¹¹ for float16)."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, u: float) -> float:
    """γ_n = nu/(1 − nu), the error of n roundings in a row; infinite once nu ≥ 1, when the model says nothing."""
    return n * u / (1 - n * u) if n * u < 1 else float("inf")


def oscillation(beta: Float[Tensor, "*batch S"], mask: Mask | None = None) -> Float[Tensor, "*batch"]:
    """osc(β) = max − min over the keys that the mask leaves visible; 0 for a row that sees none."""
    if mask is None:
        return beta.amax(-1) - beta.amin(-1)
    hidden = mask.isneginf()
    high = beta.masked_fill(hidden, -torch.inf).amax(-1)
    low = beta.masked_fill(hidden, torch.inf).amin(-1)
    return (high - low).clamp_min(0.0)


def total_variation_bound(osc: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Q3: moving the logits of one row by β moves its softmax by at most tanh(osc(β)/4) in total variation."""
    return torch.tanh(osc / 4)


def logit_error(q: Float[Tensor, "B H T D"], k_abs: Float[Tensor, "B H S D"], a: Arithmetic) -> Float[Tensor, "B H T"]:
    """ε_i: the largest error of a visible logit in row i, when each entry of K errs by γ_roundings · k_abs.

    |ẑ_ij − z_ij| ≤ scale · |q_i|ᵀ k_abs_j · γ_n,  n = roundings + D (the dot product) + 2 (scale, mask), plus u|M_ij|.
    """
    error = a.scale * (q.abs() @ k_abs.mT) * gamma(a.roundings + q.shape[-1] + 2, a.u)  # (B, H, T, S)
    if a.mask is not None:
        hidden = a.mask.isneginf()
        error = (error + a.u * a.mask.masked_fill(hidden, 0.0).abs()).masked_fill(hidden, 0.0)
    return error.amax(-1)


def logit_oscillation(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], a: Arithmetic
) -> Float[Tensor, "B H T"]:
    """osc(z_i) over the keys in sight."""
    logits = a.scale * (q @ k.mT)
    return oscillation(logits if a.mask is None else logits + a.mask, a.mask)


def evaluation_error(q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], a: Arithmetic) -> Float[Tensor, "B H T"]:
    """η = u·(osc(z) + 6) + 2γ_S: the relative error of evaluating a softmax of given logits and a sum weighted by it.

    The shift by the row's maximum, exp (2 ulp), the sum, the quotient, and the weighted sum. q and k themselves are
    needed: with bounds on their entries in their place the oscillation may come out too small.
    """
    return a.u * (logit_oscillation(q, k, a) + 6) + 2 * gamma(k.shape[-2], a.u)


def weights_error(epsilon: Float[Tensor, "*batch"], eta: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The total variation between a computed row of P and the exact one: tanh(ε/2) by Q3 (logits off by at most ±ε
    oscillate by 2ε), plus η for evaluating it."""
    return torch.tanh(epsilon / 2) + eta


def row_sum_error(epsilon: Float[Tensor, "*batch"], eta: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """|Σ_j P̂_ij − 1| when P̂ is recomputed as exp(ẑ_ij − lse_i) with an lse_i saved from another evaluation of the
    same logits, as fused backward passes do: e^{2ε} − 1 for the two sets of logits, 2η for the two evaluations."""
    return torch.expm1(2 * epsilon) + 2 * eta


def log_weights_error(epsilon: Float[Tensor, "*batch"], eta: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """|log P̂_ij − log P_ij| for a visible key: ε in the logit and in the logarithm of the row sum each, plus 2η."""
    return 2 * epsilon + 2 * eta


def softmax_shift(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], k_abs: Float[Tensor, "B H S D"], a: Arithmetic
) -> Float[Tensor, "B H T"]:
    """ε'_i = ε_i + u(osc(z_i) + 2ε_i) + γ_4: a computed row is the exact softmax of logits off by at most this.

    ε_i is logit_error; the computed logits lie within osc(z_i) + 2ε_i of their maximum, and subtracting that errs by u
    times as much; exp errs by 2 ulp = 4u, a shift of its argument by at most γ_4.
    """
    error = logit_error(q, k_abs, a)
    return error + a.u * (logit_oscillation(q, k, a) + 2 * error) + gamma(4, a.u)


def key_bias_effect_bound(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H n D"],
    k_abs: Float[Tensor, "B H S D"],
    b_k: Float[Tensor, "*#B H 1 D"],
    a: Arithmetic,
) -> Float[Tensor, "B H T"]:
    """K4: the most that adding b_k can move any entry of a row of O = P V, computed with unit roundoff u.

    In exact arithmetic the two sets of logits differ by a constant per row (K1). Each computed row, without and with
    b_k, is the exact softmax of logits off by at most ε'₀ and ε'₁ (softmax_shift), so by Q3 the two are within
    tanh((ε'₀ + ε'₁)/2) in total variation, and their outputs within the diameter of V times that. The sum, the quotient
    and P V are 2S roundings, for each of the two: γ_2S max|v|. Derived step by step in proofs/rounding.py.

    k is K without b_k; k_abs, with k_abs ≥ |k|, and `roundings` say how K was computed: roundings = C + 1 and
    k_abs = |y||W_k|ᵀ for a projection in one pass, 1 and |k| where b_k is added to a K that is at hand.
    """
    before = softmax_shift(q, k, k_abs, a)
    after = softmax_shift(q, k, k_abs + b_k.abs(), a)
    diameter = (v.amax(-2) - v.amin(-2)).amax(-1).unsqueeze(-1)  # (B, H, 1)
    largest = v.abs().amax((-2, -1)).unsqueeze(-1)  # (B, H, 1)
    return diameter * torch.tanh((before + after) / 2) + 2 * gamma(2 * k.shape[-2], a.u) * largest


def value_shift_bound(
    v_abs: Float[Tensor, "B H S D"], b_v: Float[Tensor, "H 1 D"], a: Arithmetic
) -> Float[Tensor, "B H 1 D"]:
    """V1: how far a computed O(b_v) − O(0) may lie from b_v. Rows of P that see no key are not covered: there it is 0.

    Both runs compute the same P̂ from the same logits, so logit errors cancel. What is left: Σ_j P̂_ij = 1 + ρ with
    |ρ| ≤ γ_{S+1} (sum and quotient), the rounding of V with and without b_v (γ_roundings, as in key_bias_effect_bound),
    of the two weighted sums (γ_{S+1}), and of measuring it (two subtractions).
    """
    keys = v_abs.shape[-2]
    sums, values = gamma(keys + 3, a.u), gamma(a.roundings, a.u)
    both = 2 * v_abs.amax(-2, keepdim=True) + b_v.abs()  # (B, H, 1, D), of V without and with b_v
    return sums * b_v.abs() + (1 + sums) * (values + sums * (1 + values)) * both


def value_fold_bound(
    shift: Float[Tensor, " HD"],
    o_abs: Float[Tensor, " HD"],
    w_o: Float[Tensor, "C HD"],
    b_v: Float[Tensor, " HD"],
    b_o: Float[Tensor, " C"],
    a: Arithmetic,
) -> Float[Tensor, " C"]:
    """V2: how far the output with b_v may lie from the output with b_v folded into b_o' = b_o + W_o b_v.

    `shift` is value_shift_bound as it passes through W_o; o_abs bounds |O(0)|. Either output errs by γ_{HD+3}, which
    also covers the computation of b_o'.
    """
    weight = w_o.abs()
    outputs = 2 * gamma(w_o.shape[1] + 3, a.u) * (weight @ (o_abs + b_v.abs()) + b_o.abs())
    return weight @ shift + outputs


def value_gradient_bound(
    d_o: Float[Tensor, "B H T D"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    k_abs: Float[Tensor, "B H S D"],
    a: Arithmetic,
) -> Float[Tensor, "H D"]:
    """V3: how far a computed ∂L/∂b_v may lie from Σ_i ∂L/∂O_i, for each query head.

    Backward sums P̂_ij ∂L/∂O_i over i, then over keys and batch: T + B·S roundings. It may recompute P̂ from the saved
    logarithm of the row sum, so rows sum to one only within the error of two evaluations (row_sum_error).
    """
    batch, _, queries, _ = d_o.shape
    rows = row_sum_error(logit_error(q, k_abs, a), evaluation_error(q, k, a)).unsqueeze(-1)
    rows = rows + gamma(queries + batch * k.shape[-2], a.u)
    return (d_o.abs() * rows).sum((0, 2))


def key_gradient_bound(
    d_o: Float[Tensor, "B H T D"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_abs: Float[Tensor, "B H S D"],
    a: Arithmetic,
) -> Float[Tensor, "H D"]:
    """K2: how far from 0 a computed ∂L/∂b_k may lie, for each query head.

    ∂L/∂Z_ij = P_ij (a_ij − δ_i) with a_ij = ∂L/∂O_i · v_j and δ_i = Σ_j P_ij a_ij, which fused kernels compute as
    ∂L/∂O_i · O_i. Both are at most w_i = Σ_d |∂L/∂O_id| max_j |v_jd|; either errs by γ_{D+S+2} w_i, and P̂ sums to one
    within row_sum_error. So a row of ∂L/∂Z sums to at most (2γ_{D+S+2} + 2 row_sum_error) w_i, and the absolute sum,
    at most 2 w_i, enters through the T + B·S roundings of the sums over queries, keys and batch.
    """
    batch, _, queries, size = q.shape
    keys = k.shape[-2]
    weight = (d_o.abs() * v.abs().amax(-2, keepdim=True)).sum(-1)  # (B, H, T)
    sums = row_sum_error(logit_error(q, k_abs, a), evaluation_error(q, k, a))
    row = 2 * gamma(size + keys + 2, a.u) + 2 * sums
    total = weight * (row + 2 * gamma(queries + batch * keys + 2, a.u))
    return a.scale * (q.abs() * total.unsqueeze(-1)).sum((0, 2))


def logit_gradient(
    d_o: Float[Tensor, "B H T D"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_abs: Float[Tensor, "B H S D"],
    a: Arithmetic,
) -> tuple[Float[Tensor, "B H T"], Float[Tensor, "B H T"]]:
    """Two bounds: 2 w_i on Σ_j |∂L/∂Z_ij|, w_i as in key_gradient_bound, and one on the error of computing that sum.

    In P_ij (a_ij − δ_i) a computed P is off by the factor 1 + ρ, log(1 + ρ) = log_weights_error, and so is δ_i through
    it; a_ij and δ_i err by γ_{D+S+2} w_i.
    """
    weight = (d_o.abs() * v.abs().amax(-2, keepdim=True)).sum(-1)
    off = torch.expm1(log_weights_error(logit_error(q, k_abs, a), evaluation_error(q, k, a)))
    sums = gamma(q.shape[-1] + k.shape[-2] + 2, a.u)
    return 2 * weight, weight * (2 * off + (1 + off) * (2 * sums + off))
