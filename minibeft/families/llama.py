"""LLaMA (LLaMA 2, DeepSeek-Coder) and its kin: pre-norm decoders with RMSNorm, gated MLP, rotary positions and GQA.

They differ in their biases (LLaMA has none unless attention_bias says all four, Qwen2 has q, k and v but not o), in
their windows, and in what else is done to the logits.
"""

from dataclasses import replace

from minibeft.families.attention import Keys, Site, Switch
from minibeft.families.family import Body, Family
from minibeft.families.reading import Reader


def phi_sites(c: Reader, site: Site) -> list[Site]:
    """LayerNorm over each head of q and k where qk_layernorm is on."""
    return [replace(site, spec=replace(site.spec, qk_norm="layer" if c.flag("qk_layernorm", False) else None))]


def gemma2_sites(c: Reader, site: Site) -> list[Site]:
    """Soft-capped logits unless the cap is null, a scale of their own, and a causal mask unless it is switched off."""
    cap = c.optional("attn_logit_softcapping", 50.0)
    cap = None if cap is None else c.positive("attn_logit_softcapping", cap)
    scale = c.count("query_pre_attn_scalar", 256) ** -0.5
    both = c.flag("use_bidirectional_attention", False)
    c.read.add("sliding_window_size")  # the window once more
    c.get("final_logit_softcapping", 30.0)  # of the vocabulary's logits, not of attention
    return [replace(site, spec=replace(site.spec, softcap=cap, scale=scale, causal=not both))]


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
            "blocks.{i}.attention.q_norm": "layers.{i}.self_attn.q_norm",
            "blocks.{i}.attention.k_norm": "layers.{i}.self_attn.k_norm",
        },
    ),
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
PHI = Family("phi", replace(LLAMA.attention, sizes=(2048, 32, 24), biases="qkvo", rotary=0.5, sites=phi_sites))
FAMILIES = (LLAMA, QWEN2, MISTRAL, QWEN3, GEMMA2, GPT_OSS, PHI)
