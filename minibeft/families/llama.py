"""LLaMA (LLaMA 2, DeepSeek-Coder) and its kin: pre-norm decoders with RMSNorm, gated MLP, rotary positions and GQA.

They differ in their biases (LLaMA has none unless attention_bias says all four, Qwen2 has q, k and v but not o), in
their windows, and in what else is done to the logits.
"""

from dataclasses import replace
from typing import Any

import torch

from minibeft.families.attention import FULL, SLIDING, Keys, Site, Switch, by_kind, rope
from minibeft.families.family import TEXTS, Body, Family
from minibeft.families.reading import Reader
from minibeft.theory.rotary import Rotary


def phi_sites(c: Reader, site: Site) -> list[Site]:
    """LayerNorm over each head of q and k where qk_layernorm is on."""
    return [replace(site, spec=replace(site.spec, qk_norm="layer" if c.flag("qk_layernorm", False) else None))]


def smollm3_sites(c: Reader, site: Site) -> list[Site]:
    """Some layers have no rotary positions (NoPE): those with a 0 in no_rope_layers, by default every fourth."""
    every = c.count("no_rope_layer_interval", 4)
    turned = c.get("no_rope_layers", []) or [int((i + 1) % every != 0) for i in site.layers]
    if len(turned) != len(site.layers) or any(each not in (0, 1) for each in turned):
        raise c.refuse("no_rope_layers", f"must list a 0 or a 1 for each of the {len(site.layers)} layers")
    plain = replace(site, name="self-attention without positions", spec=replace(site.spec, rotary=None))
    parts = [
        replace(each, layers=tuple(i for i in site.layers if turned[i] == on)) for on, each in ((1, site), (0, plain))
    ]
    return [part for part in parts if part.layers]


def gemma_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Token vectors are multiplied by √C, rounded to float32 as transformers has it. The "gelu" of Gemma's first files
    means the approximation."""
    gelu = {"activation": "gelu_pytorch_tanh"} if values["activation"] == "gelu" else {}
    return gelu | {"embedding_scale": torch.tensor(values["width"] ** 0.5).item()}


def gemma2_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The same scale; hidden_act, which Gemma 2's files have as well, is not read."""
    c.get("hidden_act", "")
    return {"embedding_scale": gemma_rest(c, values)["embedding_scale"]}


def gemma2_sites(c: Reader, site: Site) -> list[Site]:
    """Soft-capped logits unless the cap is null, a scale of their own, and a causal mask unless it is switched off."""
    cap = c.cap("attn_logit_softcapping", 50.0)
    scale = c.count("query_pre_attn_scalar", 256) ** -0.5
    both = c.flag("use_bidirectional_attention", False)
    c.read.add("sliding_window_size")  # the window once more
    c.optional("final_logit_softcapping", 30.0)  # of the vocabulary's logits, not of attention
    return [replace(site, spec=replace(site.spec, softcap=cap, scale=scale, causal=not both))]


def gemma3_turn(c: Reader, size: int, kind: str, old: str, theta: float) -> tuple[Rotary | None, bool]:
    """Rotary positions of one kind of layer, and whether their frequencies are known. `old`: where files before
    transformers 5 have its base; their rope_scaling is of full attention alone."""
    given, scaling = c.get("rope_parameters", {}), c.get("rope_scaling", {})
    if given.keys() - {FULL, SLIDING}:
        raise c.refuse("rope_parameters", f"is not handled: only objects named {FULL} and {SLIDING} are")
    inner = {**(scaling if kind == FULL else {}), **(given.get(kind) or {})}
    length = c.get("max_position_embeddings", 131_072)
    inside = {"rope_parameters": {"rope_theta": c.positive(old, theta), **inner}, "max_position_embeddings": length}
    return rope(Reader(inside, c.where), size, "whole", theta)


def gemma3_sites(c: Reader, site: Site) -> list[Site]:
    """QK-norm, and a window in five of six layers, which have a rotary base of their own. transformers 5 has no use for
    the cap on attention's logits, which its configuration can still name."""
    c.read.update(("final_logit_softcapping", "_sliding_window_pattern"))
    scale, both = c.count("query_pre_attn_scalar", 256) ** -0.5, c.flag("use_bidirectional_attention", False)
    size, every = site.spec.head_size, c.count("sliding_window_pattern", 6)
    far, known = gemma3_turn(c, size, FULL, "rope_theta", 1e6)
    near, known_too = gemma3_turn(c, size, SLIDING, "rope_local_base_freq", 1e4)
    same = {"scale": scale, "causal": not both, "softcap": c.cap("attn_logit_softcapping", None)}
    sliding = {"window": c.count("sliding_window", 4096), "rotary": near}
    kinds = {FULL: same | {"rotary": far}, SLIDING: same | sliding}
    return by_kind(c, replace(site, exact=known and known_too), every, kinds, {})


