"""Which hypothesis of the catalogue each attention mechanism breaks, for which bias, and how to take it away again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from minibeft.theory.theorems import HYPOTHESES
from minibeft.theory.variants import AttentionSpec


@dataclass(frozen=True)
class Mechanism:
    """A mechanism breaks `hypothesis` for the biases named in `biases` where `on` says so; `off` takes it away.

    For q, the hypotheses are those of the closed form (Q1) and of blindness (Q4); how far b_q can reach is another
    question (Q2, Q3).
    """

    hypothesis: str
    biases: str
    on: Callable[[AttentionSpec], bool]
    off: dict[str, Any]

    def __post_init__(self):
        assert self.hypothesis in HYPOTHESES, self.hypothesis


MECHANISMS = (
    Mechanism("unrotated", "qk", lambda s: s.rotary is not None and s.rotary.dims > 0, {"rotary": None}),
    Mechanism("no-relative-vectors", "q", lambda s: s.relative_query, {"relative_query": False}),
    Mechanism("no-relative-vectors", "k", lambda s: s.relative_key, {"relative_key": False}),
    Mechanism("no-qk-norm", "qk", lambda s: s.qk_norm is not None, {"qk_norm": None}),
    Mechanism("no-softcap", "qk", lambda s: s.softcap is not None, {"softcap": None}),
    Mechanism("softmax", "qk", lambda s: s.weighting != "softmax", {"weighting": "softmax"}),
    Mechanism("no-sink", "kv", lambda s: s.sink is not None, {"sink": None}),
    Mechanism(
        "no-foreign-keys",
        "k",
        lambda s: bool(s.prefix or s.bias_kv or s.zero_key),
        {"prefix": 0, "bias_kv": False, "zero_key": False},
    ),
    Mechanism(
        "no-foreign-values",
        "v",
        lambda s: bool(s.prefix or s.bias_kv or s.zero_key),
        {"prefix": 0, "bias_kv": False, "zero_key": False},
    ),
    # Linear attention divides by the sum of its weights, so it is no softmax but its rows do sum to one.
    Mechanism("rows-sum-to-one", "v", lambda s: s.weighting in ("sigmoid", "relu"), {"weighting": "softmax"}),
    Mechanism("rows-sum-to-one", "v", lambda s: s.differential is not None, {"differential": None}),
    Mechanism("raw-values", "v", lambda s: s.value_norm, {"value_norm": False}),
    Mechanism("ungated", "v", lambda s: s.gate, {"gate": False}),
    Mechanism("raw-output", "v", lambda s: s.output_norm, {"output_norm": False}),
)


def broken(spec: AttentionSpec, bias: str) -> tuple[str, ...]:
    """The hypotheses that this attention breaks for b_q, b_k or b_v ("q", "k", "v"), in the catalogue's order.

    They are those of exact arithmetic at evaluation time: dropout on P is left to the verdict's notes.
    """
    keys = {m.hypothesis for m in MECHANISMS if bias in m.biases and m.on(spec)}
    return tuple(key for key in HYPOTHESES if key in keys)


def restore(spec: AttentionSpec, bias: str, hypotheses: Iterable[str]) -> AttentionSpec:
    """The same attention with the mechanisms that break these hypotheses taken away."""
    for mechanism in MECHANISMS:
        if bias in mechanism.biases and mechanism.hypothesis in hypotheses and mechanism.on(spec):
            spec = replace(spec, **mechanism.off)
    return spec


def alone(spec: AttentionSpec, bias: str, hypothesis: str) -> AttentionSpec:
    """The same attention with every broken hypothesis restored but this one: what its failure alone costs."""
    return restore(spec, bias, set(broken(spec, bias)) - {hypothesis})


def null_dims(spec: AttentionSpec) -> range:
    """The dims of each head on which b_k has no effect: all of them (K1), those that partial rotary leaves alone (K4),
    or none."""
    match broken(spec, "k"):
        case ():
            return range(spec.head_size)
        case ("unrotated",) if spec.rotary is not None:
            return range(min(spec.rotary.dims, spec.head_size), spec.head_size)
    return range(0)
