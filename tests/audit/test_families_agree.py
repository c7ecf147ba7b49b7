"""On random configurations of every family that load_model knows, certify says what audit measures on transformers' model
of it; tests/families compares logits and the gradients of each bias on the same configurations."""

import pytest
from families import drawn

from minibeft.atlas.rows import compared, row_of
from minibeft.audit.audit import audit_config
from minibeft.families import BODIES

QUICK = ("bert", "gpt2", "bloom", "smollm3", "gemma3_text", "vit", "dinov2")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BODIES]
)
def test_certify_says_what_audit_measures(family: str, seed: int):
    raw = drawn(family, "hidden", seed)
    raw |= {"architectures": ["WhisperModel"], "decoder_attention_heads": 2} if family == "whisper" else {}
    found = compared(row_of(family, audit_config(raw)))
    assert found["agrees"] is True, found
