"""What redrawing a bias does, measured in float64 on a small random layer with the mechanisms of a configuration.

Each number stands beside the rounding error that the theory allows (bounds.py): at or below it the statement is
witnessed, above it the number is a counterexample. Where several hypotheses are broken, each is also measured alone.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.agreement import within
from minibeft.theory.attention import project
from minibeft.theory.bounds import (
    Arithmetic,
    evaluation_error,
    key_bias_effect_bound,
    logit_error,
    oscillation,
    unit_roundoff,
    value_fold_bound,
    value_shift_bound,
    weights_error,
)
from minibeft.theory.draws import Draws
from minibeft.theory.mechanisms import alone, broken, null_dims
from minibeft.theory.statements import double_differences
from minibeft.theory.variants import (
    AttentionSpec,
    Parameters,
    attend_variant,
    position_mask,
    random_parameters,
    without,
)

U = unit_roundoff(torch.float64)
RESOLVED = 1e-3  # rows whose bound is smaller are left out of Q3's ratio, which rounding would drown
TOKENS, SOURCE, WINDOW = 7, 9, 4  # query tokens, key tokens of a cross-attention, and a sliding window among them


@dataclass(frozen=True)
class Witness:
    """One measurement on the small layer.

    measures       what `value` is, in words
    value, allowed the number, and the largest that the statement and rounding together allow
    by_hypothesis  the number with only that hypothesis broken (for b_q: the change of a double difference of log P)
    details        further numbers by name
    """

    measures: str
    value: float
    allowed: float
    by_hypothesis: dict[str, float] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)

    @property
    def within(self) -> bool:
        """The statement was witnessed; False: the number is a counterexample."""
        return within(self.value, self.allowed)


def small(spec: AttentionSpec) -> AttentionSpec:
    """The same mechanism at a size that takes no time: H/G, the rotary fraction and C/(H D) are kept exactly.

    At most two key-value heads remain, and the smallest head size from 8 up that the rotary fraction allows.
    """
    kv_heads = min(spec.kv_heads, 2)
    heads = spec.heads // spec.kv_heads * kv_heads
    turned = spec.head_size if spec.rotary is None else spec.rotary.dims
    unit = math.gcd(spec.head_size, max(turned // 2, 1))  # the head size shrinks by a divisor of both
    step = spec.head_size // unit
    size = min(step * -(-8 // step), spec.head_size)
    rotary = spec.rotary and replace(spec.rotary, dims=turned * size // spec.head_size)
    return replace(
        spec,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        width=max(1, round(spec.width * heads * size / (spec.heads * spec.head_size))),
        rotary=rotary,
        window=spec.window and min(spec.window, WINDOW),
        prefix=min(spec.prefix, 2),
    )


@dataclass(frozen=True)
class Layer:
    """A random layer of this spec with its input; it can be run with any of its biases replaced or absent."""

    spec: AttentionSpec
    params: Parameters
    x: Float[Tensor, "B T C"]
    y: Float[Tensor, "B S C"]

    @staticmethod
    def random(spec: AttentionSpec, seed: int = 0) -> "Layer":
        generator = Draws(seed)
        params = random_parameters(spec, generator)
        x = generator.normal(2, TOKENS, spec.width)
        y = generator.normal(2, SOURCE, spec.width) if spec.cross else x
        return Layer(spec, params, x, y)

    def run(self, params: Parameters, *, training: bool = False) -> tuple[Tensor, Tensor]:
        """The heads' outputs side by side (B, T, HD), or through W_o where params has one; and the weights."""
        output, weights = attend_variant(self.spec, params, self.x, y=self.y, training=training)
        assert weights is not None
        return output, weights

    def heads_of_bias(self, bias: Float[Tensor, " GD"] | None) -> Float[Tensor, "H D"]:
        """A bias of keys or values as each query head meets it, repeated over its group."""
        assert bias is not None
        return bias.view(-1, self.spec.head_size).repeat_interleave(self.spec.heads // self.spec.kv_heads, 0)

    def rounding(self) -> tuple[Tensor, Tensor, Tensor, Arithmetic]:
        """What the bounds on P ask for: queries, keys without b_k, |y||W_k|ᵀ, and the arithmetic."""
        spec, params, group = self.spec, self.params, self.spec.heads // self.spec.kv_heads
        streams = params.w_q.shape[0] // (spec.heads * spec.head_size)
        q = project(self.x, params.w_q, params.b_q, streams * spec.heads)
        k = project(self.y, params.w_k, None, streams * spec.kv_heads).repeat_interleave(group, 1)
        k_abs = project(self.y.abs(), params.w_k.abs(), None, streams * spec.kv_heads).repeat_interleave(group, 1)
        mask = position_mask(spec, params, q.shape[2], k.shape[2]).repeat(streams, 1, 1)[None]
        scale = spec.head_size**-0.5 if spec.scale is None else spec.scale
        return q, k, k_abs, Arithmetic(mask, scale, U, spec.width + 1)

    def key_rounding(self) -> float:
        """K4: what adding b_k may do to the heads' outputs through rounding alone."""
        spec, (q, k, k_abs, arithmetic) = self.spec, self.rounding()
        v = project(self.y, self.params.w_v, self.params.b_v, spec.kv_heads)
        streams = q.shape[1] // spec.heads
        v = v.repeat_interleave(spec.heads // spec.kv_heads, 1).repeat(1, streams, 1, 1)
        bias = self.heads_of_bias(self.params.b_k).unsqueeze(1)
        moved = key_bias_effect_bound(q, k, v, k_abs, bias, arithmetic).max().item()
        return moved * (1 + abs(spec.differential or 0.0))

    def fold_rounding(self) -> float:
        """V2: what folding b_v may do to the layer's output through rounding alone."""
        spec, params, group = self.spec, self.params, self.spec.heads // self.spec.kv_heads
        assert params.w_o is not None
        assert params.b_o is not None
        v_abs = project(self.y.abs(), params.w_v.abs(), None, spec.kv_heads).repeat_interleave(group, 1)
        bias = self.heads_of_bias(params.b_v)
        arithmetic = Arithmetic(None, 1.0, U, spec.width + 1)
        shift = value_shift_bound(v_abs, bias.unsqueeze(1), arithmetic).amax((0, 2)).flatten()
        o_abs = 2 * v_abs.amax((0, 2)).flatten()  # O is a mean of the values; 2 leaves room for its own rounding
        return value_fold_bound(shift, o_abs, params.w_o, bias.flatten(), params.b_o, arithmetic).max().item()


def key_effect(layer: Layer, dims: range | None = None) -> float:
    """max |O(b_k) − O(0)|, with b_k supported on these dims of each head (None: on all)."""
    bias = layer.params.b_k
    assert bias is not None
    if dims is not None:
        keep = torch.zeros(layer.spec.head_size, dtype=bias.dtype)
        keep[dims.start : dims.stop] = 1.0
        bias = (bias.view(-1, layer.spec.head_size) * keep).flatten()
    heads = replace(layer.params, w_o=None)
    with_bias, _ = layer.run(replace(heads, b_k=bias))
    return (with_bias - layer.run(without(heads, "k"))[0]).abs().max().item()


def key_witness(spec: AttentionSpec) -> Witness:
    """K1 and K4: the effect of b_k on the heads' outputs, beside what rounding allows."""
    spec = small(spec)
    layer = Layer.random(spec)
    alive = {h: key_effect(Layer.random(alone(spec, "k", h))) for h in broken(spec, "k")}
    details = {}
    null = null_dims(spec)
    if 0 < len(null) < spec.head_size:
        details["on the dims that are not rotated"] = key_effect(layer, null)
        details["on the rotated dims"] = key_effect(layer, range(null.start))
    return Witness("max |O(b_k) − O(0)|", key_effect(layer), layer.key_rounding(), alive, details)


def shift_residual(layer: Layer) -> float:
    """V1: max |O(b_v) − O(0) − 1 b_vᵀ|."""
    heads = replace(layer.params, w_o=None)
    shift = layer.heads_of_bias(heads.b_v).flatten()
    return (layer.run(heads)[0] - layer.run(without(heads, "v"))[0] - shift).abs().max().item()


def fold_residual(layer: Layer) -> float:
    """V2: the largest difference that moving b_v into b_o' = b_o + W_o b_v makes to the layer's output."""
    params = layer.params
    assert params.b_o is not None
    assert params.w_o is not None
    folded = replace(without(params, "v"), b_o=params.b_o + params.w_o @ layer.heads_of_bias(params.b_v).flatten())
    return (layer.run(params)[0] - layer.run(folded)[0]).abs().max().item()


def reach(layer: Layer) -> int:
    """V6: the dimension of the outputs that b_v reaches, the rank of W_o after repeating b_v over its group."""
    spec = layer.spec
    assert layer.params.w_o is not None
    by_head = layer.params.w_o.view(-1, spec.kv_heads, spec.heads // spec.kv_heads, spec.head_size)
    return int(torch.linalg.matrix_rank(by_head.sum(2).flatten(1)))


def value_witness(spec: AttentionSpec) -> Witness:
    """V2 and V5: what folding b_v into b_o changes, beside what rounding allows; the shift of V1; the rank of V6."""
    spec = small(spec)
    layer = Layer.random(spec)
    alive = {h: fold_residual(Layer.random(alone(spec, "v", h))) for h in broken(spec, "v")}
    details: dict[str, float] = {"max |O(b_v) − O(0) − b_v|": shift_residual(layer)}
    if spec.dropout:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            row_sums = layer.run(layer.params, training=True)[1].sum(-1)
        details["max |row sum of P − 1| in training"] = (row_sums - 1).abs().max().item()
    details["dimension that b_v reaches here"] = reach(layer)
    details["dimension that b_o reaches here"] = spec.width
    return Witness(
        "max |change of the output when b_v is folded|", fold_residual(layer), layer.fold_rounding(), alive, details
    )


def double_difference(before: Tensor, after: Tensor) -> float:
    """Q4: how much log P_ij − log P_il − log P_rj + log P_rl changes at most, over keys that both rows see."""
    change = after.log() - before.log()  # (B, H, T, S)
    return double_differences(change.masked_fill(~change.isfinite(), torch.nan)).max().item()


def query_witness(spec: AttentionSpec) -> Witness:
    """Q3 and Q4: the largest TV(P(0), P(b_q)) / tanh(osc/4) over the rows, which is at most 1.

    osc is that of the change of the row's log-weights. What a row gives to sinks and foreign keys is lumped into one
    more entry, for which Q3 holds as for any key. Of a difference of two softmaxes the first is measured.
    """
    spec = small(spec)
    if spec.differential is not None:
        spec = replace(spec, differential=0.0)
    layer = Layer.random(spec)

    def weights(of: AttentionSpec) -> tuple[Tensor, Tensor]:
        other = Layer.random(of)
        return other.run(without(other.params, "q"))[1], other.run(other.params)[1]

    before, after = weights(spec)
    details = {"largest change of a double difference of log P": double_difference(before, after)}
    if spec.sink or spec.prefix or spec.bias_kv or spec.zero_key:
        before, after = (torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1) for p in (before, after))
    hidden = torch.zeros_like(before).masked_fill(before == 0, -torch.inf)
    limit = torch.tanh(oscillation((after.log() - before.log()).nan_to_num(nan=0.0), hidden) / 4)
    resolved = limit > RESOLVED
    distance = (after - before).abs().sum(-1) / 2
    q, k, k_abs, arithmetic = layer.rounding()
    slack = 2 * weights_error(logit_error(q, k_abs, arithmetic), evaluation_error(q, k, arithmetic)).max() / RESOLVED
    alive = {h: double_difference(*weights(alone(spec, "q", h))) for h in broken(spec, "q")}
    ratio = (distance / limit)[resolved].amax().item() if resolved.any() else 0.0  # none where a row sees one key
    return Witness("max TV(P(0), P(b_q)) / tanh(osc/4)", ratio, 1.0 + slack.item(), alive, details)
