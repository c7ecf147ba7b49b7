"""Decoders whose attention certify knows and that models/ does not run: LLaMA's kin, layers without positions, MLA."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minibeft.families.attention import FULL, SLIDING, Keys, Site, Switch, by_kind
from minibeft.families.bert import with_cross
from minibeft.families.certified import aside
from minibeft.families.family import Family
from minibeft.families.llama import LLAMA
from minibeft.families.reading import Reader
from minibeft.theory.rotary import Rotary

GROUPED = LLAMA.attention
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "global_rope_theta",
             "local_rope_theta")  # fmt: skip


def with_spec(change: Callable[[Reader], dict[str, Any]]) -> Callable[[Reader, Site], list[Site]]:
    """The plain site with these fields of its spec changed."""
    return lambda c, site: [replace(site, spec=replace(site.spec, **change(c)))]


def turned(c: Reader, site: Site) -> dict[str, Any]:
    """Rotary positions whose numbers differ between the kinds of layers."""
    c.read.update(ROPE_KEYS)
    return {"rotary": Rotary(site.spec.head_size)}


def cohere2_sites(c: Reader, site: Site) -> list[Site]:
    """Full attention has no positions; layers with a window turn q and k."""
    c.read.update(("sliding_window_pattern", "_sliding_window_pattern"))
    window = {"window": c.count("sliding_window", 4096)}
    return by_kind(c, site, 4, {FULL: {"rotary": None}, SLIDING: window}, {})


def llama4_sites(c: Reader, site: Site) -> list[Site]:
    """Each fourth layer has no positions and no norm of q and k; the others may have both, in chunks."""
    c.read.update(("attention_chunk_size", "attn_temperature_tuning", "attn_scale", "floor_scale", "layer_types"))
    interval = c.count("no_rope_layer_interval", 4)
    given = c.get("no_rope_layers", []) or [int((i + 1) % interval != 0) for i in range(len(site.layers))]
    norm = "rms" if c.flag("use_qk_norm", True) else None
    plain, turning = (tuple(i for i, on in enumerate(given) if bool(on) == want) for want in (False, True))
    found = [
        replace(site, name="self-attention, rotary", layers=turning, spec=replace(site.spec, qk_norm=norm)),
        replace(site, name="self-attention, no positions", layers=plain, spec=replace(site.spec, rotary=None)),
    ]
    return [each for each in found if each.layers]


def modernbert_sites(c: Reader, site: Site) -> list[Site]:
    """A window around the token in two of three layers."""
    c.read.update(("norm_bias", "decoder_bias", "classifier_bias", "deterministic_flash_attn", "local_attention"))
    every = c.count("global_attn_every_n_layers", 3)
    kinds = c.get("layer_types", []) or [SLIDING if i % every else FULL for i in range(len(site.layers))]
    c = Reader({**c.raw, "layer_types": kinds}, c.where, read=c.read)
    same = turned(c, site)
    return by_kind(c, replace(site, exact=False), every, {FULL: same, SLIDING: same}, {})


def qwen3_next_sites(c: Reader, site: Site) -> list[Site]:
    """Three of four layers are linear attention without a softmax; the fourth has QK-norm and a gate before W_o."""
    c.read.update(("full_attention_interval", "linear_num_key_heads", "linear_num_value_heads"))
    c.read.update(("linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"))
    every, count = c.count("full_attention_interval", 4), len(site.layers)
    kinds = c.get("layer_types", []) or ["linear_attention" if (i + 1) % every else FULL for i in range(count)]
    c = Reader({**c.raw, "layer_types": kinds}, c.where, read=c.read)
    return by_kind(c, site, every, {FULL: {"gate": True}}, {"linear_attention": ""})


def latent_sites(c: Reader, site: Site) -> list[Site]:
    """Multi-head latent attention: a part of each key turns and is shared by the heads, the rest does not turn."""
    c.read.update(("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_head_dim", "head_dim", "rope_interleave"))
    c.read.update((*ROPE_KEYS, "num_key_value_heads", "num_nextn_predict_layers"))
    turns, rest = c.count("qk_rope_head_dim", 64), c.count("qk_nope_head_dim", 128)
    spec = replace(site.spec, head_size=turns + rest, rotary=Rotary(turns))
    return [replace(site, spec=spec, exact=False)]


def falcon_sites(c: Reader, site: Site) -> list[Site]:
    """One key head for all unless the new architecture says how many; ALiBi or rotary positions."""
    c.read.update(("num_ln_in_parallel_attn", "parallel_attn", "multi_query", "new_decoder_architecture"))
    new, one = c.flag("new_decoder_architecture", False), c.flag("multi_query", True)
    given = c.optional("num_kv_heads", None)
    kv_heads = (given or site.spec.heads) if new else 1 if one else site.spec.heads
    if c.flag("alibi", False):
        return [replace(site, spec=replace(site.spec, kv_heads=kv_heads, rotary=None, position_bias="alibi"))]
    return [replace(site, spec=replace(site.spec, kv_heads=kv_heads))]


def mpt_sites(c: Reader, site: Site) -> list[Site]:
    """ALiBi unless attn_config switches it off; clipped projections are another attention."""
    c.read.update(("attn_config", "learned_pos_emb"))
    inside = Reader(c.raw.get("attn_config") or {}, c.where, "attn_config: ")
    inside.only({"clip_qkv": (None,), "prefix_lm": (False,), "qk_ln": (False,), "attn_type": ("multihead_attention",)})
    alibi = "alibi" if inside.flag("alibi", True) else None
    return [replace(site, spec=replace(site.spec, position_bias=alibi))]


def gpt_neo_sites(c: Reader, site: Site) -> list[Site]:
    """Logits are not scaled; every other layer may have a window."""
    c.read.update(("attention_types", "attention_layers", "window_size"))
    return [replace(site, spec=replace(site.spec, scale=1.0))]


def bigcode_sites(c: Reader, site: Site) -> list[Site]:
    """One key head for all, or as many as heads."""
    c.read.update(("num_key_value_heads",))
    kv_heads = 1 if c.flag("multi_query", True) else site.spec.heads
    scale = None if c.flag("scale_attn_weights", True) else 1.0
    return with_cross(c, replace(site, spec=replace(site.spec, kv_heads=kv_heads, scale=scale)))


def normed(key: str, default: bool) -> Callable[[Reader, Site], list[Site]]:
    """LayerNorm over each head of q and k where this key is on."""
    return with_spec(lambda c: {"qk_norm": "layer" if c.flag(key, default) else None})


GPT = ("n_embd|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers")
QKV = Switch("attention_bias", "qkv", default=False)
LATENT = Keys(
    sizes=(7168, 128, 61),
    head_size=("head_dim", 64),
    biases=Switch("attention_bias", "o"),
    causal=True,
    sites=latent_sites,
)
FAMILIES = (
    Family("phi3", replace(GROUPED, sizes=(3072, 32, 32), biases="", rotary=1.0, windows=("all", None),
                           sites=aside("original_max_position_embeddings"))),
    Family("olmo", replace(GROUPED, head_size=None, only={"clip_qkv": (None,)})),
    Family("olmo2", replace(GROUPED, head_size=None, qk_norm="rms")),
    Family("granite", replace(GROUPED, sites=with_spec(lambda c: {"scale": c.positive("attention_multiplier", 1.0)}))),
    Family("mixtral", replace(GROUPED, kv_heads=("num_key_value_heads", 8), biases="", windows=("all", None),
                              theta=1e6)),
    Family("qwen2_moe", replace(GROUPED, sizes=(2048, 16, 24), kv_heads=("num_key_value_heads", 16), head_size=None,
                                biases=Switch("qkv_bias", "qkv", default=True),
                                only={"use_sliding_window": (False,)},
                                sites=aside("sliding_window", "max_window_layers"))),
    Family("qwen3_moe", replace(GROUPED, sizes=(2048, 32, 24), kv_heads=("num_key_value_heads", 4), qk_norm="rms",
                                windows=("late", 4096))),
    Family("qwen3_next", replace(GROUPED, sizes=(2048, 16, 48), kv_heads=("num_key_value_heads", 2), rotary=0.25,
                                 head_size=("head_dim", 256), qk_norm="rms", sites=qwen3_next_sites, layered=True)),
    Family("cohere", replace(GROUPED, sizes=(8192, 64, 40), head_size=None, theta=5e5,
                             sites=normed("use_qk_norm", False))),
    Family("cohere2", replace(GROUPED, sizes=(8192, 64, 40), sites=cohere2_sites, layered=True)),
    Family("llama4_text", replace(GROUPED, sizes=(5120, 40, 48), kv_heads=("num_key_value_heads", 8),
                                  head_size=("head_dim", 128), theta=5e5, sites=llama4_sites, layered=True)),
    Family("modernbert", Keys(sizes=(768, 12, 22), biases=Switch("attention_bias", "qkvo"), sites=modernbert_sites,
                              layered=True)),
    Family("deepseek_v2", replace(LATENT, sizes=(4096, 32, 32))),
    Family("deepseek_v3", LATENT),
    Family("persimmon", replace(GROUPED, sizes=(4096, 64, 36), kv_heads=None, head_size=None, biases="qkvo", rotary=0.5,
                                sites=normed("qk_layernorm", True))),
    Family("stablelm", replace(GROUPED, sizes=(2560, 32, 32), kv_heads=("num_key_value_heads", 32), head_size=None,
                               biases=Switch("use_qkv_bias", "qkv"), rotary=0.25,
                               sites=normed("qk_layernorm", False))),
    Family("helium", replace(GROUPED, sizes=(2560, 20, 24), kv_heads=("num_key_value_heads", 20),
                             head_size=("head_dim", 128), biases=QKV, theta=1e5)),
    Family("glm", replace(GROUPED, sizes=(4096, 32, 40), kv_heads=("num_key_value_heads", 2),
                          head_size=("head_dim", 128), biases=replace(QKV, default=True), rotary=0.5)),
    Family("nemotron", replace(GROUPED, sizes=(6144, 48, 32), head_size=("head_dim", 128), rotary=0.5)),
    Family("falcon", replace(GROUPED, sizes=(4544, 71, 32), kv_heads=None, head_size=None,
                             biases=Switch("bias", "qkvo"), sites=falcon_sites)),
    Family("mpt", Keys(("d_model|hidden_size", "n_heads|num_attention_heads", "n_layers|num_hidden_layers"),
                       (2048, 16, 24), biases="", causal=True, only={"no_bias": (True,)}, sites=mpt_sites)),
    Family("codegen", Keys(GPT, (4096, 16, 28), dropout=("attn_pdrop", 0.0), biases="", causal=True,
                           rotary=("rotary_dim", 64))),
    Family("gpt_bigcode", Keys(GPT, dropout=("attn_pdrop", 0.1), causal=True, sites=bigcode_sites)),
    Family("gpt_neo", Keys(("hidden_size", "num_heads|num_attention_heads", "num_layers|num_hidden_layers"),
                           (2048, 16, 24), biases="o", causal=True, sites=gpt_neo_sites)),
    Family("biogpt", Keys(sizes=(1024, 16, 24), dropout=("attention_probs_dropout_prob", 0.1), causal=True)),
    Family("xglm", Keys(("d_model|hidden_size", "attention_heads|num_attention_heads", "num_layers|num_hidden_layers"),
                        (1024, 16, 24), dropout=("attention_dropout", 0.1), causal=True, sites=with_cross)),
    Family("ctrl", Keys(GPT, (1280, 16, 48), dropout=("attn_pdrop", 0.0), causal=True)),
    Family("openai-gpt", Keys(GPT, dropout=("attn_pdrop", 0.1), causal=True)),
)  # fmt: skip
