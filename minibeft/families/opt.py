"""OPT: pre-norm decoder with ReLU, learned positions from offset 2, biases everywhere unless enable_bias is off."""

from typing import Any

from minibeft.families.family import Family, Reader
from minibeft.models.layers import Learned


def derive(r: Reader) -> dict[str, Any]:
    """Heads, positions and biases; OPT-350m's embedding projection is refused."""
    heads, width = r.get("num_attention_heads", 12), r.get("hidden_size", 768)
    if r.get("word_embed_proj_dim", width) != width:
        raise r.refuse("word_embed_proj_dim", f"is not handled: it must equal hidden_size = {width}")
    return {
        "kv_heads": heads,
        "head_size": r.head_size(width, heads),
        "positions": Learned(rows=r.get("max_position_embeddings", 2048) + 2, start=2, counted="mask"),
        "biases": frozenset({"q", "k", "v", "o", "mlp"} if r.get("enable_bias", True) else ()),
    }


OPT = Family(
    model_type="opt",
    architectures={"OPTModel": "hidden", "OPTForCausalLM": "lm"},
    prefix="model.",
    names={
        "embed.tokens": "decoder.embed_tokens",
        "embed.positions": "decoder.embed_positions",
        "blocks.{i}.attention.q": "decoder.layers.{i}.self_attn.q_proj",
        "blocks.{i}.attention.k": "decoder.layers.{i}.self_attn.k_proj",
        "blocks.{i}.attention.v": "decoder.layers.{i}.self_attn.v_proj",
        "blocks.{i}.attention.o": "decoder.layers.{i}.self_attn.out_proj",
        "blocks.{i}.norm1": "decoder.layers.{i}.self_attn_layer_norm",
        "blocks.{i}.mlp.up": "decoder.layers.{i}.fc1",
        "blocks.{i}.mlp.down": "decoder.layers.{i}.fc2",
        "blocks.{i}.norm2": "decoder.layers.{i}.final_layer_norm",
        "norm": "decoder.final_layer_norm",
    },
    heads={"lm": {"head": "lm_head"}},
    keys={
        "vocab_size": ("vocab", 50272),
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("layers", 12),
        "num_attention_heads": ("heads", 12),
        "ffn_dim": ("inner", 3072),
        "activation_function": ("activation", "relu"),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.0),
        "pad_token_id": ("pad", 1),
    },
    derive=derive,
    only={
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
        "layerdrop": (0.0,),
        "activation_dropout": (0.0,),
    },
    inert=frozenset({"init_std"}),
    copies={"lm_head.weight": "embed.tokens.weight"},
    fixed={"norm": "layer", "eps": 1e-5, "residual": "pre", "causal": True, "tied": True},
)
