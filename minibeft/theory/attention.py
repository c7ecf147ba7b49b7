"""Softmax attention with separate, optional b_q, b_k, b_v and b_o: the one function that every theorem is about.

    Q = X W_qᵀ + 1 b_qᵀ        Z = scale · Q Kᵀ + M        M is additive and may hold −∞
    K = Y W_kᵀ + 1 b_kᵀ        P = softmax over each row of Z
    V = Y W_vᵀ + 1 b_vᵀ        O = P V,  output = O W_oᵀ + 1 b_oᵀ

Weights are stored as torch.nn.Linear stores them, (out, in). A bias that is None is absent, which is not the same as
zero: it has no storage, no gradient and no optimiser state.

Shapes, the glossary of the whole code: B batch, T query tokens, S key tokens, H query heads, G key-value heads
(G divides H; query head h reads key-value head h // (H/G)), D head size, C model width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Mask = Float[Tensor, "#B #H #T S"]
Rotate = Callable[[Float[Tensor, "B h t D"]], Float[Tensor, "B h t D"]]


class HeadNorm(NamedTuple):
    """RMSNorm over the entries of each head, x · gain/√(mean x² + eps): QK-norm, which K1 and Q4 do not survive."""

    gain: Float[Tensor, " D"]
    eps: float

    def __call__(self, x: Float[Tensor, "B h t D"]) -> Float[Tensor, "B h t D"]:
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), self.eps)

    def reach(self, x: Float[Tensor, "B h t D"], size: Float[Tensor, "B h t D"]) -> Float[Tensor, "B h t D"]:
        """How large an error of γ·size in x is after the norm, in units of γ, as long as it is less than half of
        r = √(mean x² + eps): |g|/r · (size + |x| ‖size‖/(√D r)), times 2 because the error changes r as well."""
        r = (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        moved = x.abs() * size.square().mean(-1, keepdim=True).sqrt() / r
        return 2 * self.gain.to(x.dtype).abs() / r * (size + moved)


class Attended(NamedTuple):
    """What attend() returns: the output, and P when it was asked for."""

    output: Float[Tensor, "B T n"]
    weights: Float[Tensor, "B H T S"] | None


def linear(
    x: Float[Tensor, "*B T C"], weight: Float[Tensor, "n C"], bias: Float[Tensor, " n"] | None
) -> Float[Tensor, "*B T n"]:
    """x Wᵀ + 1 bᵀ. A bias of a wider type than the weight (an adapter, a merged residual) is added in its own type."""
    if bias is None or bias.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    return (F.linear(x, weight) + bias).to(x.dtype)


def project(
    x: Float[Tensor, "B T C"], weight: Float[Tensor, "hD C"], bias: Float[Tensor, " hD"] | None, heads: int
) -> Float[Tensor, "B h T D"]:
    """x Wᵀ + 1 bᵀ, split into heads."""
    return linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, h, T, D)


def masked_softmax(logits: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch S"]:
    """Softmax over each row. A row whose keys are all masked (−∞) attends to nothing: it is zero, not uniform or NaN.

    That choice is torch's own for fused attention. V1 then reads 0 · b_v for such a row (theorem V5), and the row
    passes no gradient on.
    """
    blind = logits.isneginf().all(-1, keepdim=True)
    return logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


def capped(logits: Float[Tensor, "*batch S"], cap: float | None) -> Float[Tensor, "*batch S"]:
    """cap · tanh(logits / cap): no logit is larger than the cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def attention_weights(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    mask: Mask | None,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "B H T S"]:
    """P = softmax(scale · q kᵀ + mask), the logits capped first; zero in a row whose keys are all masked."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, D)
    logits = capped(q @ k.mT * scale, softcap)  # (B, H, T, S)
    return logits.softmax(-1) if mask is None else masked_softmax(logits + mask)


def mix(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    fused: bool = True,
) -> tuple[Float[Tensor, "B T HD"], Float[Tensor, "B H T S"] | None]:
    """O = P V with the heads side by side again, and P itself on the plain path (fused=False).

    The fused path is torch's scaled_dot_product_attention, which has no cap; both agree within the float bound of
    theorem K4, and draw different random numbers for dropout.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if fused and softcap is None:
        grouped = q.shape[1] != k.shape[1]
        o = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=grouped)  # (B, H, T, D)
        return o.transpose(1, 2).flatten(2), None
    p = attention_weights(q, k, mask, scale, softcap)
    o = F.dropout(p, dropout) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)  # (B, H, T, D)
    return o.transpose(1, 2).flatten(2), p


def attend(
    x: Float[Tensor, "B T C"],
    w_q: Float[Tensor, "HD C"],
    w_k: Float[Tensor, "GD Cy"],
    w_v: Float[Tensor, "GD Cy"],
    w_o: Float[Tensor, "n HD"] | None = None,
    *,
    heads: int,
    kv_heads: int | None = None,
    b_q: Float[Tensor, " HD"] | None = None,
    b_k: Float[Tensor, " GD"] | None = None,
    b_v: Float[Tensor, " GD"] | None = None,
    b_o: Float[Tensor, " n"] | None = None,
    y: Float[Tensor, "B S Cy"] | None = None,
    mask: Mask | None = None,
    rotate: Rotate | None = None,
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    weights: bool = False,
    fused: bool = True,
) -> Attended:
    """Multi-head attention in which b_k has no effect (K1), b_v is a shift (V1) and b_q a bounded one (Q3).

    y        what keys and values are made from; None: x itself (self-attention)
    mask     added to the logits; −∞ hides a key. Windows and ALiBi are masks
    rotate   rotary positions, applied to q and k after their biases: then K1 and Q4 no longer hold (K4, Q7)
    q_norm   QK-norm, on each head's q and k after their biases and before rotation: K1 and Q4 do not hold then either
    scale    None: 1/√D
    softcap  the most that a logit can be before the mask; the cap bends what a row shares, so K1 and Q4 do not hold
    dropout  probability of dropping an entry of P, the rest scaled up
    weights  also return P, which needs the plain path
    w_o      None: the output is O, the heads side by side, and b_o is not used
    """
    y = x if y is None else y
    kv_heads = heads if kv_heads is None else kv_heads
    q = project(x, w_q, b_q, heads)  # (B, H, T, D)
    k = project(y, w_k, b_k, kv_heads)  # (B, G, S, D)
    v = project(y, w_v, b_v, kv_heads)  # (B, G, S, D)
    q, k = q if q_norm is None else q_norm(q), k if k_norm is None else k_norm(k)
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    o, p = mix(q, k, v, mask=mask, scale=scale, softcap=softcap, dropout=dropout, fused=fused and not weights)
    return Attended(o if w_o is None else linear(o, w_o, b_o), p if weights else None)
