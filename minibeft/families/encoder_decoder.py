"""T5 and Whisper: an encoder, a causal decoder, and the decoder's attention to the encoder."""

from dataclasses import replace

from minibeft.families.attention import MOST_LAYERS, Keys, Site
from minibeft.families.family import Family
from minibeft.families.reading import Reader
from minibeft.theory.variants import AttentionSpec


def three_sites(encoder: Site, decoder: AttentionSpec, count: int) -> list[Site]:
    """The attention to the encoder has no position bias. Prefix tuning fills the cache of the decoder's self-attention
    alone."""
    upper = tuple(range(count))
    cross = replace(decoder, causal=False, cross=True, position_bias=None)
    return [
        replace(encoder, name="encoder self-attention", takes_prefix=False),
        Site("decoder self-attention", upper, replace(decoder, causal=True)),
        Site("cross-attention", upper, cross, takes_prefix=False),
    ]


def t5_sites(c: Reader, site: Site) -> list[Site]:
    """Logits are not scaled, and a learned number for each head and distance (in buckets) is added to them."""
    c.read.update(("is_gated_act", "dense_act_fn"))  # of the MLP
    site = replace(site, spec=replace(site.spec, scale=1.0))
    upper = c.count("num_decoder_layers", len(site.layers), most=MOST_LAYERS)
    if c.flag("is_encoder_decoder", True):
        return three_sites(site, site.spec, upper)
    return [replace(site, spec=replace(site.spec, causal=c.flag("is_decoder", False)))]


def whisper_sites(c: Reader, site: Site) -> list[Site]:
    """The decoder has its own number of heads."""
    width, heads = site.spec.width, c.count("decoder_attention_heads", 6)
    if width % heads:
        raise c.refuse("decoder_attention_heads", f"does not divide d_model, {width}")
    decoder = replace(site.spec, heads=heads, kv_heads=heads, head_size=width // heads)
    return three_sites(site, decoder, c.count("decoder_layers", 4, most=MOST_LAYERS))


T5 = Family(
    "t5",
    Keys(
        names=("d_model", "num_heads", "num_layers"),
        sizes=(512, 8, 6),
        head_size=("d_kv", 64),
        dropout=("dropout_rate", 0.1),
        biases="",
        position_bias="learned",
        sites=t5_sites,
    ),
)
WHISPER = Family(
    "whisper",
    Keys(
        names=("d_model", "encoder_attention_heads|num_attention_heads|num_key_value_heads", "encoder_layers"),
        sizes=(384, 6, 4),
        biases="qvo",
        sites=whisper_sites,
    ),
)
FAMILIES = (T5, WHISPER)
