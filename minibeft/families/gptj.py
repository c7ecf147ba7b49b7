"""GPT-J: parallel residual, interleaved rotary on the first rotary_dim entries of each head, no attention biases."""

from typing import Any

from minibeft.families.family import Family, Reader
from minibeft.theory.rotary import Rotary


def derive(r: Reader) -> dict[str, Any]:
    """Heads, partial rotary positions, and the MLP's width."""
    heads, width, dims = r.get("n_head", 16), r.get("n_embd", 4096), r.get("rotary_dim", 64)
    size = r.head_size(width, heads)
    if not 0 < dims <= size or dims % 2 or r.raw.get("rotary_dim", 64) is None:
        raise r.refuse("rotary_dim", f"must be even and between 2 and the head size {size}")
    return {
        "kv_heads": heads,
        "head_size": size,
        "inner": r.get("n_inner", 4 * width),
        "positions": Rotary(dims, interleaved=True),
    }


GPTJ = Family(
    model_type="gptj",
    architectures={"GPTJModel": "hidden", "GPTJForCausalLM": "lm"},
    prefix="transformer.",
    names={
        "embed.tokens": "wte",
        "blocks.{i}.attention.q": "h.{i}.attn.q_proj",
        "blocks.{i}.attention.k": "h.{i}.attn.k_proj",
        "blocks.{i}.attention.v": "h.{i}.attn.v_proj",
        "blocks.{i}.attention.o": "h.{i}.attn.out_proj",
        "blocks.{i}.norm1": "h.{i}.ln_1",
        "blocks.{i}.mlp.up": "h.{i}.mlp.fc_in",
        "blocks.{i}.mlp.down": "h.{i}.mlp.fc_out",
        "norm": "ln_f",
    },
    heads={"lm": {"head": "lm_head"}},
    keys={
        "vocab_size": ("vocab", 50400),
        "n_embd": ("width", 4096),
        "n_layer": ("layers", 28),
        "n_head": ("heads", 16),
        "activation_function": ("activation", "gelu_new"),
        "resid_pdrop": ("dropout", 0.0),
        "embd_pdrop": ("embedding_dropout", 0.0),
        "attn_pdrop": ("attention_dropout", 0.0),
        "layer_norm_epsilon": ("eps", 1e-5),
        "pad_token_id": ("pad", None),
    },
    derive=derive,
    only={"rotary": (True,), "scale_attn_weights": (True,)},
    inert=frozenset(
        """n_positions summary_activation summary_first_dropout summary_proj_to_labels summary_type
        summary_use_proj""".split()
    ),
    fixed={
        "biases": frozenset({"mlp"}),
        "norm": "layer",
        "residual": "parallel",
        "causal": True,
        "tied": False,
        "head_bias": True,
    },
    copies={"lm_head.weight": "embed.tokens.weight"},
    spare=(r"\.attn\.(bias|masked_bias|embed_positions)$",),
)
