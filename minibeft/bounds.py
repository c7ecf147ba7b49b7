"""How far rounding can move attention: the forward error bounds that tolerances come from (theorems K4, Q3).

Arithmetic is the standard model, fl(a ∘ b) = (a ∘ b)(1 + δ) with |δ| ≤ u, so a dot product of length n in any order of
summation errs by at most γ_n |x|ᵀ|y|, γ_n = nu/(1 − nu) (Higham, Accuracy and Stability, §3.1). `proofs/` derives
what stands here and measures how tight it is.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.attention import Mask


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


def logit_error(
    q: Float[Tensor, "B H T D"],
    k_abs: Float[Tensor, "B H S D"],
    mask: Mask | None,
    scale: float,
    u: float,
    roundings: int,
) -> Float[Tensor, "B H T"]:
    """ε_i: the largest error of a visible logit in row i, when each entry of K errs by γ_roundings · k_abs.

    |ẑ_ij − z_ij| ≤ scale · |q_i|ᵀ k_abs_j · γ_n,  n = roundings + D (the dot product) + 2 (scale, mask), plus u|M_ij|.
    """
    error = scale * (q.abs() @ k_abs.mT) * gamma(roundings + q.shape[-1] + 2, u)  # (B, H, T, S)
    if mask is not None:
        hidden = mask.isneginf()
        error = (error + u * mask.masked_fill(hidden, 0.0).abs()).masked_fill(hidden, 0.0)
    return error.amax(-1)


def key_bias_effect_bound(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    k_abs: Float[Tensor, "B H S D"],
    b_k: Float[Tensor, "H 1 D"],
    *,
    mask: Mask | None,
    scale: float,
    u: float,
    roundings: int,
) -> Float[Tensor, "B H T"]:
    """K4: the most that adding b_k can move any entry of a row of O = P V, computed with unit roundoff u.

    In exact arithmetic the two sets of logits differ by a constant per row (K1), so the computed ones differ by that
    constant and errors ε⁰, ε¹ (logit_error, without and with b_k). By Q3 the exact softmaxes of the computed logits
    are then within tanh((ε⁰ + ε¹)/2) in total variation, so their outputs within the diameter of V times that.
    Evaluating softmax and P V adds, to each of the two, at most η · max|v| with η = u·(osc(z) + 6) + 2γ_S: the shift
    by the row's maximum, exp (2 ulp), the sum, the quotient, and the weighted sum.

    k is K without b_k; k_abs, with k_abs ≥ |k|, and `roundings` say how K was computed: roundings = C + 1 and
    k_abs = |y||W_k|ᵀ for a projection in one pass, 1 and |k| where b_k is added to a K that is at hand.
    """
    before = logit_error(q, k_abs, mask, scale, u, roundings)
    after = logit_error(q, k_abs + b_k.abs(), mask, scale, u, roundings)
    diameter = (v.amax(-2) - v.amin(-2)).amax(-1).unsqueeze(-1)  # (B, H, 1)
    logits = scale * (q @ k.mT) + (0.0 if mask is None else mask)
    eta = u * (oscillation(logits, mask) + 6) + 2 * gamma(k.shape[-2], u)
    return diameter * torch.tanh((before + after) / 2) + 2 * eta * v.abs().amax((-2, -1)).unsqueeze(-1)
