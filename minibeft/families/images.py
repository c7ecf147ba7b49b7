"""ViT and DINOv2: pre-norm encoders whose tokens are an image's patches, with one more for the image as a whole."""

from dataclasses import replace
from typing import Any

from minibeft.families.attention import Keys, Site, Switch
from minibeft.families.family import Body, Family
from minibeft.families.reading import LARGE, Reader
from minibeft.models.features import Patches
from minibeft.models.layers import ACTIVATIONS


def height_and_width(c: Reader, key: str, default: int) -> tuple[int, int]:
    """Height and width, from one number or from a list of two."""
    value = c.raw.get(key)
    if not isinstance(value, list):
        return (size := c.count(key, default)), size
    c.read.add(key)
    if len(value) != 2 or any(type(each) is not int or not 0 < each < LARGE for each in value):
        raise c.refuse(key, "must be a positive integer, or a height and a width")
    return value[0], value[1]


def patches(c: Reader, size: int, *, masked: bool) -> Patches:
    """The grid of patches; what an image has beyond the last whole patch is not read."""
    image, patch = height_and_width(c, "image_size", 224), height_and_width(c, "patch_size", size)
    rows, columns = (whole // part for whole, part in zip(image, patch, strict=True))
    if not rows or not columns:
        raise c.refuse("patch_size", f"is larger than an image, {image[0]} × {image[1]}")
    return Patches(c.count("num_channels", 3), rows, columns, patch, masked)


def vit_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """encoder_stride is of a head that is not here."""
    c.get("encoder_stride", 16)
    if c.count("pooler_output_size", values["width"]) != values["width"]:
        raise c.refuse("pooler_output_size", f"is not handled: it must equal hidden_size = {values['width']}")
    pooler = {"pooler_activation": c.choice("pooler_act", "tanh", ACTIVATIONS)}
    return pooler | {"features": patches(c, 16, masked=False), "embedding_dropout": values["dropout"]}


def dinov2_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The keys about a backbone's feature maps have no effect: only hidden states are computed."""
    c.read.update(("apply_layernorm", "reshape_hidden_states"))
    masked = c.flag("use_mask_token", True)
    return {"inner": int(values["width"] * c.positive("mlp_ratio", 4)), "features": patches(c, 14, masked=masked)}


def scaled(c: Reader, site: Site) -> list[Site]:
    """layerscale_value, where each branch's scale starts, has no effect here."""
    c.read.add("layerscale_value")
    return [site]


VIT_BODY = Body(
    stem="ViT",
    classes="ForImageClassification",
    prefix="vit.",
    names={
        "embed.first": "embeddings.cls_token",
        "embed.positions": "embeddings.position_embeddings",
        "embed.patches": "embeddings.patch_embeddings.projection",
        "blocks.{i}.attention.q": "encoder.layer.{i}.attention.attention.query",
        "blocks.{i}.attention.k": "encoder.layer.{i}.attention.attention.key",
        "blocks.{i}.attention.v": "encoder.layer.{i}.attention.attention.value",
        "blocks.{i}.attention.o": "encoder.layer.{i}.attention.output.dense",
        "blocks.{i}.norm1": "encoder.layer.{i}.layernorm_before",
        "blocks.{i}.mlp.up": "encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.mlp.down": "encoder.layer.{i}.output.dense",
        "blocks.{i}.norm2": "encoder.layer.{i}.layernorm_after",
        "norm": "layernorm",
        "head.dense": "pooler.dense",
    },
    heads={"classification": {"head.out": "classifier"}},
    keys={
        "intermediate_size": ("inner", 3072),
        "hidden_act": ("activation", "gelu"),
        "hidden_dropout_prob": ("dropout", 0.0),
        "layer_norm_eps": ("eps", 1e-12),
    },
    fixed={"vocab": 0, "norm": "layer", "residual": "pre", "reads": "first", "tied": False},
    rest=vit_rest,
    spare=(r"embeddings\.mask_token$", r"^pooler\.dense\.(weight|bias)$"),
    copies={},
)
VIT = Family(
    "vit",
    Keys(dropout=("attention_probs_dropout_prob", 0.0), biases=Switch("qkv_bias", "qkv", default=True, always="o")),
    VIT_BODY,
)
LAYER = {"norm1": "norm1", "norm2": "norm2", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
         "after1.weight": "layer_scale1.lambda1", "after2.weight": "layer_scale2.lambda1"}  # fmt: skip
DINOV2 = Family(
    "dinov2",
    replace(VIT.attention, sites=scaled),
    replace(
        VIT_BODY,
        stem="Dinov2",
        prefix="dinov2.",
        names={
            **{ours: theirs for ours, theirs in VIT_BODY.names.items() if ours != "head.dense"},
            "embed.mask": "embeddings.mask_token",
            **{f"blocks.{{i}}.{ours}": f"encoder.layer.{{i}}.{theirs}" for ours, theirs in LAYER.items()},
        },
        keys={
            "hidden_act": ("activation", "gelu"),
            "hidden_dropout_prob": ("embedding_dropout", 0.0),
            "layer_norm_eps": ("eps", 1e-6),
        },
        fixed={**VIT_BODY.fixed, "residual": "scaled", "reads": "first and mean"},
        only={"use_swiglu_ffn": (False,), "drop_path_rate": (0.0,)},
        rest=dinov2_rest,
        spare=(),
    ),
)
FAMILIES = (VIT, DINOV2)
