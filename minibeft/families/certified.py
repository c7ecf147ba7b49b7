"""Families whose attention certify knows and that models/ does not run: encoders, encoder-decoders, images, speech.

Each says what differs from a relative; transformers' defaults, and `minibeft atlas` on its models, check every entry.
"""

from collections.abc import Callable
from dataclasses import replace

from minibeft.families.attention import MOST_LAYERS, Keys, Site, Switch
from minibeft.families.bert import with_cross
from minibeft.families.encoder_decoder import three_sites
from minibeft.families.family import Family
from minibeft.families.images import VIT
from minibeft.families.llama import LLAMA
from minibeft.families.reading import Reader
from minibeft.theory.rotary import Rotary

Sites = Callable[[Reader, Site], list[Site]]


def aside(*keys: str, then: Sites = lambda _, site: [site]) -> Sites:
    """Keys whose names have a word for attention in them, but which change no verdict."""

    def sites(c: Reader, site: Site) -> list[Site]:
        c.read.update(keys)
        return then(c, site)

    return sites


def decoder_or_encoder(c: Reader, site: Site) -> list[Site]:
    """An encoder that is_decoder turns into a decoder."""
    spec = replace(site.spec, causal=c.flag("is_decoder", False))
    return with_cross(c, replace(site, spec=spec))


def learned_bias(c: Reader, site: Site) -> list[Site]:
    """A learned number for each head and distance is added to the logits."""
    return [replace(site, spec=replace(site.spec, position_bias="learned"))]


def beit_sites(c: Reader, site: Site) -> list[Site]:
    """A learned bias for each head and distance where it is switched on, per layer or shared by all layers."""
    c.read.update(("layer_scale_init_value", "use_auxiliary_head", "use_absolute_position_embeddings"))
    on = [c.flag(f"use_{kind}relative_position_bias", False) for kind in ("", "shared_")]
    return learned_bias(c, site) if any(on) else [site]


def deberta_sites(c: Reader, site: Site) -> list[Site]:
    """Content to position: vectors of distances multiply q; position to content: they multiply k."""
    kinds = c.raw.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    c.read.update(("pos_att_type", "max_relative_positions", "position_biased_input", "position_buckets"))
    c.read.update(("share_att_key", "pooler_hidden_size"))
    on = c.flag("relative_attention", False)
    relative = {"relative_query": on and "c2p" in kinds, "relative_key": on and "p2c" in kinds}
    return [replace(site, spec=replace(site.spec, **relative))]


def relative_query(c: Reader, site: Site) -> list[Site]:
    """Vectors of distances multiply q."""
    c.read.update(("attention_type", "attn_type", "num_decoder_layers", "pool_q_only", "separate_cls"))
    return [replace(site, spec=replace(site.spec, relative_query=True))]


def roformer_sites(c: Reader, site: Site) -> list[Site]:
    """Rotary positions on q and k; on v too where rotary_value says so, which is another attention."""
    c.only({"rotary_value": (False,)})
    return decoder_or_encoder(c, replace(site, spec=replace(site.spec, rotary=Rotary(site.spec.head_size))))


def esm_sites(c: Reader, site: Site) -> list[Site]:
    """Rotary or absolute positions."""
    c.read.update(("rope_theta", "token_dropout"))
    kind = c.choice("position_embedding_type", "absolute", ("absolute", "rotary"))
    rotary = Rotary(site.spec.head_size) if kind == "rotary" else None
    return decoder_or_encoder(c, replace(site, spec=replace(site.spec, rotary=rotary)))


def pooled(c: Reader, site: Site) -> list[Site]:
    """A head that pools tokens by attention from a learned query, where vision_use_head is on."""
    if not c.flag("vision_use_head", True):
        return [site]
    return [site, Site("pooling head", (len(site.layers),), replace(site.spec, cross=True), takes_prefix=False)]


