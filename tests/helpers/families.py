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


def windows(pick: Pick) -> dict[str, Any]:
    """A sliding window in some of three layers, or none."""
    kinds = [pick("full_attention", "sliding_attention") for _ in range(3)]
    return {"sliding_window": pick(1, 3), "use_sliding_window": True, "layer_types": kinds}


DRAWN: dict[str, Callable[[Pick], dict[str, Any]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), encoder),
    "llama": lambda pick: llama(pick) | {"attention_bias": pick(True, False), "mlp_bias": pick(True, False)},
    "mistral": lambda pick: llama(pick) | {"sliding_window": pick(None, 1, 3)},
    "qwen2": lambda pick: {k: v for k, v in llama(pick).items() if k != "head_dim"} | windows(pick),
    "qwen3": lambda pick: llama(pick) | windows(pick) | {"attention_bias": pick(True, False)},
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
    return common | SIZES | DRAWN[family](Pick(seed))