LLAMA_BODY = Body(
    stem="Llama",
    prefix="model.",
    names={
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
    },
    keys={
        "vocab_size": ("vocab", 32000),
        "intermediate_size": ("inner", 11008),
        "hidden_act": ("activation", "silu"),
        "rms_norm_eps": ("eps", 1e-6),
        "pad_token_id": ("pad", None),
    },
    fixed={"norm": "rms", "residual": "pre", "gated": True, "tied": False},
    mlp_bias=Switch("mlp_bias", ("mlp",)),
    spare=(r"rotary_emb\.inv_freq$",),
)
QK_NORM = {f"blocks.{{i}}.attention.{each}": f"layers.{{i}}.self_attn.{each}" for each in ("q_norm", "k_norm")}
LLAMA = Family(
    "llama",
    attention=Keys(
        sizes=(4096, 32, 32),
        kv_heads=("num_key_value_heads", None),
        head_size=("head_dim", None),
        biases=Switch("attention_bias", "qkvo"),
        causal=True,
        rotary="whole",
    ),
    body=LLAMA_BODY,
)
QWEN2_BODY = replace(
    LLAMA_BODY,
    stem="Qwen2",
    keys={**LLAMA_BODY.keys, "vocab_size": ("vocab", 151936), "intermediate_size": ("inner", 22016)},
    mlp_bias=False,
    only={"use_mrope": (False,)},
)
QWEN2 = Family(
    "qwen2",
    replace(
        LLAMA.attention, kv_heads=("num_key_value_heads", 32), head_size=None, biases="qkv", windows=("late", 4096)
    ),
    QWEN2_BODY,
)
MISTRAL = Family(
    "mistral",
    replace(LLAMA.attention, kv_heads=("num_key_value_heads", 8), biases="", windows=("all", 4096)),
    replace(
        LLAMA_BODY, stem="Mistral", keys={**LLAMA_BODY.keys, "intermediate_size": ("inner", 14336)}, mlp_bias=False
    ),
)
QWEN3 = Family(
    "qwen3",
    replace(
        LLAMA.attention,
        kv_heads=("num_key_value_heads", 32),
        head_size=("head_dim", 128),
        windows=("late", 4096),
        qk_norm="rms",
    ),
    replace(
        QWEN2_BODY,
        stem="Qwen3",
        names={
            **LLAMA_BODY.names,
            **QK_NORM,
        },
    ),
)
GEMMA_BODY = replace(
    LLAMA_BODY,
    stem="Gemma",
    keys={
        "vocab_size": ("vocab", 256000),
        "intermediate_size": ("inner", 24576),
        "hidden_act": ("activation", "gelu_pytorch_tanh"),
        "rms_norm_eps": ("eps", 1e-6),
        "pad_token_id": ("pad", 0),
    },
    fixed={**LLAMA_BODY.fixed, "norm": "rms+1", "tied": True},
    mlp_bias=False,
    rest=gemma_rest,
)
GEMMA = Family(
    "gemma",
    replace(
        LLAMA.attention,
        sizes=(3072, 16, 28),
        kv_heads=("num_key_value_heads", 16),
        head_size=("head_dim", 256),
        only={"use_bidirectional_attention": (False,)},
    ),
    GEMMA_BODY,
)
GEMMA2_BODY = replace(
    GEMMA_BODY,
    stem="Gemma2",
    names={
        **LLAMA_BODY.names,
        "blocks.{i}.after1": "layers.{i}.post_attention_layernorm",
        "blocks.{i}.norm2": "layers.{i}.pre_feedforward_layernorm",
        "blocks.{i}.after2": "layers.{i}.post_feedforward_layernorm",
    },
    keys={
        "vocab_size": ("vocab", 256000),
        "intermediate_size": ("inner", 9216),
        "hidden_activation": ("activation", "gelu_pytorch_tanh"),
        "rms_norm_eps": ("eps", 1e-6),
        "final_logit_softcapping": ("logit_cap", 30.0),
        "pad_token_id": ("pad", 0),
    },
    fixed={**GEMMA_BODY.fixed, "residual": "sandwich"},
    rest=gemma2_rest,
)
GEMMA2 = Family(
    "gemma2",
    replace(
        LLAMA.attention,
        sizes=(2304, 8, 26),
        kv_heads=("num_key_value_heads", 4),
        head_size=("head_dim", 256),
        windows=("even", 4096),
        sites=gemma2_sites,
    ),
    GEMMA2_BODY,
)
GEMMA3_BODY = replace(
    GEMMA2_BODY,
    stem="Gemma3",
    base="TextModel",
    heads=TEXTS,
    names={
        **GEMMA2_BODY.names,
        **QK_NORM,
    },
    keys={**GEMMA2_BODY.keys, "vocab_size": ("vocab", 262_208), "final_logit_softcapping": ("logit_cap", None)},
    only={"use_bidirectional_attention": (False,), "attn_logit_softcapping": (None,)},
)
GEMMA3 = Family(
    "gemma3_text",
    replace(
        LLAMA.attention,
        sizes=(2304, 8, 26),
        kv_heads=("num_key_value_heads", 4),
        head_size=("head_dim", 256),
        rotary=None,
        qk_norm="rms",
        sites=gemma3_sites,
        layered=True,
    ),
    GEMMA3_BODY,
)
GPT_OSS = Family(
    "gpt_oss",
    replace(
        LLAMA.attention,
        sizes=(2880, 64, 36),
        kv_heads=("num_key_value_heads", 8),
        head_size=("head_dim", 64),
        biases=Switch("attention_bias", "qkvo", default=True),
        theta=150_000.0,
        windows=("even", 128),
        sink="learned",
    ),
)
PHI = Family(
    "phi",
    replace(LLAMA.attention, sizes=(2048, 32, 24), biases="qkvo", rotary=0.5, sites=phi_sites),
    Body(
        stem="Phi",
        prefix="model.",
        names={
            **{
                ours: theirs for ours, theirs in LLAMA_BODY.names.items() if ".mlp." not in ours and "norm2" not in ours
            },
            "blocks.{i}.attention.o": "layers.{i}.self_attn.dense",
            "blocks.{i}.mlp.up": "layers.{i}.mlp.fc1",
            "blocks.{i}.mlp.down": "layers.{i}.mlp.fc2",
            "norm": "final_layernorm",
        },
        keys={
            "vocab_size": ("vocab", 51200),
            "intermediate_size": ("inner", 8192),
            "hidden_act": ("activation", "gelu_new"),
            "resid_pdrop": ("dropout", 0.0),
            "embd_pdrop": ("embedding_dropout", 0.0),
            "layer_norm_eps": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "residual": "parallel", "tied": False, "head_bias": True},
        spare=LLAMA_BODY.spare,
    ),
)
STARCODER2 = Family(
    "starcoder2",
    replace(
        LLAMA.attention,
        sizes=(3072, 24, 30),
        kv_heads=("num_key_value_heads", 2),
        head_size=None,
        biases=Switch("use_bias", "qkvo", default=True),
        windows=("all", None),
    ),
    replace(
        LLAMA_BODY,
        stem="Starcoder2",
        names={
            **{ours: theirs for ours, theirs in LLAMA_BODY.names.items() if ".gate" not in ours},
            "blocks.{i}.mlp.up": "layers.{i}.mlp.c_fc",
            "blocks.{i}.mlp.down": "layers.{i}.mlp.c_proj",
        },
        keys={
            "vocab_size": ("vocab", 49152),
            "intermediate_size": ("inner", 12288),
            "hidden_act": ("activation", "gelu_pytorch_tanh"),
            "residual_dropout": ("dropout", 0.0),
            "embedding_dropout": ("embedding_dropout", 0.0),
            "norm_epsilon": ("eps", 1e-5),
            "pad_token_id": ("pad", None),
        },
        fixed={"norm": "layer", "residual": "pre", "tied": True},
        mlp_bias=Switch("use_bias", ("mlp",), default=True),
    ),
)
SMOLLM3 = Family(
    "smollm3",
    replace(
        LLAMA.attention,
        sizes=(2048, 16, 36),
        kv_heads=("num_key_value_heads", 4),
        head_size=("head_dim", None),
        theta=2_000_000.0,
        windows=("unturned", None),
        sites=smollm3_sites,
    ),
    replace(
        LLAMA_BODY,
        stem="SmolLM3",
        keys={**LLAMA_BODY.keys, "vocab_size": ("vocab", 128256), "pad_token_id": ("pad", 128004)},
        fixed={**LLAMA_BODY.fixed, "tied": True},
    ),
)
FAMILIES = (LLAMA, QWEN2, MISTRAL, QWEN3, GEMMA, GEMMA2, GEMMA3, GPT_OSS, PHI, STARCODER2, SMOLLM3)
