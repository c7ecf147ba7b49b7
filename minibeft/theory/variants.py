"""The attention mechanisms where the theorems stop, one field each: switch one on and see which statement fails.

Plain torch, written to be read. With every mechanism off, attend_variant() is attend(). Sources, by field: rotary
(RoFormer, arXiv 2104.09864), position_bias (ALiBi, arXiv 2108.12409; T5, arXiv 1910.10683), relative_query and
relative_key (Shaw et al., arXiv 1803.02155; BERT's relative_key_query, arXiv 2009.13658), qk_norm (arXiv 2010.04245),
softcap (Gemma 2, arXiv 2408.00118), weighting (sigmoid arXiv 2409.04431, relu arXiv 2309.08586, linear
arXiv 2006.16236), sink (gpt-oss; softmax-off-by-one is a sink with logit 0), prefix (prefix tuning, arXiv 2101.00190),
bias_kv and zero_key (torch.nn.MultiheadAttention), differential (arXiv 2410.05258), gate (arXiv 2505.06708),
output_norm (arXiv 2210.06423).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.attention import Attended, Mask, masked_softmax, project
from minibeft.theory.draws import Draws
from minibeft.theory.rotary import Rotary

REACH = 8  # relative distances are clipped to ±REACH; any function of i − j shows what the theorems say about it


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of one kind of layer. Letters are those of the shape glossary in attention.py.

    biases         which of q, k, v, o the layer has
    cross          keys and values come from other tokens
    window         a token sees this many tokens back, itself included (None: all)
    scale          None: 1/√D
    position_bias  a number for each head and distance, added to the logits: to the theorems it is a mask
    relative_query adds scale · q_i·E_{i−j} to the logits; relative_key adds scale · k_j·E_{i−j}
    sink           one more logit in each row's softmax, with no value: learned for each head, or 0 ("one")
    prefix         how many keys and values of their own every layer is given (prefix tuning)
    output_norm    a norm over all heads' outputs stands before W_o
    differential   λ: the weights are softmax − λ · another softmax, from twice as many queries and keys
    dropout        the probability of dropping an entry of P in training
    """

    heads: int  # H
    kv_heads: int  # G
    head_size: int  # D
    width: int  # C
    biases: frozenset[str] = frozenset("qkvo")
    causal: bool = False
    cross: bool = False
    window: int | None = None
    scale: float | None = None
    rotary: Rotary | None = None
    position_bias: Literal["alibi", "learned"] | None = None
    relative_query: bool = False
    relative_key: bool = False
    qk_norm: Literal["rms", "layer"] | None = None
    softcap: float | None = None
    weighting: Literal["softmax", "sigmoid", "relu", "linear"] = "softmax"
    sink: Literal["learned", "one"] | None = None
    prefix: int = 0
    bias_kv: bool = False
    zero_key: bool = False
    differential: float | None = None
    value_norm: bool = False
    gate: bool = False
    output_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.sink is not None and self.weighting != "softmax":
            raise ValueError("a sink takes part in a softmax, and this attention has none")
        if self.weighting == "linear" and (self.softcap is not None or self.relative_query or self.relative_key):
            raise ValueError("linear attention has no logits to cap or to add relative vectors to")


@dataclass(frozen=True)
class Parameters:
    """The weights of one such layer; a bias that is None is absent. The other fields are read when the spec asks."""

    w_q: Float[Tensor, "sHD C"]  # s streams: two for differential attention, else one
    w_k: Float[Tensor, "sGD C"]
    w_v: Float[Tensor, "GD C"]
    w_o: Float[Tensor, "C HD"] | None
    b_q: Float[Tensor, " sHD"] | None
    b_k: Float[Tensor, " sGD"] | None
    b_v: Float[Tensor, " GD"] | None
    b_o: Float[Tensor, " C"] | None
    q_gain: Float[Tensor, " D"]
    k_gain: Float[Tensor, " D"]
    v_gain: Float[Tensor, " D"]
    o_gain: Float[Tensor, " HD"]
    sink: Float[Tensor, " H"]
    distances: Float[Tensor, "H R"]  # R = 2 REACH + 1
    relative: Float[Tensor, "R D"]
    prefix_k: Float[Tensor, "sG p D"]
    prefix_v: Float[Tensor, "G p D"]
    foreign_k: Float[Tensor, "sG 1 D"]
    foreign_v: Float[Tensor, "G 1 D"]
    w_gate: Float[Tensor, "HD C"]


