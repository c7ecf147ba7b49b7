"""certify and load_model read the same attention from any config.json, and refuse the same; defaults are transformers'.

The keys that say something about attention are drawn absent, null, as transformers has them by default, and odd.
"""

from dataclasses import replace
from typing import Any

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import CONFIGS

from minibeft.certificate.certify import certify
from minibeft.errors import BadInput
from minibeft.families import BODIES, FAMILIES, read_config
from minibeft.families.attention import EXACT, Site
from minibeft.families.reading import Unclear
from minibeft.models.config import ModelConfig
from minibeft.theory.mechanisms import broken

ABSENT = object()
COUNTS = [ABSENT, None, 1, 2, 3, 4, 6, 0, -2, True, 4.0, "4"]
FLAGS = [ABSENT, None, True, False, 0, 1, "yes"]
SHARES = [ABSENT, None, 0, 0.0, 0.1, 1.0, 1, -0.1, True, "0.1", float("nan")]
KINDS = ["full_attention", "sliding_attention", "linear_attention", None]
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "yarn", "llama3", "mrope", None, 3]),
        "type": st.sampled_from(["default", "linear", "dynamic"]),
        "factor": st.sampled_from([2.0, 4, 0, -1.0, "2", None]),
        "rope_theta": st.sampled_from([100.0, 10_000, 0, None, float("inf"), True]),
        "partial_rotary_factor": st.sampled_from([1.0, 1, 0.5, 0.0, 2.0, None]),
        "mrope_section": st.sampled_from([[1, 1], None]),
    },
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        "hidden_size num_attention_heads num_hidden_layers num_key_value_heads head_dim rotary_dim sliding_window "
        "max_window_layers".split(),
        st.sampled_from(COUNTS),
    ),
    **dict.fromkeys(
        "attention_bias enable_bias use_sliding_window is_decoder add_cross_attention rotary scale_attn_weights "
        "rope_interleaved is_llama_config qk_norm attention_sink qkv_bias use_alibi".split(),
        st.sampled_from(FLAGS),
    ),
    **dict.fromkeys(
        "attention_dropout attention_probs_dropout_prob attn_pdrop partial_rotary_factor".split(),
        st.sampled_from(SHARES),
    ),
    "rope_theta": st.sampled_from([ABSENT, None, 100.0, 10_000, 0.0, "10000", True]),
    "rope_scaling": st.sampled_from([ABSENT, None, {}, "linear", []]) | ROPE,
    "rope_parameters": st.sampled_from([ABSENT, None, {}, "linear", {"full_attention": {}}]) | ROPE,
    "layer_types": st.sampled_from([ABSENT, None, [], [["full_attention"]], 2]) | st.lists(st.sampled_from(KINDS)),
    "position_embedding_type": st.sampled_from([ABSENT, None, "absolute", "relative_key", "alibi", 0]),
    "attn_implementation": st.sampled_from([ABSENT, "sdpa"]),
    "_attn_implementation": st.sampled_from([ABSENT, "sdpa"]),
    "_attention_scale": st.sampled_from([ABSENT, None, 1.0, 2.0]),
    "neftune_noise_alpha": st.sampled_from([ABSENT, 5]),
}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A small configuration of any family that runs, with up to four of these keys changed."""
    family = draw(st.sampled_from(sorted(CONFIGS)))
    raw = {"model_type": family, **CONFIGS[family]}
    keys = sorted({*VALUES, *(key for name in FAMILIES[family].attention.names for key in name.split("|"))})
    for key in draw(st.lists(st.sampled_from(keys), max_size=4, unique=True)):
        value = draw(VALUES.get(key, st.sampled_from(COUNTS)))
        raw = {k: v for k, v in raw.items() if k != key} if value is ABSENT else raw | {key: value}
    return raw


def certified(raw: dict[str, Any]) -> list[Site] | None:
    try:
        return FAMILIES[raw["model_type"]].sites(raw, "config.json")
    except Unclear:
        return None


def loaded(raw: dict[str, Any]) -> ModelConfig | None:
    try:
        return read_config(raw, "hidden", "config.json")
    except BadInput:
        return None


def runs(raw: dict[str, Any], sites: list[Site]) -> bool:
    """Whether models/ has this attention, said by another way than the loader's: by the theorems' hypotheses that it
    breaks (rotary positions, QK-norm and caps it has), and by the few values that certify understands and models/ does
    not have."""
    mechanisms = {h for site in sites for bias in "qkv" for h in broken(site.spec, bias)}
    scaling = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    return (
        mechanisms <= {"unrotated", "no-qk-norm", "no-softcap"}
        and not any(site.spec.cross or site.spec.qk_norm == "layer" for site in sites)
        and (sites[0].spec.rotary is None or kind in EXACT)
        and (kind not in ("llama3", "yarn") or bool(raw.get("max_position_embeddings")))
        and not raw.get("is_decoder")
    )


@given(configurations())
@example({"model_type": "llama", **CONFIGS["llama"], "rope_theta": None})
@example({"model_type": "llama", **CONFIGS["llama"], "num_key_value_heads": None, "attention_bias": None})
@example({"model_type": "llama", **CONFIGS["llama"], "partial_rotary_factor": 1.0, "rope_interleaved": False})
@example({"model_type": "qwen2", **CONFIGS["qwen2"], "layer_types": ["full_attention", "sliding_attention"]})
@example({"model_type": "mistral", **CONFIGS["mistral"], "sliding_window": 4})
@example({"model_type": "bert", **CONFIGS["bert"], "hidden_size": 6, "num_attention_heads": True})
@example({"model_type": "gptj", **CONFIGS["gptj"], "_attention_scale": 2.0})
def test_one_refuses_iff_the_other_does_and_both_read_the_same(raw: dict[str, Any]):
    sites, config = certified(raw), loaded(raw)
    expected = sites is not None and runs(raw, sites)
    assert (config is not None) == expected or body_refuses(raw)
    if config is None or sites is None:
        return
    assert {i: site.spec for site in sites for i in site.layers} == dict(enumerate(config.attention))
    assert all(site.spec.biases == config.biases & set("qkvo") for site in sites)


def body_refuses(raw: dict[str, Any]) -> bool:
    """What only OPT's body asks for: that the embedding be as wide as the model."""
    return raw["model_type"] == "opt" and raw.get("hidden_size") != raw["word_embed_proj_dim"]


