"""certify reads off a configuration what audit measures on transformers' model of it, for random configurations."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibeft.atlas.rows import compared, row_of
from minibeft.audit.audit import audit_config
from minibeft.theory import mechanisms

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 100,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FLAG = st.booleans()
# Family → the keys that are drawn; others are SMALL's or transformers' defaults.
KEYS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "bert": {},
    "bloom": {"n_head": st.just(4), "slow_but_exact": FLAG, "pretraining_tp": st.sampled_from([1, 2])},
    "llama": {"attention_bias": FLAG, "num_key_value_heads": st.sampled_from([1, 2, 4]), "head_dim": st.just(8)},
    "gpt_neox": {"rotary_pct": st.sampled_from([0.25, 0.5, 1.0]), "attention_bias": FLAG},
    "qwen3": {"num_key_value_heads": st.sampled_from([1, 2]), "head_dim": st.sampled_from([4, 8])},
    "gemma2": {
        "attn_logit_softcapping": st.sampled_from([None, 5.0]), "num_key_value_heads": st.just(2),
        "head_dim": st.just(8), "sliding_window": st.sampled_from([4, 64]),
    },
    "phi": {"qk_layernorm": FLAG, "partial_rotary_factor": st.sampled_from([0.5, 1.0])},
    "deberta-v2": {"relative_attention": FLAG, "pos_att_type": st.sampled_from([[], ["c2p"], ["p2c"], ["p2c", "c2p"]])},
    "cohere": {"use_qk_norm": FLAG, "num_key_value_heads": st.just(2)},
    "stablelm": {"qk_layernorm": FLAG, "use_qkv_bias": FLAG, "num_key_value_heads": st.just(2)},
    "esm": {"position_embedding_type": st.sampled_from(["absolute", "rotary"]), "mask_token_id": st.just(3)},
}  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KEYS)))
    drawn = {key: draw(values) for key, values in KEYS[kind].items()}
    return {"model_type": kind, **SMALL, **drawn}


@settings(max_examples=8, deadline=None)
@given(configurations())
def test_certify_says_what_audit_measures(raw: dict[str, Any]):
    found = compared(row_of(raw["model_type"], audit_config(raw)))
    assert found["agrees"] is True, found
    assert found["unmeasured"] == 0


def test_a_certificate_that_forgets_rotation_disagrees(monkeypatch: pytest.MonkeyPatch):
    """Planted: certify overlooks the one mechanism that llama has."""
    found = row_of("llama", audit_config({"model_type": "llama", **SMALL}))
    assert compared(found)["agrees"] is True
    monkeypatch.setattr(
        mechanisms, "MECHANISMS", tuple(m for m in mechanisms.MECHANISMS if m.hypothesis != "unrotated")
    )
    assert compared(found)["agrees"] is False
