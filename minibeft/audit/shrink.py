"""A configuration as small as it can be with the same attention: every width divided by one number, few layers, few tokens.

Dividing keeps what must fit together: heads × head size = width, equal widths of neighbouring parts, lists of widths.
Keys are told by the words that transformers' configurations use, not by model.
"""

import re
from collections.abc import Mapping
from typing import Any

WIDTH = re.compile(r"hidden|d_model|dim|width|channel|embd|embed|inter|inner|rank|size|d_kv|d_ff|d_head|section|filter|proj")
KEPT = re.compile(r"vocab|image|patch|window|kernel|stride|max_|position|type|chunk|block|batch|crop|sample|pool|mel|num_|"
    r"codebook|resolution|shape|grid|frame|_per_|bins|id$|ids$|group")  # fmt: skip
LAYERS = re.compile(r"layers?$|^depths?$|_depths?$|num_.*blocks$|^n_layer|repeats$")
NOT_LAYERS = re.compile(r"types?|interval|freq|step|window|first|last|period|drop|feature|index|indices|every|skip|norm|select")
TOKENS, TOKEN_ID = 1024, re.compile(r"token_(id|ids|index)$|^(image|video|audio)_token")


def depth(raw: Mapping[str, Any], least: int) -> int:
    """How many layers show each kind of layer that the configuration names."""
    layers = raw.get("num_hidden_layers")
    lists = [value for value in raw.values() if isinstance(value, list) and value and len(value) == layers]
    kinds = [max(value.index(kind) for kind in value) + 1 for value in lists]
    return min(max([least, *kinds]), 12)


def shrunk(raw: Mapping[str, Any], factor: int, least: int, pixels: int | None) -> dict[str, Any]:
    """The small configuration; pixels: patches along a side of an image, None leaves images as they are."""
    ids: dict[int, int] = {}
    return part(raw, factor, least, pixels, ids)


def part(raw: Mapping[str, Any], factor: int, least: int, pixels: int | None, ids: dict[int, int]) -> dict[str, Any]:
    """The same for a configuration inside a configuration."""
    count, whole = depth(raw, least), raw.get("num_hidden_layers")

    def small(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return part(value, factor, least, pixels, ids)
        if isinstance(value, list | tuple):
            if len(value) == whole and not all(isinstance(v, int) and v > 16 for v in value):
                return list(value)[:count]
            return [small(key, each) for each in value]
        if type(value) is not int:
            return value
        if TOKEN_ID.search(key):
            return value if value < TOKENS else ids.setdefault(value, TOKENS - 1 - len(ids))
        if "vocab" in key and "size" in key:
            return min(value, TOKENS)
        if "image_size" in key and pixels is not None:
            patch = raw.get("patch_size", 16)
            return min(value, pixels * (patch if isinstance(patch, int) else 16))
        if LAYERS.search(key) and not NOT_LAYERS.search(key):
            return min(value, count)
        if "experts" in key and "per" not in key and value >= 32:
            return max(value // 8, 16)
        if WIDTH.search(key) and not KEPT.search(key) and value >= 32 and value % factor == 0:
            return value // factor
        return value

    return {key: small(key, value) for key, value in raw.items()}
