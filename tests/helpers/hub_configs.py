"""config.json as the hub has it, one for each shape that the readers know; only what attention needs."""

from typing import Any

from minibeft.certificate.certify import certify

BERT: dict[str, Any] = {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
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
