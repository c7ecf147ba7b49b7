"""What redrawing a bias does, measured in float64 on a small random layer with the mechanisms of a configuration.

Each number stands beside the rounding error that the theory allows (bounds.py): at or below it the statement is
witnessed, above it the number is a counterexample. Where several hypotheses are broken, each is also measured alone.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory import statements
from minibeft.theory.agreement import within
from minibeft.theory.attention import Attended
from minibeft.theory.bounds import oscillation
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.mechanisms import alone, broken, null_dims
from minibeft.theory.statements import Gap
from minibeft.theory.variants import (
    AttentionSpec,
    Parameters,
    attend_variant,
    position_mask,
    random_parameters,
)

PROJECTIONS = ("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o")
SCORES = ("w_q", "w_k", "b_q", "b_k")
RESOLVED = 1e-3  # rows with a smaller bound are left out of Q3's ratio, because rounding would dominate it
MOST_GROUP, MOST_SIZE, MOST_WIDTH = 512, 64, 4096
# Query tokens, key tokens of a cross-attention (under rotary positions as many as queries), and a sliding window.
TOKENS, SOURCE, WINDOW = 7, 9, 4


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

    At most two key-value heads remain, and the smallest head size from 8 up that the rotary fraction allows. What would
    still take time is cut to MOST_GROUP, MOST_SIZE (the fraction then is nearly the same) and MOST_WIDTH.
    """
    kv_heads = min(spec.kv_heads, 2)
    heads = min(spec.heads // spec.kv_heads, MOST_GROUP) * kv_heads
    turned = spec.head_size if spec.rotary is None else spec.rotary.dims
    unit = math.gcd(spec.head_size, max(turned // 2, 1))  # the head size shrinks by a divisor of both
    step = spec.head_size // unit
    size = min(step * -(-8 // step), spec.head_size)
    dims = turned * size // spec.head_size
    if size > MOST_SIZE:
        dims = max(2, 2 * (turned * MOST_SIZE // spec.head_size // 2))
        size = MOST_SIZE
    rotary = spec.rotary and replace(spec.rotary, dims=dims)
    return replace(
        spec,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        width=min(max(1, round(spec.width * heads * size / (spec.heads * spec.head_size))), MOST_WIDTH),
        rotary=rotary,
        window=spec.window and min(spec.window, WINDOW),
        prefix=min(spec.prefix, 2),
    )


@dataclass(frozen=True)
class Layer:
    """A random layer of this spec with its input; it can be run with any of its parameters replaced or absent."""

    spec: AttentionSpec
    params: Parameters
    x: Float[Tensor, "B T C"]
    y: Float[Tensor, "B S C"]

    @staticmethod
    def random(spec: AttentionSpec, seed: int = 0) -> "Layer":
        generator = Draws(seed)
        params = random_parameters(spec, generator)
        x = generator.normal(2, TOKENS, spec.width)
        y = generator.normal(2, TOKENS if spec.rotary else SOURCE, spec.width) if spec.cross else x
        return Layer(spec, params, x, y)

    def run(self, params: Parameters, *, training: bool = False) -> tuple[Tensor, Tensor]:
        """The heads' outputs side by side (B, T, HD), or through W_o where params has one; and the weights."""
        output, weights = attend_variant(self.spec, params, self.x, y=self.y, training=training)
        assert weights is not None
        return output, weights

    def instance(self) -> Instance:
        """The layer as an Instance, on which statements are measured.

        The mechanisms are inside its function; positions and mask are also given outside, for the bounds. Of
        differential attention it shows the parameters of the first softmax.
        """
        spec, params = self.spec, self.params
        given: dict[str, Any] = {name: getattr(params, name) for name in PROJECTIONS}
        second: dict[str, Tensor] = {}
        if spec.differential is not None:
            for name in SCORES:
                given[name], second[name] = given[name].chunk(2)

        def function(x: Tensor, *weights: Any, **arguments: Any) -> Attended:
            named = dict(zip(PROJECTIONS, weights, strict=False)) | arguments
            replaced = {name: named[name] for name in PROJECTIONS}
            replaced |= {name: torch.cat([replaced[name], rest]) for name, rest in second.items()}
            return attend_variant(spec, replace(params, **replaced), x, y=self.y)

        mask = position_mask(spec, params, self.x.shape[1], self.y.shape[1])[None]
        rotate = spec.rotary and spec.rotary.rotate(torch.arange(self.x.shape[1]))
        given |= {"heads": spec.heads, "kv_heads": spec.kv_heads, "mask": mask, "rotate": rotate, "scale": spec.scale}
        return Instance(self.x, **given, y=self.y, function=function)


def key_effect(spec: AttentionSpec, dims: range | None = None) -> Gap:
    """K1 and K4: |O(b_k) − O(0)| of each row, with b_k supported on these dims of each head (None: on all).

    Of a difference of two softmaxes the first is measured.
    """
    p = Layer.random(replace(spec, differential=None)).instance()
    assert p.b_k is not None
    if dims is not None:
        keep = torch.zeros(spec.head_size, dtype=p.b_k.dtype)
        keep[dims.start : dims.stop] = 1.0
        p = replace(p, b_k=(p.b_k.view(-1, spec.head_size) * keep).flatten())
    return statements.key_effect(p)


def largest(gap: Gap) -> float:
    """The largest value."""
    return gap.value.max().item()


def key_witness(spec: AttentionSpec) -> Witness:
    """K1 and K4: the effect of b_k on the heads' outputs, beside what rounding allows."""
    spec = small(spec)
    gap, null = key_effect(spec), null_dims(spec)
    alive = {h: largest(key_effect(alone(spec, "k", h))) for h in broken(spec, "k")}
    details = {}
    if 0 < len(null) < spec.head_size:
        details["on the dims that are not rotated"] = largest(key_effect(spec, null))
        details["on the rotated dims"] = largest(key_effect(spec, range(null.start)))
    return Witness("max |O(b_k) − O(0)|", largest(gap), gap.allowed.max().item(), alive, details)


def fold(spec: AttentionSpec) -> Gap:
    """V2: what moving b_v into b_o' = b_o + W_o b_v changes in the layer's output."""
    return statements.value_fold(Layer.random(spec).instance())


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
    gap = fold(spec)
    alive = {h: largest(fold(alone(spec, "v", h))) for h in broken(spec, "v")}
    details: dict[str, float] = {"max |O(b_v) − O(0) − b_v|": largest(statements.value_shift(layer.instance()))}
    if spec.dropout:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            row_sums = layer.run(layer.params, training=True)[1].sum(-1)
        details["max |row sum of P − 1| in training"] = (row_sums - 1).abs().max().item()
    details["dimension that b_v reaches here"] = reach(layer)
    details["dimension that b_o reaches here"] = spec.width
    measures = "max |change of the output when b_v is folded|"
    return Witness(measures, largest(gap), gap.allowed.max().item(), alive, details)


def double_difference(p: Instance) -> float:
    """Q4: how much log P_ij − log P_il − log P_rj + log P_rl changes at most, over keys that both rows see."""
    return largest(statements.blindness(p))


def query_witness(spec: AttentionSpec) -> Witness:
    """Q3 and Q4: the largest TV(P(0), P(b_q)) / tanh(osc/4) over the rows, which is at most 1.

    osc is that of the change of the row's log-weights. The weights of sinks and foreign keys are added up into one more
    entry of the row, for which Q3 holds as for any key. Of differential attention the first softmax is measured.
    """
    spec = replace(small(spec), differential=None)
    p = Layer.random(spec).instance()
    details = {"largest change of a double difference of log P": double_difference(p)}
    before, after = p.weights(b_q=None), p.weights()
    if spec.sink or spec.prefix or spec.bias_kv or spec.zero_key:
        before, after = (torch.cat([w, 1 - w.sum(-1, keepdim=True)], -1) for w in (before, after))
    hidden = torch.zeros_like(before).masked_fill(before == 0, -torch.inf)
    limit = torch.tanh(oscillation((after.log() - before.log()).nan_to_num(nan=0.0), hidden) / 4)
    resolved = limit > RESOLVED
    distance = (after - before).abs().sum(-1) / 2
    slack = 2 * statements.query_errors(p).max() / RESOLVED
    alive = {h: double_difference(Layer.random(alone(spec, "q", h)).instance()) for h in broken(spec, "q")}
    ratio = (distance / limit)[resolved].amax().item() if resolved.any() else 0.0  # none where a row sees one key
    return Witness("max TV(P(0), P(b_q)) / tanh(osc/4)", ratio, 1.0 + slack.item(), alive, details)