def random_parameters(spec: AttentionSpec, generator: Draws, dtype=torch.float64) -> Parameters:
    """Every parameter drawn anew, biases and gains too; weights keep activations of unit size."""

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return generator.normal(*shape, dtype=dtype) * std

    h, g, d, c = spec.heads, spec.kv_heads, spec.head_size, spec.width
    streams = 1 if spec.differential is None else 2
    return Parameters(
        w_q=normal(streams * h * d, c, std=c**-0.5),
        w_k=normal(streams * g * d, c, std=c**-0.5),
        w_v=normal(g * d, c, std=c**-0.5),
        w_o=normal(c, h * d, std=(h * d) ** -0.5),
        b_q=normal(streams * h * d),
        b_k=normal(streams * g * d),
        b_v=normal(g * d),
        b_o=normal(c),
        q_gain=normal(d),
        k_gain=normal(d),
        v_gain=normal(d),
        o_gain=normal(h * d),
        sink=normal(h),
        distances=normal(h, 2 * REACH + 1),
        relative=normal(2 * REACH + 1, d),
        prefix_k=normal(g * streams, spec.prefix, d),
        prefix_v=normal(g, spec.prefix, d),
        foreign_k=normal(g * streams, 1, d),
        foreign_v=normal(g, 1, d),
        w_gate=normal(h * d, c, std=c**-0.5),
    )


def without(params: Parameters, *names: str) -> Parameters:
    """The same parameters with these biases ("q", "k", "v", "o") absent."""
    return replace(params, **{f"b_{name}": None for name in names})


def distances(queries: int, keys: int) -> Tensor:
    """i − j for every query i and key j, (T, S)."""
    return torch.arange(queries)[:, None] - torch.arange(keys)


def alibi_slopes(heads: int) -> Float[Tensor, " H"]:
    """How fast each head's logits fall with the distance: powers of 2^(−8/n) for n heads, a power of two; the heads
    beyond it take every other power of the next n. In float32, as checkpoints were trained (arXiv 2108.12409)."""
    power = 2 ** math.floor(math.log2(heads))
    base, next_base = (torch.tensor(2.0 ** (-8.0 / n)) for n in (power, 2 * power))
    rest = torch.arange(1, 2 * (heads - power) + 1, 2)
    return torch.cat((base ** torch.arange(1, power + 1), next_base**rest))


def position_mask(spec: AttentionSpec, params: Parameters, queries: int, keys: int) -> Float[Tensor, "H T S"]:
    """What positions add to the logits: −∞ where the future or the window's outside hides a key, and the bias."""
    gap = distances(queries, keys)
    mask = torch.zeros(spec.heads, queries, keys, dtype=params.w_q.dtype)
    if spec.position_bias == "alibi":
        mask = mask - alibi_slopes(spec.heads).to(mask.dtype)[:, None, None] * gap.abs()
    elif spec.position_bias == "learned":
        mask = mask + params.distances[:, gap.clamp(-REACH, REACH) + REACH]
    if spec.causal:
        mask = mask.masked_fill(gap < 0, -torch.inf)
    if spec.window is not None:
        mask = mask.masked_fill(gap >= spec.window, -torch.inf)
    return mask


def normalise(kind: str, x: Float[Tensor, "*batch n"], gain: Float[Tensor, " n"]) -> Float[Tensor, "*batch n"]:
    """RMSNorm or LayerNorm over the last axis: the head size for QK-norm and value-norm, HD before W_o."""
    return F.rms_norm(x, gain.shape, gain, 1e-6) if kind == "rms" else F.layer_norm(x, gain.shape, gain, None, 1e-6)


def with_foreign(
    spec: AttentionSpec, params: Parameters, k: Float[Tensor, "B g S D"], v: Float[Tensor, "B G S D"]
) -> tuple[Tensor, Tensor]:
    """The keys and values, followed by those that no projection made, which carry neither b_k nor b_v."""
    extra = []
    if spec.prefix:
        extra.append((params.prefix_k, params.prefix_v))
    if spec.bias_kv:
        extra.append((params.foreign_k, params.foreign_v))
    if spec.zero_key:
        extra.append((torch.zeros_like(params.foreign_k), torch.zeros_like(params.foreign_v)))
    keys = torch.cat([k, *(e.expand(k.shape[0], -1, -1, -1) for e, _ in extra)], dim=2)
    values = torch.cat([v, *(e.expand(v.shape[0], -1, -1, -1) for _, e in extra)], dim=2)
    return keys, values


