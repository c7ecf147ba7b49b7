"""A configuration value that is not handled is refused with its file, its key and what would be handled."""

import json
from pathlib import Path
from typing import Any

import pytest
from damage import config, lay, outcome, refusal, sound
from hypothesis import given
from hypothesis import strategies as st
from tiny import BERTS, CONFIGS

from minibeft.families import BODIES, FAMILIES

EVERY: list[tuple[dict[str, Any], str]] = [
    ({"is_decoder": True}, "is_decoder = True is not handled: only False is"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder = True is not handled"),
    ({"add_cross_attention": True}, "add_cross_attention = True is not handled"),
    ({"cross_attention_hidden_size": 5}, "cross_attention_hidden_size = 5 is not handled"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads = {'0': [1]} is not handled"),
    ({"qk_norm": True}, "qk_norm = True is a key that minibeft does not know; remove it if it changes nothing"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is a key that minibeft does not know"),
    ({"vocab_size": "40"}, "vocab_size = '40' must be of type int"),
    ({"vocab_size": 40.0}, "vocab_size = 40.0 must be of type int"),
    ({"vocab_size": True}, "vocab_size = True must be of type int"),
    ({"vocab_size": 0}, "vocab_size = 0 must be at least 1"),
    ({"vocab_size": -40}, "vocab_size = -40 must be at least 1"),
    ({"vocab_size": 2**70}, "vocab_size = 1180591620717411303424 must be"),
    ({"pad_token_id": "<pad>"}, "pad_token_id = '<pad>' must be of type int"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
    ({"architectures": "BertModel"}, "architectures = 'BertModel' must be a list of class names"),
    ({"architectures": [1]}, "architectures = [1] must be a list of class names"),
    ({"architectures": ["BertForPonies"]}, "architectures names BertForPonies, a head unknown here; task='hidden'"),
    ({"num_labels": 0}, "labels = 0 must be at least 1"),
    ({"id2label": ["yes", "no"]}, "id2label = ['yes', 'no'] must be of type dict"),
]
ENCODER: list[tuple[dict[str, Any], str]] = [
    (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type = 'relative_key' is not handled: only 'absol",
    ),
    ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not handled: only True is"),
    ({"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu' must be one of gelu, "),
    ({"hidden_size": 25}, "hidden_size = 25 is not a multiple of 4 attention heads"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0 must be at least 1"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob = 1.0 must be at least 0 and less than 1"),
    ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob = -0.1 must be at least 0"),
    ({"classifier_dropout": "0.1"}, "classifier_dropout = '0.1' must be of type float"),
    ({"layer_norm_eps": 0}, "layer_norm_eps = 0 must be between 0 and 1"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps = nan must be between 0 and 1"),
    ({"type_vocab_size": -1}, "type_vocab_size = -1 must be at least 0"),
    ({"max_position_embeddings": 0}, "max_position_embeddings = 0 must be at least 1"),
]
ROPE = "is not handled: only the rope types default, linear, llama3, yarn are"
ROTARY: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, ROPE),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}, "rope_parameters": None}, ROPE),
    (
        {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None},
        "factor, which is not given, must be a positive",
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
        "rope_theta = 1.0 must be more than 1 for the rope type yarn",
    ),
    (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "low_freq_factor, which is not given, must be a positive number",
    ),
    (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
        "high_freq_factor = 4 must be more than low_freq_factor",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor = 0.5 is not handled",
    ),
    (
        {"rope_scaling": {"type": "linear"}, "rope_parameters": None},
        "factor, which is not given, must be a positive number",
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "4"}},
        "factor = '4' must be of type",
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -4}},
        "factor = -4 must be a positive",
    ),
    ({"rope_parameters": {"rope_theta": 0.0}}, "rope_theta = 0.0 must be a positive number"),
    ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta = nan must be a positive number"),
    ({"rope_parameters": "default"}, "rope_parameters = 'default' must be of type dict"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not handled: this family turns whole heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide the 4 heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads = 0 must be at least 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1 must be at least 1"),
]
VALUES: dict[str, list[tuple[dict[str, Any], str]]] = {
    **dict.fromkeys(BERTS, ENCODER),
    "roberta": [*ENCODER, ({"pad_token_id": 50}, "max_position_embeddings and pad_token_id leave no position")],
    "opt": [
        ({"do_layer_norm_before": False}, "do_layer_norm_before = False is not handled: only True is"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True is not handled"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False is not handled"),
        ({"layerdrop": 0.1}, "layerdrop = 0.1 is not handled: only 0.0 is"),
        ({"activation_dropout": 0.1}, "activation_dropout = 0.1 is not handled"),
        ({"word_embed_proj_dim": 12}, "word_embed_proj_dim = 12 is not handled: it must equal hidden_size = 24"),
        ({"enable_bias": "yes"}, "enable_bias = 'yes' must be of type bool"),
    ],
    "llama": [
        *ROTARY,
        ({"head_dim": 5}, "leaves 5 rotary dims, which must be even"),
        ({"head_dim": -2}, "head_dim = -2 must be at least 1"),
        ({"attention_bias": 1}, "attention_bias = 1 must be of type bool"),
    ],
    "qwen2": [
        *ROTARY,
        ({"layer_types": ["full_attention", "sliding_attention"]}, "without a window only full_attention is"),
        ({"layer_types": [["full_attention"]]}, "is not handled: only 2 of full_attention and"),
        ({"use_mrope": True}, "use_mrope = True is not handled"),
    ],
    "mistral": [
        *ROTARY,
        ({"sliding_window": 0}, "sliding_window = 0 must be at least 1"),
        ({"attention_bias": True}, "attention_bias = True is a key that minibeft does not know"),
    ],
    "gptj": [
        ({"rotary": False}, "rotary = False is not handled: only True is"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False is not handled"),
        ({"rotary_dim": None}, "rotary_dim = None must be even and between 2 and the head size 6"),
        ({"rotary_dim": 3}, "rotary_dim = 3 must be even and between 2 and the head size 6"),
        ({"rotary_dim": 8}, "rotary_dim = 8 must be even and between 2 and the head size 6"),
        ({"n_inner": 0}, "n_inner = 0 must be at least 1"),
    ],
}


@pytest.mark.parametrize("family", CONFIGS)
def test_configuration_values(family: str, tmp_path: Path):
    for changes, message in EVERY + VALUES[family]:
        lay(tmp_path, family)
        config(**changes)(tmp_path)
        text = refusal(tmp_path)
        assert message in text
        assert text.startswith(str(tmp_path / "config.json"))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 60) | st.floats() | st.sampled_from(["", "linear", "silu", "24"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "factor", "0"]), inner),
    max_leaves=3,
)


@given(data=st.data())
def test_any_configuration_loads_or_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """Any value under any key that a family knows: never another error."""
    name = data.draw(st.sampled_from(list(CONFIGS)))
    family = BODIES[name]
    known = [
        *json.loads(sound(name)["config.json"]),
        *family.keys,
        *family.only,
        *FAMILIES[name].attention.names,
        "rope_scaling",
        "sliding_window",
        "layer_types",
        "id2label",
    ]
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(known)), values, min_size=1, max_size=2))
    folder = lay(tmp_path_factory.mktemp("any"), name)
    config(**changes)(folder)
    assert str(folder) in outcome(folder)
