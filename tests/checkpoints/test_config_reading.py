"""config.json and adapter_config.json: every spelling, what is not understood, what is refused; folders and the hub."""

import json
from typing import Any

import pytest
from hub_configs import BERT, GPT_OSS, GPTJ, LLAMA, NEOX, OPT, QWEN2, statuses

from minibeft.certificate.certify import certify
from minibeft.certificate.report import render
from minibeft.errors import BadInput
from minibeft.families import read_config


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
    ({**LLAMA, "rope_scaling": {"rope_type": "mrope"}}, "mrope"),
    ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({**LLAMA, "attention_bias": "yes"}, "attention_bias"),
    ({**LLAMA, "rope_theta": 0.0}, "rope_theta"),
    ({**LLAMA, "num_key_value_heads": 5}, "num_key_value_heads"),
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
    folder(base, adapter_config={"peft_type": "CARTRIDGE"})
    assert certify(base).findings[0].site.spec.prefix == 1
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

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(BadInput, match=r"some/model: no such folder, not in the hub's cache, .*no network here"):
        certify("some/model")


def test_a_hub_id_downloads_the_configuration_alone(monkeypatch, tmp_path):
    import huggingface_hub

    folder(tmp_path, config=OPT)
    asked = []

    def download(repository: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repository, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert certify("some/model").verdict("k").status == "null"
    assert asked == [("some/model", "model", ["config.json", "adapter_config.json"])]


# Keys of published configurations that cannot change what a layer computes, with values that are not off.
HARMLESS = {
    **dict.fromkeys("is_llama_config output_past xla_device _attn_implementation_autoset".split(), True),
    **dict.fromkeys("activation_checkpointing gradient_checkpointing unsloth_fixed summary_use_proj".split(), True),
    **dict.fromkeys("attn_implementation unsloth_attn_kernel language name summary_type".split(), "word"),
    **dict.fromkeys("n_ctx neftune_noise_alpha model_max_length".split(), 5),
    **{key: {"version": "3"} for key in ("sentence_transformers", "transformers.js_config", "task_specific_params")},
    "rope_interleaved": False,
    "sbert_ce_default_activation_function": "torch.nn.Identity",
    "partial_rotary_factor": 1.0,
}


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_cannot_change_the_computation_is_accepted(family, key):
    raw = {"model_type": family}
    config = read_config(raw | {key: HARMLESS[key]}, "hidden", "config.json")
    assert config == read_config(raw, "hidden", "config.json")
