"""config.json, read strictly: each value is checked for its type, and a key that nobody read is noticed."""

import re
from dataclasses import dataclass, field
from typing import Any

from minibeft.theory.rotary import Rotary

REQUIRED = object()

# Keys that sound like attention and change nothing that a theorem speaks about: sizes, precision, speed, generation.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion max_position_embeddings max_source_positions
    max_target_positions max_window_layers mlp_bias n_positions offset_alibi output_attentions
    pooler_num_attention_heads pooler_size_per_head prefix pruned_heads relative_attention_max_distance
    relative_attention_num_buckets reorder_and_upcast_attn skip_bias_add skip_bias_add_qkv
    """.split()
)
SUSPECT = re.compile(
    r"attn|attention|rope|rotary|alibi|softcap|sink|position|relative|window|bias|gate|prefix|head|(^|_)(qk|kv|qkv)(_|$)"
)
# Each of these turns every pair of the rotary dims; other types (proportional, mrope, axial) may leave some alone.
ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3"})


class Unclear(Exception):
    """A configuration that does not say what its attention does."""


@dataclass
class StrictReader:
    """A configuration, and which of its keys have been read. Keys are given as "old|new": the first that is there."""

    config: dict[str, Any]
    seen: set[str] = field(default_factory=set)

    def get(self, keys: str, default: Any = REQUIRED) -> Any:
        """The value, or the default; Unclear when a required key is missing."""
        names = keys.split("|")
        self.seen.update(names)
        for name in names:
            if name in self.config:
                return self.config[name]
        if default is REQUIRED:
            raise Unclear(f"{' or '.join(names)} is missing")
        return default

    def count(self, keys: str, default: Any = REQUIRED) -> int:
        """A positive integer."""
        value = self.get(keys, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Unclear(f"{keys} is {value!r}, not a positive integer")
        return value

    def number(self, keys: str, default: Any = REQUIRED) -> float:
        """A number that is not negative."""
        value = self.get(keys, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise Unclear(f"{keys} is {value!r}, not a number from 0 up")
        return float(value)

    def flag(self, keys: str, default: bool) -> bool:
        """True or false."""
        value = self.get(keys, default)
        if not isinstance(value, bool):
            raise Unclear(f"{keys} is {value!r}, not true or false")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of these words."""
        value = self.get(key, default)
        if value not in allowed:
            raise Unclear(f"{key} is {value!r}, not one of {', '.join(allowed)}")
        return value

    def finish(self) -> None:
        """Unclear when a key that sounds like attention is on and nobody has read it."""
        if self.config.get("auto_map"):
            raise Unclear("auto_map asks for the repository's own code, which config.json does not describe")
        for key, value in self.config.items():
            on = value not in (None, False, 0, {}, [], "")
            if on and key not in self.seen | HARMLESS and SUSPECT.search(key):
                raise Unclear(f"{key} is {value!r}, which this family is not known to have")


def rotary(c: StrictReader, head_size: int, *, fraction: float | None) -> Rotary:
    """Rotary positions from rope_parameters, rope_scaling or the flat keys.

    fraction is the family's default share of the dims that turn; None: it turns whole heads and knows no share. Only
    which dims turn matters to a verdict, so scaled frequencies (linear, yarn, llama3 …) are left unscaled.
    """
    given = c.get("rope_parameters", None) or c.get("rope_scaling", None) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise Unclear(f"rope_parameters is {given!r}, not one flat object")
    nested = StrictReader({**{key: value for key, value in c.config.items() if key in FLAT}, **given})
    c.seen |= FLAT
    kind = nested.get("rope_type|type", "default")
    if kind not in ROPE_TYPES:
        raise Unclear(f"rope_type is {kind!r}, not one of {', '.join(sorted(ROPE_TYPES))}")
    share = nested.number("partial_rotary_factor|rotary_pct", 1.0 if fraction is None else fraction)
    if fraction is None and share != 1.0:
        raise Unclear(f"partial_rotary_factor is {share}, and this family turns whole heads")
    return turning(int(head_size * share), head_size, nested.number("rope_theta|rotary_emb_base", 10_000.0))


FLAT = frozenset({"rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct"})


def turning(dims: Any, head_size: int, base: float = 10_000.0, *, interleaved: bool = False) -> Rotary:
    """Rotary positions on the first `dims` of a head; Unclear when they do not fit it."""
    if not isinstance(dims, int) or dims % 2 or not 0 <= dims <= head_size:
        raise Unclear(f"{dims!r} rotary dims do not fit a head of {head_size}: an even number up to that is needed")
    if base <= 0:
        raise Unclear(f"the rotary base is {base}, not a positive number")
    return Rotary(dims, base, interleaved)
