"""The attention mechanisms that break a hypothesis of the catalogue: for which bias, why, and how to take them away.

The one table of them: certify's reasons, witnesses and the tests' negative twins are read from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from minibeft.theory.rotary import Rotary
from minibeft.theory.theorems import HYPOTHESES
from minibeft.theory.variants import AttentionSpec


@dataclass(frozen=True)
class Mechanism:
    """A mechanism breaks `hypothesis` where `on` says so; `off` takes it away.

    why       bias ("q", "k", "v") → why its statement fails. For q, that is the closed form (Q1) and blindness (Q4);
              how far b_q can reach is another question (Q2, Q3)
    examples  name → the fields of AttentionSpec that switch it on, for heads of 16 dims or more
    """

    hypothesis: str
    on: Callable[[AttentionSpec], bool]
    off: dict[str, Any]
    why: dict[str, str]
    examples: dict[str, dict[str, Any]]

    def __post_init__(self):
        assert self.hypothesis in HYPOTHESES, self.hypothesis


FOREIGN = {
    "on": lambda s: bool(s.prefix or s.bias_kv or s.zero_key),
    "off": {"prefix": 0, "bias_kv": False, "zero_key": False},
    "examples": {
        "prefix tuning": {"prefix": 2},
        "add_bias_kv": {"bias_kv": True},
        "add_zero_attn": {"zero_key": True},
    },
}
NOT_ONE = "not as it is: the weights of a row do not sum to one, so the shift is their sum times b_v"

MECHANISMS = (
    Mechanism(
        "unrotated",
        on=lambda s: s.rotary is not None and s.rotary.dims > 0,
        off={"rotary": None},
        why={
            "q": "rotary positions turn q after its bias, so its shift of the logits depends on i − j",
            "k": "rotary positions turn k after its bias, so q_i·R_{j−i} b_k depends on the distance to the key",
        },
        examples={
            "rotary": {"rotary": Rotary(16)},
            "interleaved rotary": {"rotary": Rotary(16, interleaved=True)},
            "partial rotary": {"rotary": Rotary(4)},
        },
    ),
    Mechanism(
        "no-relative-vectors",
        on=lambda s: s.relative_query,
        off={"relative_query": False},
        why={"q": "relative-position vectors multiply q, so its shift of the logits depends on i − j"},
        examples={"relative_key": {"relative_query": True}},
    ),
    Mechanism(
        "no-relative-vectors",
        on=lambda s: s.relative_key,
        off={"relative_key": False},
        why={"k": "relative-position vectors multiply k, so b_k·E_{i−j} depends on the distance to the key"},
        examples={"relative_key_query": {"relative_key": True}},
    ),
    Mechanism(
        "no-qk-norm",
        on=lambda s: s.qk_norm is not None,
        off={"qk_norm": None},
        why={
            "q": "q is normalised after its bias, so the shift of the logits depends on the query",
            "k": "k is normalised after its bias, which rescales each key differently",
        },
        examples={"RMSNorm": {"qk_norm": "rms"}, "LayerNorm": {"qk_norm": "layer"}},
    ),
    Mechanism(
        "no-softcap",
        on=lambda s: s.softcap is not None,
        off={"softcap": None},
        why={
            "q": "soft-capping bends the logits, so the shift depends on where they were",
            "k": "soft-capping bends the logits, so a shift of the row changes their differences",
        },
        examples={"soft-capping": {"softcap": 5.0}},
    ),
    Mechanism(
        "softmax",
        on=lambda s: s.weighting != "softmax",
        off={"weighting": "softmax"},
        why={
            "q": "the weights are no softmax, so b_q can change how much a row attends in all",
            "k": "the weights are no softmax, so they feel what a row's logits share",
        },
        examples={
            "sigmoid": {"weighting": "sigmoid"},
            "ReLU": {"weighting": "relu"},
            "linear": {"weighting": "linear"},
        },
    ),
    Mechanism(
        "no-sink",
        on=lambda s: s.sink is not None,
        off={"sink": None},
        why={
            "k": "the sink competes with the keys and does not carry b_k",
            "v": "not foldable: a sink takes mass m_i from row i, so the shift is (1 − m_i) b_v, "
            "another for each token",
        },
        examples={"learned sink": {"sink": "learned"}, "softmax-off-by-one": {"sink": "one"}},
    ),
    Mechanism(
        "no-foreign-keys",
        why={"k": "keys that no projection made (prefix, bias_kv, zero) compete and do not carry b_k"},
        **FOREIGN,
    ),
    # Linear attention divides by the sum of its weights, so it is no softmax but its rows do sum to one.
    Mechanism(
        "rows-sum-to-one",
        on=lambda s: s.weighting in ("sigmoid", "relu"),
        off={"weighting": "softmax"},
        why={"v": NOT_ONE},
        examples={"sigmoid": {"weighting": "sigmoid"}, "ReLU": {"weighting": "relu"}},
    ),
    Mechanism(
        "rows-sum-to-one",
        on=lambda s: s.differential is not None,
        off={"differential": None},
        why={"v": NOT_ONE},
        examples={"differential": {"differential": 0.3}},
    ),
    Mechanism(
        "raw-values",
        on=lambda s: s.value_norm,
        off={"value_norm": False},
        why={"v": "not foldable: values are normalised after their bias"},
        examples={"value-norm": {"value_norm": True}},
    ),
    Mechanism(
        "ungated",
        on=lambda s: s.gate,
        off={"gate": False},
        why={"v": "not foldable: a gate multiplies the output, and b_v with it"},
        examples={"output gate": {"gate": True}},
    ),
    Mechanism(
        "no-foreign-values",
        why={"v": "not foldable: foreign values (prefix, bias_kv, zero) take mass and do not carry b_v"},
        **FOREIGN,
    ),
    Mechanism(
        "raw-output",
        on=lambda s: s.output_norm,
        off={"output_norm": False},
        why={"v": "not foldable: a norm stands between the heads' outputs and W_o"},
        examples={"norm before W_o": {"output_norm": True}},
    ),
)


def reasons(spec: AttentionSpec, bias: str) -> dict[str, str]:
    """Each hypothesis that this attention breaks for b_q, b_k or b_v ("q", "k", "v") → why; in the catalogue's order.

    They are those of exact arithmetic at evaluation time: dropout on P is left to the verdict's notes.
    """
    found = {m.hypothesis: m.why[bias] for m in MECHANISMS if bias in m.why and m.on(spec)}
    return {key: found[key] for key in HYPOTHESES if key in found}


def broken(spec: AttentionSpec, bias: str) -> tuple[str, ...]:
    """The hypotheses that this attention breaks."""
    return tuple(reasons(spec, bias))


def restore(spec: AttentionSpec, bias: str, hypotheses: Iterable[str]) -> AttentionSpec:
    """The same attention with the mechanisms that break these hypotheses taken away."""
    for mechanism in MECHANISMS:
        if bias in mechanism.why and mechanism.hypothesis in hypotheses and mechanism.on(spec):
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
