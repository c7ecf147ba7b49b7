"""GPT-2 and its kin: decoders with LayerNorm. OPT learns its positions, GPT-J and GPT-NeoX turn a part of each head,
BLOOM has ALiBi."""

from dataclasses import replace
from typing import Any

from minibeft.families.attention import Keys, Site, Switch
from minibeft.families.bert import with_cross
from minibeft.families.family import TEXTS, Body, Family, Vocabulary, learned
from minibeft.families.reading import Reader
from minibeft.models.config import Task


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


def gpt2_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """GPT-J's MLP, and positions that count every token."""
    return gptj_rest(c, values) | {"positions": learned(c, c.count("n_positions|max_position_embeddings", 1024))}


def neox_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Attention and MLP each read their own norm, in parallel or one after the other."""
    c.get("classifier_dropout", 0.1)  # of a head that is not here
    beside = c.flag("use_parallel_residual", True)
    return {"residual": "twin" if beside else "pre", "embedding_dropout": values["dropout"]}


def gptj_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The MLP is four times as wide as the model unless the file says otherwise."""
    return {"inner": c.count("n_inner", 4 * values["width"])}


# Where the classifier of tokens has another name than that of texts.
BOTH: dict[Task, dict[str, str]] = {**TEXTS, "tokens": {"head.out": "classifier"}}

BYTES = Vocabulary("GPT2Tokenizer", "bytes", dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"), frame="none")
GPT2 = Family(
    "gpt2",
    attention=Keys(
        names=("n_embd|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
        sizes=(768, 12, 12),
        dropout=("attn_pdrop", 0.1),
        causal=True,
        sites=gpt2_sites,
    ),
    body=Body(
        stem="GPT2",
        lm="LMHeadModel",
        prefix="transformer.",
        names={
            "embed.tokens": "wte",
            "embed.positions": "wpe",
            "blocks.{i}.attention.q": "h.{i}.attn.c_attn.q",
            "blocks.{i}.attention.k": "h.{i}.attn.c_attn.k",
            "blocks.{i}.attention.v": "h.{i}.attn.c_attn.v",
            "blocks.{i}.attention.o": "h.{i}.attn.c_proj",
            "blocks.{i}.norm1": "h.{i}.ln_1",
            "blocks.{i}.mlp.up": "h.{i}.mlp.c_fc",
            "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
            "blocks.{i}.norm2": "h.{i}.ln_2",
            "norm": "ln_f",
        },
        heads=BOTH,
        keys={
            "vocab_size": ("vocab", 50257),
            "activation_function": ("activation", "gelu_new"),
            "resid_pdrop": ("dropout", 0.1),
            "embd_pdrop": ("embedding_dropout", 0.1),
            "layer_norm_epsilon": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "residual": "pre", "tied": True},
        rest=gpt2_rest,
        spare=(r"\.attn\.(bias|masked_bias)$",),
        fused={"attn.c_attn": False},
        transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        vocabulary=BYTES,
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
        heads=TEXTS,
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
        vocabulary=BYTES,
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
        heads=TEXTS,
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
    Body(
        stem="GPTNeoX",
        prefix="gpt_neox.",
        names={
            "embed.tokens": "embed_in",
            "blocks.{i}.attention.q": "layers.{i}.attention.query_key_value.q",
            "blocks.{i}.attention.k": "layers.{i}.attention.query_key_value.k",
            "blocks.{i}.attention.v": "layers.{i}.attention.query_key_value.v",
            "blocks.{i}.attention.o": "layers.{i}.attention.dense",
            "blocks.{i}.norm1": "layers.{i}.input_layernorm",
            "blocks.{i}.mlp.up": "layers.{i}.mlp.dense_h_to_4h",
            "blocks.{i}.mlp.down": "layers.{i}.mlp.dense_4h_to_h",
            "blocks.{i}.norm2": "layers.{i}.post_attention_layernorm",
            "norm": "final_layer_norm",
        },
        heads={**BOTH, "lm": {"head": "embed_out"}},
        keys={
            "vocab_size": ("vocab", 50432),
            "intermediate_size": ("inner", 24576),
            "hidden_act": ("activation", "gelu"),
            "hidden_dropout": ("dropout", 0.0),
            "layer_norm_eps": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "tied": False},
        rest=neox_rest,
        spare=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
        copies={"embed_out.weight": "embed.tokens.weight"},
        fused={"attention.query_key_value": True},
    ),
)


def bloom_sites(c: Reader, site: Site) -> list[Site]:
    """slow_but_exact multiplies with W_o slice by slice, and forgets b_o."""
    sliced = c.flag("slow_but_exact", False) and c.count("pretraining_tp", 1) > 1
    return [replace(site, carries=not sliced)]


BLOOM = Family(
    "bloom",
    Keys(
        sites=bloom_sites,
        names=("n_embed|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
        sizes=(64, 8, 2),
        causal=True,
        position_bias="alibi",
    ),
    Body(
        stem="Bloom",
        prefix="transformer.",
        names={
            "embed.tokens": "word_embeddings",
            "embed.norm": "word_embeddings_layernorm",
            "blocks.{i}.attention.q": "h.{i}.self_attention.query_key_value.q",
            "blocks.{i}.attention.k": "h.{i}.self_attention.query_key_value.k",
            "blocks.{i}.attention.v": "h.{i}.self_attention.query_key_value.v",
            "blocks.{i}.attention.o": "h.{i}.self_attention.dense",
            "blocks.{i}.norm1": "h.{i}.input_layernorm",
            "blocks.{i}.mlp.up": "h.{i}.mlp.dense_h_to_4h",
            "blocks.{i}.mlp.down": "h.{i}.mlp.dense_4h_to_h",
            "blocks.{i}.norm2": "h.{i}.post_attention_layernorm",
            "norm": "ln_f",
        },
        heads=BOTH,
        keys={
            "vocab_size": ("vocab", 250880),
            "hidden_dropout": ("dropout", 0.0),
            "layer_norm_epsilon": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "residual": "pre", "activation": "gelu_bloom", "embedding_norm": True, "tied": True},
        only={"apply_residual_connection_post_layernorm": (False,), "slow_but_exact": (False,)},
        rest=lambda _, values: {"inner": 4 * values["width"]},
        fused={"self_attention.query_key_value": True},
    ),
)
FAMILIES = (GPT2, GPTJ, OPT, NEOX, BLOOM)
