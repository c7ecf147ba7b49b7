"""A configuration as small as it can be with the same attention: few heads, short heads, few layers, few tokens.

All widths are divided by the same number, so that sizes which must match still do: heads × head size = width, equal
widths of neighbouring parts, lists of widths. What a key means is read from the words in its name, not from a table of
models.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

WIDTH = re.compile(
    r"hidden|d_model|dim|width|channel|embd|embed|inter|inner|rank|size|d_kv|d_ff|d_head|section|filter|proj"
)
HEAD_WIDTH = re.compile(r"head_dim|head_size|d_kv|d_head|rotary_dim|section|dim_head|hidden_per_head")
HEADS = re.compile(r"heads?$|_head_kv$|key_value_groups$")
KEPT = re.compile(
    r"vocab|image|patch|window|kernel|stride|max_|position|type|chunk|block|batch|crop|sample|pool|mel|num_|"
    r"codebook|resolution|shape|grid|frame|_per_|bins|id$|ids$|group"
)
LAYERS = re.compile(r"layers?$|^depths?$|_depths?$|num_.*blocks$|^n_layer|repeats$|self_attends")
NOT_LAYERS = re.compile(
    r"types?|interval|freq|step|window|first|last|period|drop|feat|index|indices|every|skip|norm|select|dense_replace"
)
# Widths that need not fit others: inside an MLP.
INSIDE = re.compile(r"intermediate|ffn|mlp_dim|inner_dim|feedforward")
# Keys that choose layers of another part of the model by their numbers.
CHOSEN = re.compile(r"(feature|select)_layers?$")
TOKEN_ID = re.compile(r"token_(id|ids|index)$|^(image|video|audio)_token")
# Lists that name the layers before shrinking; transformers makes them again.
STAGES = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
TOKENS, FRAMES, HEADS_LEFT, MOST_LAYERS, WIDE = 1024, 64, 4, 12, 128


@dataclass(frozen=True)
class Way:
    """How to shrink: widths are divided by `factor`, and with fewer_heads also by what the heads are divided by.

    layers  at least this many, and enough to show each kind of layer that the configuration names
    patches along a side of an image; None leaves images as they are
    fill    give the usual value where the configuration leaves open a number that models need
    """

    factor: int
    fewer_heads: bool = True
    layers: int = 2
    patches: int | None = 4
    fill: bool = False

    def shrink(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The small configuration, in which different tokens have different ids, all below TOKENS."""
        small = self.part(raw)
        ids = [*dict.fromkeys(token_ids("", small))]
        free = (number for number in range(TOKENS - 1, -1, -1) if number not in ids)
        return with_ids("", small, {number: number if number < TOKENS else next(free) for number in ids})

    def part(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration, or one inside it, with smaller numbers but for the ids of tokens."""
        heads = [v for k, v in raw.items() if type(v) is int and HEADS.search(k) and not HEAD_WIDTH.search(k)]
        most = max(heads, default=1)
        fewer = most // HEADS_LEFT if self.fewer_heads and most % HEADS_LEFT == 0 and most > HEADS_LEFT else 1
        wide = any(
            type(v) is int and v >= WIDE and WIDTH.search(str(k)) and not KEPT.search(str(k)) for k, v in raw.items()
        )
        way = self if wide or "hidden_size" not in raw else replace(self, factor=1, fewer_heads=False)
        kept = {key: value for key, value in raw.items() if key not in STAGES}
        small = {key: way.value(raw, str(key), value, fewer if wide else 1) for key, value in kept.items()}
        return small | (usual(small) if self.fill else {})

    def value(self, raw: Mapping[str, Any], key: str, value: Any, fewer: int) -> Any:
        """One entry; a list with one item per layer loses the items of the layers that are removed."""
        if isinstance(value, dict):
            if "layer" in key and value and all(str(number).isdigit() for number in value):
                value = {number: each for number, each in value.items() if int(number) < self.depth(raw)}
            return self.part(value)
        if isinstance(value, list | tuple):
            wide = all(type(v) is int and v > 16 for v in value) and "per_layer" not in key
            if len(value) == raw.get("num_hidden_layers") and not wide:
                return list(value)[: self.depth(raw)]
            if "section" in key and value and all(type(v) is int and v % self.factor == 0 for v in value):
                return [v // self.factor for v in value]
            return [self.value(raw, key, each, fewer) for each in value]
        return self.number(raw, key, value, fewer) if type(value) is int else value

    def number(self, raw: Mapping[str, Any], key: str, value: int, fewer: int) -> int:
        """A count or a width; a token's id stays."""
        if TOKEN_ID.search(key):
            return value
        if "vocab" in key and "size" in key:
            return min(value, TOKENS)
        if "image_size" in key and self.patches is not None:
            patch = raw.get("patch_size")
            return min(value, self.patches * (patch if isinstance(patch, int) else 16))
        if key.startswith("max_") and key.endswith(("source_positions", "target_positions")):
            return min(value, FRAMES)
        if CHOSEN.search(key):
            return min(value, 1)
        if LAYERS.search(key) and not NOT_LAYERS.search(key):
            return min(value, self.depth(raw))
        if HEADS.search(key) and not HEAD_WIDTH.search(key):
            return max(value // fewer, 1)
        if "experts" in key and "_per_" not in key and value >= 32:
            return max(value // 4, 16)
        if WIDTH.search(key) and not KEPT.search(key) and value >= 32:
            by = self.factor * (1 if HEAD_WIDTH.search(key) else fewer)
            if INSIDE.search(key):
                return max(value // by, 8)
            return value // by if value % by == 0 and value >= 2 * by else value
        return value

    def depth(self, raw: Mapping[str, Any]) -> int:
        """How many layers are left."""
        whole = raw.get("num_hidden_layers")
        lists = [value for value in raw.values() if isinstance(value, list) and value and len(value) == whole]
        kinds = [max(value.index(kind) for kind in value) + 1 for value in lists]
        return min(max([self.layers, *kinds]), MOST_LAYERS)


def token_ids(key: str, value: Any) -> Iterator[int]:
    """The ids of tokens that are in this entry, and in the entries inside it."""
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else ((key, each) for each in value):
            yield from token_ids(str(name), each)
    elif type(value) is int and TOKEN_ID.search(key):
        yield value


def with_ids(key: str, value: Any, ids: Mapping[int, int]) -> Any:
    """The entry with other ids of tokens."""
    if isinstance(value, dict):
        return {name: with_ids(str(name), each, ids) for name, each in value.items()}
    if isinstance(value, list):
        return [with_ids(key, each, ids) for each in value]
    return ids[value] if type(value) is int and TOKEN_ID.search(key) else value


def usual(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What models need and this configuration leaves open."""
    heads, width = raw.get("num_attention_heads"), raw.get("hidden_size")
    numbers = {
        "head_dim": width // heads if isinstance(width, int) and isinstance(heads, int) else None,
        "num_key_value_heads": heads,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "prediction_length": 8,
    }
    return {key: number for key, number in numbers.items() if key in raw and raw[key] is None}


WAYS = (
    Way(16),
    Way(8, fewer_heads=False),
    Way(16, fewer_heads=False, patches=None),
    Way(16, layers=8),
    Way(4, fewer_heads=False),
    Way(16, fill=True),
    Way(1),
    Way(9, fewer_heads=False),
    Way(10, fewer_heads=False),
    Way(2, fewer_heads=False, fill=True),
)