def weigh(
    spec: AttentionSpec,
    params: Parameters,
    q: Float[Tensor, "B h T D"],
    k: Float[Tensor, "B h N D"],
    mask: Float[Tensor, "*#B #h T N"],
) -> Float[Tensor, "B h T N"]:
    """The weights of every query over the N keys (real, then foreign). Only a softmax without a sink sums to one
    over the keys and ignores what a row's logits share."""
    if spec.weighting == "linear":
        p = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).masked_fill(mask.isneginf(), 0.0)
        return p / p.sum(-1, keepdim=True)
    logits = q @ k.mT
    rows = params.relative[distances(q.shape[2], k.shape[2]).clamp(-REACH, REACH) + REACH]  # (T, N, D)
    if spec.relative_query:
        logits = logits + torch.einsum("bhtd,tnd->bhtn", q, rows)
    if spec.relative_key:
        logits = logits + torch.einsum("bhnd,tnd->bhtn", k, rows)
    logits = logits * (spec.head_size**-0.5 if spec.scale is None else spec.scale)
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    logits = logits + mask
    if spec.weighting == "sigmoid":
        return torch.sigmoid(logits - math.log(k.shape[2]))
    if spec.weighting == "relu":
        return F.relu(logits) / k.shape[2]
    if spec.sink is None:
        return masked_softmax(logits)
    sink = params.sink if spec.sink == "learned" else torch.zeros_like(params.sink)
    sink = sink.repeat(q.shape[1] // spec.heads)[:, None, None].expand(*logits.shape[:3], 1)
    return torch.cat([logits, sink], -1).softmax(-1)[..., :-1]


def attend_variant(
    spec: AttentionSpec,
    params: Parameters,
    x: Float[Tensor, "B T C"],
    *,
    y: Float[Tensor, "B S C"] | None = None,
    mask: Mask | None = None,
    training: bool = False,
) -> Attended:
    """attend() with the mechanisms of `spec`; the weights returned are those of the S real keys.

    y is what keys and values are made from (None: x itself); `mask` is added to what the positions add; `training`
    switches dropout on P on. Without W_o the output is O, the heads side by side, before any output norm.
    """
    y = x if y is None else y
    streams = 1 if spec.differential is None else 2
    q = project(x, params.w_q, params.b_q, streams * spec.heads)
    k = project(y, params.w_k, params.b_k, streams * spec.kv_heads)
    v = project(y, params.w_v, params.b_v, spec.kv_heads)
    if spec.qk_norm is not None:
        q, k = normalise(spec.qk_norm, q, params.q_gain), normalise(spec.qk_norm, k, params.k_gain)
    if spec.value_norm:
        v = normalise("rms", v, params.v_gain)
    if spec.rotary is not None:
        q = spec.rotary.rotate(torch.arange(q.shape[2]))(q)
        k = spec.rotary.rotate(torch.arange(k.shape[2]))(k)
    real = k.shape[2]
    visible = position_mask(spec, params, q.shape[2], real).repeat(streams, 1, 1)  # (h, T, S)
    visible = visible if mask is None else visible + mask.repeat(1, streams if mask.shape[1] > 1 else 1, 1, 1)
    k, v = with_foreign(spec, params, k, v)
    visible = F.pad(visible, (0, k.shape[2] - real))  # foreign keys are always in sight
    group = spec.heads // spec.kv_heads
    p = weigh(spec, params, q, k.repeat_interleave(group, 1), visible)
    if spec.differential is not None:
        p = p[:, : spec.heads] - spec.differential * p[:, spec.heads :]
    p = F.dropout(p, spec.dropout, training)
    o = (p @ v.repeat_interleave(group, 1)).transpose(1, 2).flatten(2)  # (B, T, HD)
    if spec.gate:
        o = o * torch.sigmoid(F.linear(x, params.w_gate))
    if params.w_o is None:
        return Attended(o, p[..., :real])
    if spec.output_norm:
        o = normalise("rms", o, params.o_gain)
    return Attended(F.linear(o, params.w_o, params.b_o), p[..., :real])
