"""Public model families whose attention config.json alone describes: the table that `certify` reads.

Each entry was checked against the family's source in transformers; defaults are those of its configuration class. A
value that is not understood, or an unread key that sounds like attention, raises Unclear. Nothing is guessed.
"""

from dataclasses import replace

from minibeft.certificate.reading import REQUIRED, StrictReader, Unclear, turning
from minibeft.certificate.sites import KnownFamily, Site, self_attention
from minibeft.theory.variants import AttentionSpec


def with_cross(c: StrictReader, site: Site) -> list[Site]:
    """The site, and a cross-attention of the same kind where add_cross_attention asks for it."""
    if not c.flag("add_cross_attention", False):
        return [site]
    spec = replace(site.spec, causal=False, cross=True, relative_query=False, relative_key=False)
    return [site, Site("cross-attention", site.layers, spec, takes_prefix=False)]


def bert(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """position_embedding_type is what a checkpoint was trained with; transformers 5 no longer reads it."""
    kind = c.choice("position_embedding_type", "absolute", ("absolute", "relative_key", "relative_key_query"))
    spec = replace(
        spec,
        causal=c.flag("is_decoder", False),
        relative_query=kind != "absolute",
        relative_key=kind == "relative_key_query",
    )
    return with_cross(c, Site("self-attention", tuple(range(count)), spec))


def gpt2(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """The scale may be 1, and may shrink as 1/(layer + 1): the first layer's stands for all, K1 holds at any scale."""
    name = "self-attention"
    if not c.flag("scale_attn_weights", True):
        spec = replace(spec, scale=1.0)
    if c.flag("scale_attn_by_inverse_layer_idx", False):
        name = "self-attention, scale divided by the layer's number"
    return with_cross(c, Site(name, tuple(range(count)), spec))


def gptj(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """Interleaved rotary on the first rotary_dim dims of each head."""
    if not c.flag("rotary", True) or not c.flag("scale_attn_weights", True):
        raise Unclear("rotary or scale_attn_weights is false, which GPT-J's code does not read")
    turned = turning(c.count("rotary_dim", 64), spec.head_size, interleaved=True)
    return self_attention(c, replace(spec, rotary=turned), count)


def phi(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """LayerNorm over each head of q and k where qk_layernorm is on."""
    return self_attention(c, replace(spec, qk_norm="layer" if c.flag("qk_layernorm", False) else None), count)


def qwen3(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """RMSNorm over each head of q and k, always."""
    return self_attention(c, replace(spec, qk_norm="rms"), count)


def gemma2(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """Soft-capped logits, a scale of their own, and a causal mask unless it is switched off."""
    cap = c.get("attn_logit_softcapping", 50.0)
    if cap is not None and c.number("attn_logit_softcapping", 50.0) == 0:
        raise Unclear("attn_logit_softcapping is 0, by which nothing can be divided; null switches it off")
    scale = c.count("query_pre_attn_scalar", 256) ** -0.5
    both = bool(c.get("use_bidirectional_attention", None))
    c.get("final_logit_softcapping", None)  # of the vocabulary's logits, not of attention
    return self_attention(c, replace(spec, softcap=cap, scale=scale, causal=not both), count)


def gpt_oss(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """A learned sink in every head."""
    return self_attention(c, replace(spec, sink="learned"), count)


def bloom(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """ALiBi, which the theorems see as a mask."""
    return self_attention(c, replace(spec, position_bias="alibi"), count)


def encoder_decoder(encoder: AttentionSpec, decoder: AttentionSpec, counts: tuple[int, int]) -> list[Site]:
    """Encoder, causal decoder, and the decoder's attention to the encoder, which has no position bias. Prefix tuning
    fills the cache of the decoder's self-attention alone."""
    upper = tuple(range(counts[1]))
    cross = replace(decoder, causal=False, cross=True, position_bias=None)
    return [
        Site("encoder self-attention", tuple(range(counts[0])), encoder, takes_prefix=False),
        Site("decoder self-attention", upper, replace(decoder, causal=True)),
        Site("cross-attention", upper, cross, takes_prefix=False),
    ]


def t5(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """Logits are not scaled, and a learned number for each head and distance is added to them."""
    spec = replace(spec, scale=1.0, position_bias="learned")
    upper = count if c.get("num_decoder_layers", None) is None else c.count("num_decoder_layers")
    if c.flag("is_encoder_decoder", True):
        return encoder_decoder(spec, spec, (count, upper))
    return self_attention(c, replace(spec, causal=c.flag("is_decoder", False)), count)


def whisper(c: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """The decoder has its own number of heads."""
    heads = c.count("decoder_attention_heads")
    if spec.width % heads:
        raise Unclear(f"decoder_attention_heads is {heads}, which does not divide d_model, {spec.width}")
    decoder = replace(spec, heads=heads, kv_heads=heads, head_size=spec.width // heads)
    c.get("num_attention_heads|num_key_value_heads", None)  # other names of the encoder's
    return encoder_decoder(spec, decoder, (count, c.count("decoder_layers")))


BERT = KnownFamily(dropout=("attention_probs_dropout_prob", 0.1), sites=bert)
GPT2 = KnownFamily(
    width="n_embd|hidden_size",
    heads="n_head|num_attention_heads",
    layers="n_layer|num_hidden_layers",
    dropout=("attn_pdrop", 0.1),
    causal=True,
    sites=gpt2,
)
LLAMA = KnownFamily(
    kv_heads=("num_key_value_heads", None),
    head_size=("head_dim", None),
    biases_if=("attention_bias", False),
    causal=True,
    rotary="whole",
)
GROUPED = replace(LLAMA, kv_heads=("num_key_value_heads", REQUIRED))

FAMILIES: dict[str, KnownFamily] = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "distilbert": KnownFamily(
        width="dim|hidden_size",
        heads="n_heads|num_attention_heads",
        layers="n_layers|num_hidden_layers",
        dropout=("attention_dropout", 0.1),
    ),
    "vit": KnownFamily(
        dropout=("attention_probs_dropout_prob", 0.0), biases="qkv", biases_if=("qkv_bias", True), always="o"
    ),
    "opt": KnownFamily(biases_if=("enable_bias", True), causal=True),
    "gpt2": GPT2,
    "gptj": replace(GPT2, dropout=("attn_pdrop", 0.0), biases="", sites=gptj),
    "gpt_neox": KnownFamily(biases_if=("attention_bias", True), causal=True, rotary=0.25),
    "bloom": KnownFamily(
        width="n_embed|hidden_size",
        heads="n_head|num_attention_heads",
        layers="n_layer|num_hidden_layers",
        causal=True,
        sites=bloom,
    ),
    "phi": replace(LLAMA, biases_if=None, rotary=0.5, sites=phi),
    "llama": LLAMA,
    "mistral": replace(GROUPED, biases_if=None, biases="", windows=("all", 4096)),
    "qwen2": replace(GROUPED, biases_if=None, biases="qkv", windows=("late", 4096)),
    "qwen3": replace(GROUPED, head_size=("head_dim", 128), windows=("late", 4096), sites=qwen3),
    "gemma2": replace(GROUPED, head_size=("head_dim", 256), windows=("even", 4096), sites=gemma2),
    "gpt_oss": replace(
        GROUPED,
        head_size=("head_dim", 64),
        biases_if=("attention_bias", True),
        windows=("even", 128),
        sites=gpt_oss,
    ),
    "t5": KnownFamily(
        width="d_model",
        heads="num_heads",
        head_size=("d_kv", 64),
        layers="num_layers",
        dropout=("dropout_rate", 0.1),
        biases="",
        sites=t5,
    ),
    "whisper": KnownFamily(
        width="d_model", heads="encoder_attention_heads", layers="encoder_layers", biases="qvo", sites=whisper
    ),
}