def unstretched(sites: list[Site]) -> list[Site]:
    """Without what yarn does to the frequencies."""
    turns = [site.spec.rotary and replace(site.spec.rotary, stretch=None, gain=1.0) for site in sites]
    return [replace(s, exact=True, spec=replace(s.spec, rotary=t)) for s, t in zip(sites, turns, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_have_transformers_defaults(family: str):
    """An empty config.json is read as transformers' default configuration, written out whole, is."""
    whole = transformers.CONFIG_MAPPING[family]().to_dict()
    # transformers writes null for a window that is switched off, and yarn's type for gpt-oss.
    empty = {"model_type": family}
    assert unstretched(FAMILIES[family].sites(empty, "")) == unstretched(FAMILIES[family].sites(whole, ""))
    if family in BODIES:
        assert read_config(empty, "hidden", "") == read_config(whole | {"architectures": []}, "hidden", "")


# The keys whose null has a meaning of its own: transformers' code then does something else than by default.
NULLABLE = {
    "final_logit_softcapping",
    "num_key_value_heads",
    "head_dim",
    "d_kv",
    "sliding_window",
    "attn_logit_softcapping",
    "rotary_dim",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_null_means_absent(family: str):
    whole = transformers.CONFIG_MAPPING[family]().to_dict()
    for key in whole.keys() - NULLABLE - {"model_type"}:
        absent = {k: v for k, v in whole.items() if k != key}
        assert certified(absent | {key: None}) == certified(absent), key
        if family in BODIES:
            assert loaded(absent | {key: None}) == loaded(absent), key


@pytest.mark.parametrize(("family", "key", "field"), [
    ("mistral", "sliding_window", "window"), ("gemma2", "attn_logit_softcapping", "softcap"),
])  # fmt: skip
def test_null_switches_off(family: str, key: str, field: str):
    sites = FAMILIES[family].sites
    assert any(getattr(site.spec, field) for site in sites({"model_type": family}, ""))
    assert not any(getattr(site.spec, field) for site in sites({"model_type": family, key: None}, ""))


def test_null_heads_are_as_many_as_heads():
    config = {"model_type": "mistral", "num_key_value_heads": None}
    assert {site.spec.kv_heads for site in FAMILIES["mistral"].sites(config, "")} == {32}


HARMLESS: dict[str, Any] = {
    "rope_interleaved": False, "is_llama_config": True, "unsloth_fixed": True, "unsloth_version": "2024.9",
    "output_past": True, "language": "en", "name": "x", "attn_implementation": "sdpa", "_attn_implementation": "eager",
    "_flash_attn_2_enabled": True, "sentence_transformers": {"version": "3.0"}, "xla_device": True, "n_ctx": 2048,
    "sbert_ce_default_activation_function": "torch.nn.Identity", "transformers.js_config": {"kv_cache_dtype": {"a": 1}},
    "summary_activation": "tanh", "summary_use_proj": True, "neftune_noise_alpha": 5, "_name_or_path": "a/b",
    "residual_multiplier": 1.0, "gradient_checkpointing": True, "temperature": 0.6, "max_sequence_length": 2048,
    "output_attentions": True, "output_hidden_states": True, "pooler_fc_size": 768, "decoder_start_token_id": 2,
    "pretraining_tp": 2, "task_specific_params": {"a": 1}, "tokenizer_class": "X", "pruned_heads": {},
    "mask_token_id": 4,
}  # fmt: skip
# Of configuration classes and forks beside ours: each changes what a layer computes.
CHANGING: dict[str, Any] = {
    "rope_interleaved": True, "qk_norm": True, "use_qk_norm": True, "clip_qkv": 8.0, "attention_multiplier": 0.01,
    "residual_multiplier": 0.2, "embedding_multiplier": 12, "logits_scaling": 8, "logit_scale": 0.06,
    "scale_depth": 1.4,
    "final_logit_softcapping": 30.0, "use_parallel_residual": True, "parallel_attn": True, "alibi": True,
    "num_local_experts": 8, "moe_intermediate_size": 8, "no_rope_layers": [1], "multi_query": True, "hidden_activation":
    "gelu", "quantization_config": {"bits": 4}, "embedding_size": 8, "attn_temperature_tuning": 4, "q_lora_rank": 8,
    "layernorm_zero_centered": True, "key_query_shared_bottleneck": True, "_remove_norm": True, "use_rel_pos": True,
    "apply_residual_connection_post_layernorm": True, "is_causal": True, "attention_sink": True, "value_residual": True,
    "norm_after": True, "qkNorm": True, "attention_window": [4], "mamba_d_state": 8, "conv_kernel": 4,
    "shared_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_what_cannot_change_the_computation_is_accepted(family: str):
    raw = {"model_type": family, **CONFIGS[family]}
    for key, value in HARMLESS.items():
        assert loaded(raw | {key: value}) == loaded(raw), key
        assert certified(raw | {key: value}) == certified(raw), key


@pytest.mark.parametrize("family", CONFIGS)
def test_what_sounds_like_the_computation_is_refused_by_name(family: str):
    raw = {"model_type": family, **CONFIGS[family]}
    assert loaded(raw) is not None
    for key, value in CHANGING.items():
        with pytest.raises(BadInput, match=f"config.json: {key} = "):
            read_config(raw | {key: value}, "hidden", "config.json")


def test_a_window_of_one_token_is_certified():
    """A row that sees one key: b_q does nothing, and the witness says 0."""
    found = certify({"model_type": "mistral", **CONFIGS["mistral"], "sliding_window": 1}).verdict("q")
    assert found.witness is not None
    assert found.witness.value == 0.0
    assert found.witness.within
