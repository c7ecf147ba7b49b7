"""certify: the verdicts, the hypotheses that it names, its witnesses; what it does not understand; what it refuses."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from minibeft.certify import certify, judge
from minibeft.certify_report import layer_range, render
from minibeft.errors import BadInput
from minibeft.layers import Rotary
from minibeft.reasons import KEY, QUERY, VALUE
from minibeft.scope import MECHANISMS, broken
from minibeft.theorems import HYPOTHESES, THEOREMS
from minibeft.variants import AttentionSpec
from minibeft.witness import small

BERT = {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
OPT = {**BERT, "model_type": "opt"}
GPTJ = {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary_dim": 64, "rotary": True}
LLAMA = {**BERT, "model_type": "llama", "rope_theta": 5e5, "num_key_value_heads": 4}
QWEN2 = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}
NEOX = {**BERT, "model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 24,
    "sliding_window": 128,
    "attention_bias": True,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0},
    "rope_theta": 150000,
}
T5 = {"model_type": "t5", "d_model": 512, "d_kv": 64, "num_heads": 8, "num_layers": 6, "is_encoder_decoder": True}


def statuses(config: dict[str, Any], **given: Any) -> str:
    """The three verdicts in one word: first letters of q, k, v."""
    return "".join(certify(config, **given).verdict(bias).status[0] for bias in "qkv")


def test_gpt_oss_b_k_is_active_and_b_v_is_not_foldable():
    c = certify(GPT_OSS)
    assert c.verdict("k").status == "active"
    assert c.verdict("k").broken == ("unrotated", "no-sink")
    assert c.verdict("v").status == "active"
    assert c.verdict("v").broken == ("no-sink",)
    assert "sink" in c.verdict("v").reason
    assert [(f.site.layers[:2], f.site.spec.window) for f in c.findings] == [((1, 3), None), ((0, 2), 128)]


def test_opt_b_k_is_null_and_b_v_foldable():
    c = certify(OPT)
    assert (c.verdict("k").status, c.verdict("k").theorem) == ("null", "K1")
    assert (c.verdict("v").status, c.verdict("v").theorem) == ("foldable", "V2")
    assert (c.verdict("q").status, c.verdict("q").theorem) == ("limited", "Q3")


def test_gptj_b_k_is_null_on_the_dims_that_do_not_turn():
    k = certify(GPTJ).verdict("k")
    assert k.status == "active"
    assert [(part.first, part.last, part.status) for part in k.dims] == [(0, 63, "active"), (64, 255, "null")]
    assert k.witness is not None
    assert k.witness.details["on the dims that are not rotated"] <= k.witness.allowed
    assert k.witness.details["on the rotated dims"] > 1e6 * k.witness.allowed
    assert k.present is False


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BERT, "lnf"),
        ({**BERT, "position_embedding_type": "relative_key"}, "lnf"),
        ({**BERT, "position_embedding_type": "relative_key_query"}, "laf"),
        (LLAMA, "laf"),
        (QWEN2, "laf"),
        ({**LLAMA, "model_type": "qwen3", "attention_bias": False}, "laf"),
        ({**LLAMA, "model_type": "gemma2"}, "laf"),
        (NEOX, "laf"),
        ({**NEOX, "rotary_pct": 0.0}, "lnf"),
        (T5, "lnf"),
        ({**T5, "is_encoder_decoder": False}, "lnf"),
    ],
)
def test_verdicts(config, expected):
    assert statuses(config) == expected


def test_relative_key_breaks_b_q_alone():
    c = certify({**BERT, "position_embedding_type": "relative_key"})
    assert c.verdict("q").broken == ("no-relative-vectors",)
    assert c.verdict("q").theorem == "Q7"
    assert c.verdict("k").broken == ()


def test_relative_vectors_are_in_self_attention_only():
    c = certify(
        {**BERT, "position_embedding_type": "relative_key_query", "is_decoder": True, "add_cross_attention": True}
    )
    assert [f.verdicts["k"].status for f in c.findings] == ["active", "null"]
    assert c.verdict("k").status == "active"


@pytest.mark.parametrize("spelling", [
    {"rotary_pct": 0.5},
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"partial_rotary_factor": 0.5}, "rotary_pct": 0.25},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.5},
])  # fmt: skip
def test_spellings_of_partial_rotary(spelling):
    config = {key: value for key, value in NEOX.items() if key != "rotary_pct"} | spelling
    assert [(part.first, part.last) for part in certify(config).verdict("k").dims] == [(0, 31), (32, 63)]


@pytest.mark.parametrize(("config", "key"), [
    ({**BERT, "model_type": "jamba"}, "jamba"),
    ({**BERT, "position_embedding_type": "alibi"}, "position_embedding_type"),
    ({**BERT, "auto_map": {"AutoModel": "modeling_x.XModel"}}, "auto_map"),
    ({**BERT, "attention_sink": True}, "attention_sink"),
    ({**BERT, "qk_norm": "rms"}, "qk_norm"),
    ({**BERT, "hidden_size": 770}, "hidden_size"),
    ({**BERT, "num_attention_heads": "12"}, "num_attention_heads"),
    ({"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12}, "num_hidden_layers"),
    ({**LLAMA, "rope_scaling": {"rope_type": "mrope"}}, "mrope"),
    ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({**LLAMA, "attention_bias": "yes"}, "attention_bias"),
    ({**LLAMA, "rope_theta": None}, "rope_theta"),
    ({**LLAMA, "num_key_value_heads": 5}, "key-value"),
    ({**NEOX, "rotary_pct": 0.05}, "rotary"),
    ({**GPTJ, "rotary_dim": None}, "rotary_dim"),
    ({**GPTJ, "rotary_dim": 512}, "rotary"),
    ({**GPTJ, "rotary": False}, "rotary"),
    ({**QWEN2, "use_sliding_window": True, "layer_types": ["linear_attention"] * 12}, "layer_types"),
    ({**GPT_OSS, "sliding_window": "128"}, "sliding_window"),
    ({**LLAMA, "model_type": "gemma2", "attn_logit_softcapping": 0}, "attn_logit_softcapping"),
])  # fmt: skip
def test_what_is_not_understood_is_unknown(config, key):
    c = certify(config)
    assert c.findings == ()
    assert c.unclear is not None
    assert key in c.unclear
    assert {c.verdict(bias).status for bias in "qkv"} == {"unknown"}
    assert key in "".join(str(part) for part in render(c))


def test_keys_that_do_not_matter_do_not_matter():
    """What hub configurations also carry: generation settings, precision, tokens, sizes of poolers."""
    noise = {"prefix": "</s>", "pooler_num_attention_heads": 12, "use_cache": True, "torch_dtype": "float16",
             "pruned_heads": {}, "architectures": ["X"], "id2label": {"0": "a"}, "gradient_checkpointing": False,
             "_attn_implementation_autoset": True, "max_position_embeddings": 512, "output_attentions": True,
             "task_specific_params": {"a": 1}, "quantization_config": {"bits": 4}}  # fmt: skip
    assert statuses(BERT | noise) == "lnf"


@pytest.mark.parametrize("config", [BERT, OPT, GPTJ, LLAMA, QWEN2, NEOX, GPT_OSS, T5], ids=lambda c: c["model_type"])
def test_prefix_tuning_breaks_the_foreign_hypotheses(config):
    c = certify(config, prefix=True)
    assert "no-foreign-keys" in c.verdict("k").broken
    assert "no-foreign-values" in c.verdict("v").broken
    assert (c.verdict("k").status, c.verdict("v").status) == ("active", "active")


def test_prefix_tuning_leaves_encoder_and_cross_attention_alone():
    by_site = {f.site.name: f.verdicts["k"].status for f in certify(T5, prefix=True).findings}
    assert by_site == {"encoder self-attention": "null", "decoder self-attention": "active", "cross-attention": "null"}


def folder(path, **files: Any):
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_folder_file_and_adapter(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    folder(base, config=OPT)
    assert certify(base).verdict("k").status == "null"
    assert certify(base / "config.json").verdict("k").status == "null"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20, "base_model_name_or_path": str(base)}
    folder(adapter, adapter_config=prefix)
    for model in (adapter, adapter / "adapter_config.json"):
        found = certify(model)
        assert found.verdict("k").broken == ("no-foreign-keys",)
        assert found.findings[0].site.spec.prefix == 20
    folder(base, adapter_config=prefix)
    assert certify(base).verdict("v").broken == ("no-foreign-values",)
    folder(base, adapter_config={"peft_type": "LORA"})
    assert certify(base).verdict("k").status == "null"
    folder(base, adapter_config={"peft_type": "ADAPTION_PROMPT"})
    assert "ADAPTION_PROMPT" in (certify(base).unclear or "")


def test_bad_input_is_one_line_that_names_file_and_key(tmp_path):
    cases: list[tuple[Any, str]] = [
        (tmp_path, "config.json: missing"),
        (tmp_path / "nowhere", "nowhere"),
        ({}, "model_type is missing"),
        ({"model_type": 3}, "model_type is missing"),
        (folder(tmp_path, broken="{'model_type'") / "broken.json", "broken.json: is not valid JSON"),
        (folder(tmp_path, many="[1, 2]") / "many.json", "must hold a JSON object"),
        (folder(tmp_path, typeless={"hidden_size": 3}) / "typeless.json", "typeless.json: model_type is missing"),
        (folder(tmp_path, lost={"peft_type": "LORA"}) / "lost.json", "base_model_name_or_path"),
    ]
    for model, message in cases:
        with pytest.raises(BadInput, match=message.replace(".", r"\.")) as error:
            certify(model)
        assert "\n" not in str(error.value)


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any):
        raise LocalEntryNotFoundError("no network here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(BadInput, match=r"some/model: no such folder, not in the cache, .*no network here"):
        certify("some/model")


def test_a_hub_id_downloads_the_configuration_alone(monkeypatch, tmp_path):
    import huggingface_hub

    folder(tmp_path, config=OPT)
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert certify("some/model").verdict("k").status == "null"
    assert asked == [("some/model", "config.json")]


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    """Any combination of mechanisms that makes sense."""
    rare = st.integers(0, 3).map(lambda n: n == 0)
    logits = draw(st.sampled_from(("softmax", "softmax", "softmax", "sigmoid", "relu", "linear")))
    has_logits = logits != "linear"
    return AttentionSpec(
        heads=draw(st.sampled_from((4, 8))),
        kv_heads=draw(st.sampled_from((1, 2, 4))),
        head_size=draw(st.sampled_from((8, 24, 64))),
        width=draw(st.sampled_from((16, 48))),
        causal=draw(st.booleans()),
        cross=draw(st.booleans()),
        rotary=Rotary(draw(st.sampled_from((2, 4, 8)))) if draw(rare) else None,
        position_bias=draw(st.sampled_from((None, "alibi", "learned"))),
        relative_query=draw(rare) and has_logits,
        relative_key=draw(rare) and has_logits,
        qk_norm=draw(st.sampled_from((None, None, "rms", "layer"))),
        softcap=draw(st.sampled_from((None, None, 3.0, 50.0))) if has_logits else None,
        weighting=logits,
        sink=draw(st.sampled_from((None, None, "learned", "one"))) if logits == "softmax" else None,
        prefix=draw(st.sampled_from((0, 0, 3))),
        bias_kv=draw(rare),
        zero_key=draw(rare),
        differential=draw(st.sampled_from((None, None, 0.4))),
        value_norm=draw(rare),
        gate=draw(rare),
        output_norm=draw(rare),
    )


@given(specs())
@settings(max_examples=60)
def test_verdicts_agree_with_their_witnesses(spec):
    """For any combination of mechanisms, 'null' and 'foldable' are witnessed and 'active' has a counterexample."""
    for bias, verdict in judge(spec).items():
        assert verdict.witness is not None
        if bias in "kv":
            assert verdict.witness.within == (verdict.status != "active"), (bias, verdict.broken, verdict.witness)
            # each broken hypothesis alone makes its counterexample appear
            for hypothesis, value in verdict.witness.by_hypothesis.items():
                assert value > 1e-9, (bias, hypothesis)
        elif verdict.status == "limited":
            assert verdict.witness.within, verdict.witness


@given(specs(), st.integers(1, 40))
def test_small_keeps_the_mechanism(spec, times):
    """The small instance has the same ratios and breaks the same hypotheses."""
    spec = replace(spec, heads=times * spec.heads, kv_heads=times * spec.kv_heads if times % 2 else spec.kv_heads)
    s = small(spec)
    assert s.heads / s.kv_heads == spec.heads / spec.kv_heads
    assert s.head_size <= spec.head_size
    if spec.rotary is not None and s.rotary is not None:
        assert s.rotary.dims * spec.head_size == spec.rotary.dims * s.head_size
        assert s.rotary.dims % 2 == 0
    for bias in "qkv":
        assert broken(s, bias) == broken(spec, bias)


def test_names_are_those_of_the_catalogue():
    assert set(KEY) == {m.hypothesis for m in MECHANISMS if "k" in m.biases}
    assert set(VALUE) == {m.hypothesis for m in MECHANISMS if "v" in m.biases}
    assert set(QUERY) == {m.hypothesis for m in MECHANISMS if "q" in m.biases}
    assert set(KEY) | set(VALUE) | set(QUERY) <= set(HYPOTHESES)
    assert set(KEY) | {"exact"} == set(THEOREMS["K1"].needs)
    assert set(VALUE) | {"visible-key"} == set(THEOREMS["V2"].needs)
    assert set(QUERY) == set(THEOREMS["Q4"].needs)


def test_notes_on_dropout_rank_and_missing_biases():
    v = certify({**LLAMA, "attention_dropout": 0.1}).verdict("v")
    text = " ".join(v.notes)
    assert "in expectation" in text
    assert "256 dimensions" in text  # 4 key-value heads of 64
    assert "V6" in text
    assert "folding creates one" in text
    assert "no b_v" in text
    assert v.witness is not None
    assert v.witness.details["max |row sum of P − 1| in training"] > 0.01
    assert "V4" in " ".join(certify(BERT).verdict("v").notes)


@pytest.mark.parametrize("config", [BERT, GPTJ, GPT_OSS, T5])
def test_report_and_json(config):
    c = certify(config)
    out = io.StringIO()
    console = Console(width=140, file=out)
    for part in render(c):
        console.print(part)
    text = out.getvalue()
    assert c.model_type in text
    for bias in "qkv":
        assert f"b_{bias}" in text
        assert c.verdict(bias).status in text
    written = json.loads(json.dumps(c.as_json()))
    assert written["verdicts"] == {bias: c.verdict(bias).status for bias in "qkv"}
    if config is GPTJ:
        assert "null on dims 64 to 255 of each head" in text
        assert written["findings"][0]["verdicts"]["k"]["dims"][1] == {"first": 64, "last": 255, "status": "null"}


def test_layer_range():
    assert layer_range((3,)) == "layer 3"
    assert layer_range((0, 1, 2)) == "layers 0 to 2"
    assert layer_range((1, 3, 5, 7)) == "layers 1, 3, …, 7"
    assert layer_range((0, 1, 5)) == "layers 0, 1, 5"
