"""On random configurations of every family that load_model knows, certify says what audit measures on transformers'
model of it; tests/families compares logits and the gradients of each bias on the same configurations."""

import pytest
from families import drawn

from minibeft.atlas.rows import compared, row_of
from minibeft.audit.audit import audit_config
from minibeft.families import BODIES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", BODIES)
def test_certify_says_what_audit_measures(family: str, seed: int):
    """With enough positions for audit's inputs, and windows of more than one key; others cannot be measured."""
    raw = drawn(family, "hidden", seed)
    raw |= {key: 64 for key in ("max_position_embeddings", "n_positions") if key in raw}
    raw |= {"architectures": ["WhisperModel"], "decoder_attention_heads": 2} if family == "whisper" else {}
    raw |= {"sliding_window": 3} if raw.get("sliding_window") == 1 else {}
    found = compared(row_of(family, audit_config(raw)))
    assert found["agrees"] is True, found
