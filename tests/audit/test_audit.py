"""audit finds, by intervention on transformers' models, what the theorems say: the mechanisms one by one."""

import sys
from typing import Any

import pytest

from minibeft.audit import measure, trace
from minibeft.audit.audit import Report, audit, audit_config
from minibeft.audit.report import dead_biases, finding
from minibeft.errors import BadInput

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 100,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
# Configuration → b_k's verdict, why, and b_v's.
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "bert": (SMALL, "null", "", "foldable"),
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
             "null", "", "foldable"),
    "longformer": ({**SMALL, "attention_window": 96}, "null", "", "foldable"),
    "bloom": ({**SMALL, "n_head": 4, "n_layer": 1, "slow_but_exact": True, "pretraining_tp": 2},
              "null", "", "not foldable"),
    "llama": (GROUPED, "active", "by position", "foldable"),
    "gpt_neox": ({**SMALL, "rotary_pct": 0.5}, "partly null", "by position", "foldable"),
    "qwen3": (GROUPED, "active", "through a nonlinearity", "foldable"),
    "gemma2": (GROUPED, "active", "through a nonlinearity", "foldable"),
    "gpt_oss": ({**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, "active", "by position", "not foldable"),
    "qwen3_next": (
        {
            **GROUPED, "layer_types": ["full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        },
        "active", "through a nonlinearity", "not foldable",
    ),
    "deberta-v2": ({**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "active", "by position",
                   "foldable"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_mechanism_is_found(kind: str):
    raw, key, why, value = CASES[kind]
    report = audit_config({"model_type": kind, **raw})
    assert report.layers
    for layer in report.layers:
        found = layer.found
        assert (found["q"].status, found["k"].status, found["k"].why, found["v"].status) == ("limited", key, why, value)
        assert (found["k"].largest_null or 0) < 1e-14
        assert (found["k"].smallest_active or 1) > 1e-9


def test_a_real_bert_is_null_in_every_coordinate():
    report = audit("minilm")
    assert [(layer.found["k"].status, layer.found["k"].without) for layer in report.layers] == [("null", 384)] * 6
    assert all(layer.found["v"].status == "foldable" for layer in report.layers)
    assert finding(report) == "b_k is null in 6 of 6 attention layers (2304 of 2304 coordinates)."
    assert dead_biases(report)["dead_entries"] == 2304
    assert all(0.01 < layer.biases["k"]["norm"] < 0.02 for layer in report.layers)


def test_a_slow_rotation_is_far_from_null():
    """Two planes with base 1e8; the slower one turns by 1e-4 per token."""
    raw = {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e8}, "head_dim": 4}
    found = audit_config({"model_type": "llama", **raw}).layers[0].found["k"]
    assert found.status == "active"
    assert (found.smallest_active or 0) > 3e-5


def bert() -> Report:
    return audit_config({"model_type": "bert", **SMALL})


def test_sums_that_do_not_cancel_are_not_null(monkeypatch: pytest.MonkeyPatch):
    """Planted: weights on a row that do not sum to zero."""
    monkeypatch.setattr(measure, "cancelling", lambda draws, over: draws.normal(*over.shape) * over)
    with pytest.raises(AssertionError):
        assert bert().layers[0].found["k"].status == "null"


def test_both_criteria_must_agree(monkeypatch: pytest.MonkeyPatch):
    """Planted: a softmax that a shared shift changes; redrawing b_k shows it, whatever the gradients say."""
    kept = trace.Tracer.softmax

    def felt(self: Any, func: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        lifted = logits + 0.1 * logits.detach().mean(-1, keepdim=True) * (logits > logits.mean())
        return kept(self, func, lifted, *args, **kwargs)

    monkeypatch.setattr(trace.Tracer, "softmax", felt)
    found = bert().layers[0].found["k"]
    assert found.status == "not measured"
    assert "and yet P moves" in found.why


def test_a_repository_with_its_own_code_is_refused():
    with pytest.raises(BadInput, match="own code is not run"):
        audit_config({"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}})


def test_without_attention_there_is_no_audit():
    raw = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 100, "intermediate_size": 32}
    with pytest.raises(BadInput, match="cannot be audited: it computes no softmax"):
        audit_config({"model_type": "fnet", **raw})


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"audit needs transformers: pip install 'minibeft\[audit\]'"):
        audit("minilm")
