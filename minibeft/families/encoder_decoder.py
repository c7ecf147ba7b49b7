"""T5 and Whisper: an encoder, a causal decoder, and the decoder's attention to the encoder.

Of Whisper the encoder runs.
"""

from dataclasses import replace
from typing import Any

from minibeft.families.attention import MOST_LAYERS, Keys, Site
from minibeft.families.family import Body, Family
from minibeft.families.reading import Reader
from minibeft.models.features import Spectrogram
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


def whisper_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The other keys belong to the decoder, or to heads and training methods that are not here."""
    c.read.update(("decoder_layerdrop", "decoder_ffn_dim", "scale_embedding", "forced_decoder_ids", "vocab_size"))
    c.read.update(("median_filter_width", "apply_spec_augment"))
    c.read.update(f"mask_{kind}_{key}" for kind in ("time", "feature") for key in ("prob", "length", "min_masks"))
    speech = Spectrogram(c.count("num_mel_bins", 80), c.count("max_source_positions", 1500))
    return {"features": speech, "embedding_dropout": values["dropout"], "reads": "mean"}


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
        names=(
            "d_model|hidden_size",
            "encoder_attention_heads|num_attention_heads|num_key_value_heads",
            "encoder_layers|num_hidden_layers",
        ),
        sizes=(384, 6, 4),
        biases="qvo",
        sites=whisper_sites,
    ),
    Body(
        stem="Whisper",
        base="Encoder",
        classes="ForAudioClassification",
        prefix="encoder.",
        inside="model.encoder.",
        part="encoder self-attention",
        names={
            "embed.near": "conv1",
            "embed.far": "conv2",
            "embed.positions": "embed_positions",
            "blocks.{i}.attention.q": "layers.{i}.self_attn.q_proj",
            "blocks.{i}.attention.k": "layers.{i}.self_attn.k_proj",
            "blocks.{i}.attention.v": "layers.{i}.self_attn.v_proj",
            "blocks.{i}.attention.o": "layers.{i}.self_attn.out_proj",
            "blocks.{i}.norm1": "layers.{i}.self_attn_layer_norm",
            "blocks.{i}.mlp.up": "layers.{i}.fc1",
            "blocks.{i}.mlp.down": "layers.{i}.fc2",
            "blocks.{i}.norm2": "layers.{i}.final_layer_norm",
            "norm": "layer_norm",
        },
        heads={"classification": {"head.dense": "projector", "head.out": "classifier"}},
        keys={
            "encoder_ffn_dim": ("inner", 1536),
            "activation_function": ("activation", "gelu"),
            "dropout": ("dropout", 0.0),
            "classifier_proj_size": ("classifier_width", 256),
        },
        fixed={"vocab": 0, "norm": "layer", "eps": 1e-5, "residual": "pre", "tied": True},
        only={
            "is_encoder_decoder": (True, False),
            "encoder_layerdrop": (0.0,),
            "activation_dropout": (0.0,),
            "use_weighted_layer_sum": (False,),
        },
        spare=(r"^(model\.)?decoder\.", r"^proj_out\.weight$"),
        rest=whisper_rest,
        copies={},
    ),
)
FAMILIES = (T5, WHISPER)