def masked_autoencoder(width: str, heads: str, layers: str, sizes: tuple[int, int, int]) -> Sites:
    """An encoder, and a decoder of other sizes."""

    def sites(c: Reader, site: Site) -> list[Site]:
        size, count, depth = (c.count(key, n) for key, n in zip((width, heads, layers), sizes, strict=True))
        if size % count:
            raise c.refuse(heads, f"does not divide {width}, {size}")
        spec = replace(site.spec, heads=count, kv_heads=count, head_size=size // count, width=size)
        return [replace(site, name="encoder self-attention"), Site("decoder self-attention", tuple(range(depth)), spec)]

    return sites


def bart_sites(layers: int, heads: int) -> Sites:
    """An encoder and a decoder with these defaults of the decoder."""

    def sites(c: Reader, site: Site) -> list[Site]:
        c.read.update(("encoder_layerdrop", "decoder_layerdrop"))
        count, width = c.count("decoder_attention_heads", heads), site.spec.width
        if width % count:
            raise c.refuse("decoder_attention_heads", f"does not divide d_model, {width}")
        decoder = replace(site.spec, heads=count, kv_heads=count, head_size=width // count)
        return three_sites(site, decoder, c.count("decoder_layers", layers, most=MOST_LAYERS))

    return sites


def t5_sites(c: Reader, site: Site) -> list[Site]:
    """T5's attention, whose position bias only the first layer has where layers share it."""
    c.read.update(("num_sparse_encoder_layers", "num_sparse_decoder_layers", "router_bias", "add_cross_attention"))
    c.read.update(("is_gated_act", "dense_act_fn"))
    site = replace(site, spec=replace(site.spec, scale=1.0))
    upper = c.count("num_decoder_layers", len(site.layers), most=MOST_LAYERS)
    return three_sites(site, site.spec, upper)


def bart(kind: str, width: int, heads: int, layers: int, decoder: int | None = None, dropout: float = 0.0) -> Family:
    """BART's kin differ in their sizes."""
    names = ("d_model|hidden_size", "encoder_attention_heads|num_attention_heads", "encoder_layers|num_hidden_layers")
    keys = Keys(names, (width, heads, layers), dropout=("attention_dropout", dropout))
    return Family(kind, replace(keys, sites=bart_sites(decoder or layers, heads)))


BERT_LIKE = Keys(dropout=("attention_probs_dropout_prob", 0.1))
VIT_LIKE = VIT.attention
CONVOLUTION = ("conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_kernel_size")
SPEECH = Keys(dropout=("attention_dropout", 0.1), sites=aside(*CONVOLUTION, "conv_pos_batch_norm", "adapter_attn_dim"))
T5_LIKE = Keys(
    names=("d_model|hidden_size", "num_heads|num_attention_heads", "num_layers|num_hidden_layers"),
    sizes=(512, 8, 6),
    head_size=("d_kv", 64),
    dropout=("dropout_rate", 0.1),
    biases="",
    position_bias="learned",
    sites=t5_sites,
)
GROUPED = LLAMA.attention
ENCODERS = (
    *(Family(kind, replace(BERT_LIKE, sites=decoder_or_encoder)) for kind in ("roberta-prelayernorm", "xmod")),
    *(Family(kind, replace(BERT_LIKE, sizes=(1024, 16, 24), sites=decoder_or_encoder))
      for kind in ("megatron-bert", "bert-generation")),
    *(Family(kind, BERT_LIKE) for kind in ("splinter", "markuplm", "visual_bert")),
    Family("layoutlm", replace(BERT_LIKE, sites=aside("max_2d_position_embeddings"))),
    Family("tapas", replace(BERT_LIKE, sites=aside("reset_position_index_per_cell"))),
    Family("squeezebert", replace(BERT_LIKE, sites=aside("q_groups", "k_groups", "v_groups", "post_attention_groups"))),
    Family("rembert", replace(BERT_LIKE, sizes=(1152, 18, 32), dropout=("attention_probs_dropout_prob", 0.0),
                              sites=decoder_or_encoder)),
    Family("xlm-roberta-xl", replace(BERT_LIKE, sizes=(2560, 32, 36), sites=decoder_or_encoder)),
    Family("albert", Keys(sizes=(4096, 64, 12), dropout=("attention_probs_dropout_prob", 0.0))),
    Family("mpnet", replace(BERT_LIKE, sites=learned_bias)),
    Family("deberta", replace(BERT_LIKE, biases="qvo", sites=deberta_sites)),
    Family("deberta-v2", replace(BERT_LIKE, sizes=(1536, 24, 24), sites=deberta_sites)),
    Family("roformer", replace(BERT_LIKE, sites=roformer_sites)),
    Family("esm", replace(BERT_LIKE, sites=esm_sites)),
    Family("xlnet", Keys(("d_model|hidden_size", "n_head|num_attention_heads", "n_layer|num_hidden_layers"),
                         (1024, 16, 24), head_size=("d_head", None), dropout=("dropout", 0.1), biases="",
                         sites=relative_query)),
    Family("eurobert", replace(GROUPED, sizes=(768, 12, 12), causal=False)),
)  # fmt: skip
IMAGES = (
    *(Family(kind, VIT_LIKE) for kind in ("deit", "vit_msn", "ijepa", "vivit", "audio-spectrogram-transformer")),
    Family("dinov2_with_registers", replace(VIT_LIKE, sites=aside("layerscale_value"))),
    *(Family(kind, replace(VIT_LIKE, biases="qvo", sites=beit_sites)) for kind in ("beit", "data2vec-vision")),
    Family("yolos", replace(VIT_LIKE, sites=aside("use_mid_position_embeddings"))),
    Family("vit_mae", replace(VIT_LIKE, sites=masked_autoencoder(
        "decoder_hidden_size", "decoder_num_attention_heads", "decoder_num_hidden_layers", (512, 16, 8)))),
    Family("videomae", replace(VIT_LIKE, biases=Switch("qv_bias", "qv", default=True, always="o"),
        sites=masked_autoencoder("decoder_hidden_size", "decoder_num_attention_heads", "decoder_num_hidden_layers",
                                 (384, 6, 4)))),
    Family("clip_vision_model", Keys()),
    Family("clip_text_model", Keys(sizes=(512, 8, 12), causal=True)),
    Family("siglip_vision_model", Keys(sites=pooled)),
    Family("siglip_text_model", Keys()),
)  # fmt: skip
SPEAKERS = (
    Family("wavlm", replace(SPEECH, position_bias="learned")),
    *(Family(kind, SPEECH) for kind in ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio")),
)
BOTH = (
    *(bart(kind, 1024, 16, 12) for kind in ("bart", "mbart", "marian", "pegasus")),
    bart("blenderbot", 2560, 32, 2, 24),
    bart("blenderbot-small", 512, 16, 8),
    bart("plbart", 768, 12, 6, dropout=0.1),
    bart("m2m_100", 1024, 16, 12, dropout=0.1),
    bart("speech_to_text", 256, 4, 12, 6),
    *(Family(kind, replace(T5_LIKE, sizes=(512, 6, 8))) for kind in ("mt5", "umt5")),
    Family("switch_transformers", replace(T5_LIKE, sizes=(768, 12, 12))),
)  # fmt: skip
FAMILIES = (*ENCODERS, *IMAGES, *SPEAKERS, *BOTH)
