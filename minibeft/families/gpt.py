"""GPT-2 and its kin: decoders with LayerNorm. OPT learns its positions, GPT-J and GPT-NeoX turn a part of each head,
BLOOM has ALiBi."""

from dataclasses import replace
from typing import Any

from minibeft.families.attention import Keys, Site, Switch
from minibeft.families.bert import with_cross
from minibeft.families.family import Body, Family, Vocabulary, learned
from minibeft.families.reading import Reader


def gpt2_sites(c: Reader, site: Site) -> list[Site]:
    """The scale may be 1, and may shrink as 1/(layer + 1): the first layer's stands for all, K1 holds at any scale."""
    if not c.flag("scale_attn_weights", True):
        site = replace(site, spec=replace(site.spec, scale=1.0))
    if c.flag("scale_attn_by_inverse_layer_idx", False):
        site = replace(site, name="self-attention, scale divided by the layer's number", exact=False)
    return with_cross(c, site)


def opt_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Positions count what the mask keeps, from row 2; OPT-350m's embedding projection is refused."""
    width = values["width"]
    if c.count("word_embed_proj_dim", width) != width:
        raise c.refuse("word_embed_proj_dim", f"is not handled: it must equal hidden_size = {width}")
    return {"positions": learned(c, c.count("max_position_embeddings", 2048) + 2, 2, "mask")}


def gptj_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The MLP is four times as wide as the model unless the file says otherwise."""
    return {"inner": c.count("n_inner", 4 * values["width"])}


GPT2 = Family(
    "gpt2",
    attention=Keys(
        names=("n_embd|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
        sizes=(768, 12, 12),
        dropout=("attn_pdrop", 0.1),
        causal=True,
        sites=gpt2_sites,
    ),
)
GPTJ = Family(
    "gptj",
    attention=Keys(
        names=("n_embd|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
        sizes=(4096, 16, 28),
        dropout=("attn_pdrop", 0.0),
        biases="",
        causal=True,
        rotary=("rotary_dim", 64),
        only={"rotary": (True,), "scale_attn_weights": (True,)},
    ),
    body=Body(
        stem="GPTJ",
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
        keys={
            "vocab_size": ("vocab", 50400),
            "activation_function": ("activation", "gelu_new"),
            "resid_pdrop": ("dropout", 0.0),
            "embd_pdrop": ("embedding_dropout", 0.0),
            "layer_norm_epsilon": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "residual": "parallel", "tied": False, "head_bias": True},
        rest=gptj_rest,
        spare=(r"\.attn\.(bias|masked_bias|embed_positions)$",),
        vocabulary=Vocabulary(
            "GPT2Tokenizer",
            "bytes",
            {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
            frame="none",
        ),
    ),
)
OPT = Family(
    "opt",
    attention=Keys(biases=Switch("enable_bias", "qkvo", default=True), causal=True),
    body=Body(
        stem="OPT",
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
        keys={
            "vocab_size": ("vocab", 50272),
            "ffn_dim": ("inner", 3072),
            "activation_function": ("activation", "relu"),
            "dropout": ("dropout", 0.1),
            "pad_token_id": ("pad", 1),
        },
        fixed={"norm": "layer", "eps": 1e-5, "residual": "pre", "tied": True},
        mlp_bias=Switch("enable_bias", ("mlp",), default=True),
        only={
            "do_layer_norm_before": (True,),
            "_remove_final_layer_norm": (False,),
            "layer_norm_elementwise_affine": (True,),
            "layerdrop": (0.0,),
            "activation_dropout": (0.0,),
        },
        rest=opt_rest,
        vocabulary=Vocabulary(
            "GPT2Tokenizer", "bytes", {"bos": "</s>", "eos": "</s>", "unk": "</s>", "pad": "<pad>"}, frame="start"
        ),
    ),
)
NEOX = Family(
    "gpt_neox",
    Keys(sizes=(6144, 64, 44), biases=Switch("attention_bias", "qkvo", default=True), causal=True, rotary=0.25),
)
BLOOM = Family(
    "bloom",
    Keys(
        names=("n_embed|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
        sizes=(64, 8, 2),
        causal=True,
        position_bias="alibi",
    ),
)
FAMILIES = (GPT2, GPTJ, OPT, NEOX, BLOOM)
