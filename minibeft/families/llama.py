"""LLaMA (LLaMA 2, DeepSeek-Coder) and Qwen2: pre-norm decoders with RMSNorm, gated MLP, rotary positions and GQA.

They differ in their biases: LLaMA has none unless attention_bias says all four, Qwen2 has q, k and v but not o.
"""

from typing import Any

from minibeft.families.family import Family, Reader


def shared(r: Reader) -> dict[str, Any]:
    """Heads and rotary positions."""
    heads, width = r.get("num_attention_heads", 32), r.get("hidden_size", 4096)
    size = r.get("head_dim", 0) or r.head_size(width, heads)
    return {"kv_heads": r.get("num_key_value_heads", heads), "head_size": size, "positions": r.rope(size)}


def derive_llama(r: Reader) -> dict[str, Any]:
    """Which biases exist is two switches."""
    attention = {"q", "k", "v", "o"} if r.get("attention_bias", False) else set()
    mlp = {"mlp"} if r.get("mlp_bias", False) else set()
    return shared(r) | {"biases": frozenset(attention | mlp)}


def derive_qwen2(r: Reader) -> dict[str, Any]:
    """Biases on q, k and v; a sliding window or a mixture of layer types is refused."""
    if any(kind != "full_attention" for kind in r.get("layer_types", [])):
        raise r.refuse("layer_types", "is not handled: only full_attention is")
    return shared(r) | {"biases": frozenset({"q", "k", "v"})}


NAMES = {
    "embed.tokens": "embed_tokens",
    "blocks.{i}.attention.q": "layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.k": "layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.v": "layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.o": "layers.{i}.self_attn.o_proj",
    "blocks.{i}.norm1": "layers.{i}.input_layernorm",
    "blocks.{i}.mlp.gate": "layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "layers.{i}.mlp.down_proj",
    "blocks.{i}.norm2": "layers.{i}.post_attention_layernorm",
    "norm": "norm",
}
KEYS = {
    "vocab_size": ("vocab", 32000),
    "hidden_size": ("width", 4096),
    "num_hidden_layers": ("layers", 32),
    "num_attention_heads": ("heads", 32),
    "intermediate_size": ("inner", 11008),
    "hidden_act": ("activation", "silu"),
    "rms_norm_eps": ("eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "pad_token_id": ("pad", None),
}
COPIES = {"lm_head.weight": "embed.tokens.weight"}
FIXED = {"norm": "rms", "residual": "pre", "causal": True, "gated": True, "tied": False}

LLAMA = Family(
    model_type="llama",
    architectures={"LlamaModel": "hidden", "LlamaForCausalLM": "lm"},
    prefix="model.",
    names=NAMES,
    heads={"lm": {"head": "lm_head"}},
    keys=KEYS,
    derive=derive_llama,
    inert=frozenset({"max_position_embeddings", "max_sequence_length"}),
    fixed=FIXED,
    spare=(r"rotary_emb\.inv_freq$",),
    copies=COPIES,
)
QWEN2 = Family(
    model_type="qwen2",
    architectures={"Qwen2Model": "hidden", "Qwen2ForCausalLM": "lm"},
    prefix="model.",
    names=NAMES,
    heads={"lm": {"head": "lm_head"}},
    keys=KEYS | {"vocab_size": ("vocab", 151936), "intermediate_size": ("inner", 22016)},
    derive=derive_qwen2,
    only={"use_sliding_window": (False,), "use_mrope": (False,)},
    inert=frozenset({"max_position_embeddings", "sliding_window", "max_window_layers"}),
    fixed=FIXED,
    spare=(r"rotary_emb\.inv_freq$",),
    copies=COPIES,
)
