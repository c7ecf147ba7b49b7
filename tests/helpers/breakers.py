"""The theorems' negative twins: for each mechanism of the table, plain attention with it and nothing else."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from minibeft.theory.mechanisms import MECHANISMS
from minibeft.theory.rotary import Rotary
from minibeft.theory.statements import Gap
from minibeft.theory.variants import AttentionSpec

# One key-value head of 16 dims serves two query heads: more dims than the 12 differences of two batches' 7 keys.
PLAIN = AttentionSpec(heads=2, kv_heads=1, head_size=16, width=6, causal=True)

# Mechanisms that break nothing for a bias.
HARMLESS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("kqv", "ALiBi", {"position_bias": "alibi"}),
    ("kqv", "learned position bias, scale 1 (T5)", {"position_bias": "learned", "scale": 1.0}),
    ("kqv", "sliding window", {"window": 3}),
    ("kqv", "cross-attention", {"cross": True, "causal": False}),
    ("kqv", "MQA", {"heads": 4}),
    ("k", "relative_key", {"relative_query": True}),
    ("k", "differential", {"differential": 0.3}),
    ("k", "value-norm", {"value_norm": True}),
    ("k", "output gate", {"gate": True}),
    ("v", "rotary", {"rotary": Rotary(16)}),
    ("v", "QK-norm", {"qk_norm": "rms"}),
    ("v", "soft-capping", {"softcap": 5.0}),
    ("v", "linear", {"weighting": "linear"}),
    ("q", "relative_key_query's part on k", {"relative_key": True}),
    ("q", "learned sink", {"sink": "learned"}),
    ("q", "value-norm", {"value_norm": True}),
)


def far_above(gap: Gap) -> bool:
    """The statement fails by a million times what rounding explains."""
    return bool(gap.value.max() > 1e6 * gap.allowed.max())


def some(bias: Tensor | None) -> Tensor:
    """A bias that is there."""
    assert bias is not None
    return bias


def breaking(bias: str) -> list[Any]:
    """(hypothesis, attention that breaks only this hypothesis for this bias), for pytest.mark.parametrize."""
    return [
        pytest.param(m.hypothesis, replace(PLAIN, **change), id=f"{m.hypothesis}-{name}")
        for m in MECHANISMS
        if bias in m.why
        for name, change in m.examples.items()
    ]


def harmless(bias: str) -> list[Any]:
    """Attention that differs from the plain one and breaks nothing for this bias."""
    return [pytest.param(replace(PLAIN, **change), id=name) for biases, name, change in HARMLESS if bias in biases]


def twins(bias: str) -> set[str]:
    """The hypotheses that the examples break for this bias."""
    return {m.hypothesis for m in MECHANISMS if bias in m.why and m.examples}
