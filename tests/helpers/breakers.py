"""For each hypothesis of the catalogue, attention that breaks it and nothing else: the theorems' negative twins."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from minibeft.theory.rotary import Rotary
from minibeft.theory.variants import AttentionSpec

# One key-value head of 16 dims serves two query heads: more dims than the 12 differences of two batches' 7 keys.
PLAIN = AttentionSpec(heads=2, kv_heads=1, head_size=16, width=6, causal=True)

# (bias, hypothesis, name of the mechanism, fields of AttentionSpec)
BREAKERS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("qk", "unrotated", "rotary", {"rotary": Rotary(16)}),
    ("qk", "unrotated", "interleaved rotary", {"rotary": Rotary(16, interleaved=True)}),
    ("qk", "unrotated", "partial rotary", {"rotary": Rotary(4)}),
    ("q", "no-relative-vectors", "relative_key", {"relative_query": True}),
    ("k", "no-relative-vectors", "relative_key_query", {"relative_key": True}),
    ("qk", "no-qk-norm", "RMSNorm", {"qk_norm": "rms"}),
    ("qk", "no-qk-norm", "LayerNorm", {"qk_norm": "layer"}),
    ("qk", "no-softcap", "soft-capping", {"softcap": 5.0}),
    ("qk", "softmax", "sigmoid", {"weighting": "sigmoid"}),
    ("qk", "softmax", "ReLU", {"weighting": "relu"}),
    ("qk", "softmax", "linear", {"weighting": "linear"}),
    ("kv", "no-sink", "learned sink", {"sink": "learned"}),
    ("kv", "no-sink", "softmax-off-by-one", {"sink": "one"}),
    ("k", "no-foreign-keys", "prefix tuning", {"prefix": 2}),
    ("k", "no-foreign-keys", "add_bias_kv", {"bias_kv": True}),
    ("k", "no-foreign-keys", "add_zero_attn", {"zero_key": True}),
    ("v", "no-foreign-values", "prefix tuning", {"prefix": 2}),
    ("v", "no-foreign-values", "add_bias_kv", {"bias_kv": True}),
    ("v", "no-foreign-values", "add_zero_attn", {"zero_key": True}),
    ("v", "rows-sum-to-one", "sigmoid", {"weighting": "sigmoid"}),
    ("v", "rows-sum-to-one", "ReLU", {"weighting": "relu"}),
    ("v", "rows-sum-to-one", "differential", {"differential": 0.3}),
    ("v", "raw-values", "value-norm", {"value_norm": True}),
    ("v", "ungated", "output gate", {"gate": True}),
    ("v", "raw-output", "norm before W_o", {"output_norm": True}),
)

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


def some(bias: Tensor | None) -> Tensor:
    """A bias that is there."""
    assert bias is not None
    return bias


def breaking(bias: str) -> list[tuple[str, AttentionSpec]]:
    """(hypothesis, attention that breaks it for this bias) for pytest.mark.parametrize."""
    return [(hypothesis, replace(PLAIN, **change)) for biases, hypothesis, _, change in BREAKERS if bias in biases]


def breaking_ids(bias: str) -> list[str]:
    """Their names."""
    return [f"{hypothesis}-{name}" for biases, hypothesis, name, _ in BREAKERS if bias in biases]


def harmless(bias: str) -> list[AttentionSpec]:
    """Attention that differs from the plain one and breaks nothing for this bias."""
    return [replace(PLAIN, **change) for biases, _, change in HARMLESS if bias in biases]


def harmless_ids(bias: str) -> list[str]:
    """Their names."""
    return [name for biases, name, _ in HARMLESS if bias in biases]
