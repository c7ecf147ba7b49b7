"""A random config.json of every family that load_model knows, small enough that a hundred of them are cheap."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tiny import architecture

from minibeft.models.config import Task

SIZES = {"vocab_size": 31, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


class Pick:
    """Choices from a seed, the same on every processor."""

    def __init__(self, seed: int):
        self.source = np.random.default_rng(seed)

    def __call__(self, *options: Any) -> Any:
        return options[int(self.source.integers(len(options)))]


def activation(pick: Pick) -> str:
    return pick("gelu", "gelu_new", "relu", "silu")


def encoder(pick: Pick) -> dict[str, Any]:
    """BERT and its kin."""
    heads = pick(1, 2, 3)
    return {
        "hidden_size": 6 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "intermediate_size": 13,
        "hidden_act": activation(pick),
        "type_vocab_size": pick(1, 2),
        "max_position_embeddings": 17,
        "layer_norm_eps": pick(1e-12, 1e-3),
    }


def image(pick: Pick) -> dict[str, Any]:
    """ViT and DINOv2."""
    return {
        "hidden_size": 12,
        "num_attention_heads": pick(1, 2, 3),
        "num_hidden_layers": 2,
        "hidden_act": activation(pick),
        "qkv_bias": pick(True, True, False),
        "layer_norm_eps": pick(1e-6, 1e-3),
        "image_size": 6,
        "num_channels": pick(1, 3),
    }


def llama(pick: Pick) -> dict[str, Any]:
    """LLaMA and its kin: MHA, GQA or MQA, every spelling and kind of rotary positions."""
    groups, ratio = pick(1, 2), pick(1, 2, 3)
    return {
        "hidden_size": 4 * groups * ratio,
        "num_attention_heads": groups * ratio,
        "num_key_value_heads": groups,
        "num_hidden_layers": 3,
        "intermediate_size": 13,
        "hidden_act": activation(pick),
        "rms_norm_eps": pick(1e-6, 1e-3),
        "max_position_embeddings": 64,
        "tie_word_embeddings": pick(True, False),
        "head_dim": pick(4, 8),
    } | rope(pick)


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def rope(pick: Pick) -> dict[str, Any]:
    """One kind of rotary positions."""
    theta = pick(100.0, 10_000.0)
    stretch = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 16, "truncate": pick(True, False)}
    return pick(
        {"rope_theta": theta},
        {"rope_theta": theta, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": theta, "rope_scaling": {"rope_type": "llama3", **stretch}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": theta, **yarn}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": theta, "attention_factor": 1.3, **yarn}},
    )


def gemma3_rope(pick: Pick) -> dict[str, Any]:
    """A base for each kind of layer, in the old spelling and the new."""
    far = {"rope_type": "linear", "factor": 8.0}
    return pick(
        {},
        {"rope_theta": 1000.0, "rope_local_base_freq": 100.0, "rope_scaling": far},
        {"rope_parameters": {"full_attention": far | {"rope_theta": 1000.0}, "sliding_attention": None}},
    )


def windows(pick: Pick) -> dict[str, Any]:
    """A sliding window in some of three layers, or none."""
    kinds = [pick("full_attention", "sliding_attention") for _ in range(3)]
    return {"sliding_window": pick(1, 3), "use_sliding_window": True, "layer_types": kinds}


DRAWN: dict[str, Callable[[Pick], dict[str, Any]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), encoder),
    "llama": lambda pick: llama(pick) | {"attention_bias": pick(True, False), "mlp_bias": pick(True, False)},
    "mistral": lambda pick: llama(pick) | {"sliding_window": pick(None, 1, 3)},
    "qwen2": lambda pick: without(llama(pick), "head_dim") | windows(pick),
    "qwen3": lambda pick: llama(pick) | windows(pick) | {"attention_bias": pick(True, False)},
    **dict.fromkeys(("data2vec-text", "ernie"), encoder),
    "electra": lambda pick: encoder(pick) | {"embedding_size": pick(6, 8, 18)},
    "distilbert": lambda pick: {
        "dim": 12,
        "n_heads": pick(1, 2, 3),
        "n_layers": 2,
        "hidden_dim": 13,
        "activation": pick("gelu", "relu"),
        "max_position_embeddings": 17,
    },
    "gpt2": lambda pick: {
        "n_embd": 12,
        "n_head": pick(1, 2, 3),
        "n_layer": 2,
        "n_inner": pick(None, 13),
        "n_positions": 17,
        "activation_function": activation(pick),
        "scale_attn_weights": pick(True, True, False),
        "tie_word_embeddings": pick(True, False),
    },
    "gpt_neox": lambda pick: {
        "hidden_size": 24,
        "num_attention_heads": pick(2, 3),
        "num_hidden_layers": 2,
        "intermediate_size": 13,
        "hidden_act": activation(pick),
        "rotary_pct": pick(0.25, 0.5, 1.0),
        "use_parallel_residual": pick(True, False),
        "attention_bias": pick(True, True, False),
        "layer_norm_eps": pick(1e-5, 1e-3),
    },
    "bloom": lambda pick: {"hidden_size": 18, "n_head": pick(1, 2, 3, 6), "n_layer": 2, "layer_norm_epsilon": 1e-4},
    "phi": lambda pick: {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": pick(1, 3),
        "num_hidden_layers": 2,
        "intermediate_size": 13,
        "partial_rotary_factor": pick(0.5, 1.0),
        "hidden_act": activation(pick),
    },
    "starcoder2": lambda pick: {
        **without(llama(pick), "head_dim", "rms_norm_eps"),
        "use_bias": pick(True, False),
        "sliding_window": pick(None, 3),
    },
    "smollm3": lambda pick: {
        **llama(pick),
        "attention_bias": pick(True, False),
        **pick({}, {"no_rope_layers": [1, 0, 1]}, {"no_rope_layers": [0, 0, 1], "no_rope_layer_interval": 2}),
        **pick({}, {"use_sliding_window": True, "sliding_window": 3}),
        "no_rope_layer_interval": 2,
    },
    "gemma": lambda pick: {**llama(pick), "attention_bias": pick(True, False)},
    "gemma2": lambda pick: {
        **without(llama(pick), "hidden_act"),
        "hidden_activation": activation(pick),
        "query_pre_attn_scalar": pick(4, 9),
        "sliding_window": 3,
        "attn_logit_softcapping": pick(None, 2.0, 50.0),
        "final_logit_softcapping": pick(None, 1.0, 30.0),
        "attention_bias": pick(True, False),
    },
    "gemma3_text": lambda pick: {
        **without(llama(pick), "hidden_act", "rope_theta", "rope_scaling", "rope_parameters"),
        **gemma3_rope(pick),
        "hidden_activation": activation(pick),
        "query_pre_attn_scalar": pick(4, 9),
        "sliding_window": 3,
        "final_logit_softcapping": pick(None, 30.0),
        "attention_bias": pick(True, False),
        **pick({"sliding_window_pattern": 2}, {"layer_types": ["full_attention", "sliding_attention"] * 2}),
        "num_hidden_layers": 4,
    },
    "vit": lambda pick: image(pick) | {"intermediate_size": 13, "patch_size": pick(2, [2, 3])},
    "dinov2": lambda pick: image(pick) | {"mlp_ratio": pick(1, 2), "patch_size": 2, "image_size": pick(6, 4)},
    "whisper": lambda pick: {
        "d_model": 12,
        "encoder_attention_heads": pick(1, 2, 3),
        "encoder_layers": 2,
        "encoder_ffn_dim": 13,
        "activation_function": activation(pick),
        "num_mel_bins": 5,
        "max_source_positions": 7,
        "classifier_proj_size": pick(7, 12),
        "decoder_layers": 1,
        "decoder_ffn_dim": 13,
    },
    "opt": lambda pick: {
        "hidden_size": 12,
        "word_embed_proj_dim": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": pick(1, 2, 3),
        "ffn_dim": 13,
        "activation_function": activation(pick),
        "max_position_embeddings": 17,
        "enable_bias": pick(True, False),
    },
    "gptj": lambda pick: {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "rotary_dim": pick(2, 4, 8),
        "n_inner": pick(None, 13),
        "activation_function": activation(pick),
    },
}


def drawn(family: str, task: Task, seed: int) -> dict[str, Any]:
    """A config.json of this family whose `architectures` names this task."""
    common = {"model_type": family, "architectures": [architecture(family, task)]}
    config = DRAWN[family](Pick(seed))
    return common | ({} if "image_size" in config else SIZES) | config
