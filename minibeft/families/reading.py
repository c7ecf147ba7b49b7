"""config.json, read strictly and by one rule, for certify and for load_model alike.

null means absent. Where a family's own code gives null another meaning (no window, no cap, a key-value head for every
head), the key is read with `optional`.

A key that nobody has read is accepted when its value is off (null, false, 0, empty; or a factor of 1), or when its name
has none of the words that configurations use for the forward pass: those of ATTENTION for certify, which judges
attention alone, and those of BODY too for load_model, which runs the rest. One such word is enough to refuse the key;
what it does is not guessed. HARMLESS are the names that have such a word, but only say how fast something is computed,
how much of it is returned, how long a text may be, how to generate, or what another head does; not what a layer
computes.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from minibeft.errors import BadInput

ATTENTION = re.compile(
    r"attn|attention|rope|rotary|alibi|softcap|sink|position|relative|window|(?<!mlp_)bias|gate(?!d_act)|gating|prefix"
    r"|head|quer|causal|(^|_)(qk|kv|qkv|att|pos|rel|key|keys|value|values)(_|$)"
)
BODY = re.compile(
    r"norm|activ|mlp|ffn|feed_?forward|embed|embd|scal|multiplier|expert|rout|quant|residual|cap|glu|hidden|layer|drop"
    r"|bias|vocab|width|inner|intermediate|parallel|clip|conv|kernel|ssm|mamba|recurr|loop|lora|adapter|spars|mask"
    r"|encod|decod|cross|proj|linear|dense|logit|skip|bottleneck|pool|group|hash|modal|vision|audio|text_config"
    r"|(^|_)(act|fc|fn|ff|ln|eps|epsilon|moe|tie|tied|dim|dims|depth|rank|share|shared|gated|mem|memory|topk)(_|$)"
)
HARMLESS = re.compile(
    r"^(output_(attentions|hidden_states)|chunk_size_feed_forward|encoder_no_repeat_ngram_size|prefix|pruned_heads"
    r"|n_positions|max_(position_embeddings|sequence_length|window_layers|source_positions|target_positions)"
    r"|relative_attention_(num_buckets|max_distance)|skip_bias_add.*|offset_alibi|reorder_and_upcast_attn|.*_in_fp32"
    r"|(summary|sbert|unsloth)_.*|.*_checkpointing|.*_fusion|pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type)"
    r"|_?(flash_)?(attn|experts)_(implementation.*|\d_enabled)|.*_token_ids?)$"
)
LARGE = 2**31


class Unclear(BadInput):
    """A configuration that does not say, to us, what the model computes; `why` without the file's name."""

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.why = why


@dataclass
class Reader:
    """A configuration, and which of its keys have been read. "old|new" stands for the first of them that is there.

    where   the file, for errors
    inside  what stands before a key in errors, for an object inside the file
    """

    raw: Mapping[str, Any]
    where: str
    inside: str = ""
    read: set[str] = field(default_factory=set)

    def refuse(self, keys: str, why: str) -> Unclear:
        """The error for a key whose value cannot be used."""
        key = self.spelling(keys)
        given = f"{key} = {self.raw[key]!r}" if key in self.raw else f"{key}, which is not given,"
        return Unclear(self.where, f"{self.inside}{given} {why}")

    def spelling(self, keys: str) -> str:
        """The key that the file uses."""
        names = keys.split("|")
        return next((name for name in names if self.raw.get(name) is not None), names[0])

    def get(self, keys: str, default: Any) -> Any:
        """The value, of the default's type (None is the default of an integer that may be absent)."""
        self.read.update(keys.split("|"))
        value, kind = self.raw.get(self.spelling(keys)), int if default is None else type(default)
        if value is None:
            return default
        if type(value) is kind or (kind is float and type(value) is int):
            return value
        raise self.refuse(keys, f"must be of type {kind.__name__}")

    def flag(self, keys: str, default: bool) -> bool:
        """True or false."""
        return self.get(keys, default)

    def checked(self, keys: str, default: Any, holds: Callable[[Any], bool], must: str) -> Any:
        """The value, for which this must hold."""
        value = self.get(keys, default)
        if not holds(value):
            raise self.refuse(keys, f"must be {must}")
        return value

    def natural(self, keys: str, default: int) -> int:
        return self.checked(keys, default, lambda value: 0 <= value < LARGE, "at least 0 and less than 2**31")

    def count(self, keys: str, default: int, most: int = LARGE) -> int:
        return self.checked(keys, default, lambda value: 1 <= value < most, f"at least 1 and less than {most}")

    def positive(self, keys: str, default: float) -> float:
        return float(self.checked(keys, default, lambda value: 0 < value < math.inf, "a positive number"))

    def small(self, keys: str, default: float) -> float:
        return float(self.checked(keys, default, lambda value: 0 < value < 1, "between 0 and 1"))

    def probability(self, keys: str, default: float) -> float:
        return float(self.checked(keys, default, lambda value: 0 <= value < 1, "at least 0 and less than 1"))

    def choice(self, keys: str, default: str, allowed: Collection[str]) -> str:
        """One of these words."""
        return self.checked(keys, default, lambda value: value in allowed, f"one of {', '.join(allowed)}")

    def optional(self, key: str, default: Any) -> Any:
        """The value; None where the key is there and null, which here switches off what the default has on."""
        self.read.add(key)
        return None if key in self.raw and self.raw[key] is None else self.get(key, default)

    def cap(self, key: str, default: float | None) -> float | None:
        """An upper limit; None where the file says null, or where the key is absent and the default is None."""
        absent = self.raw.get(key) is None and (key in self.raw or default is None)
        self.read.add(key)
        return None if absent else self.positive(key, default or 0.0)

    def only(self, values: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse any other value of these keys than the ones for which we know what is computed."""
        for key in sorted(values.keys() & self.raw.keys()):
            value, allowed = self.raw[key], values[key]
            same = (value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed)
            off = is_off(key, value) and any(is_off(key, a) for a in allowed)
            if value is not None and not off and not any(same):
                raise self.refuse(key, f"is not handled: only {' or '.join(map(repr, allowed))} is")
        self.read.update(values)

    def finish(self, *words: re.Pattern[str]) -> None:
        """Refuse a key that nobody has read and that has one of these words, by the rule above."""
        if self.raw.get("auto_map"):
            raise self.refuse("auto_map", "asks for the repository's own code, which is not run")
        for key, value in self.raw.items():
            name = key.lower()
            suspect = any(word.search(name) for word in words) and not HARMLESS.search(name)
            if suspect and key not in self.read and not is_off(name, value):
                raise self.refuse(key, "is a key that minibeft does not know; remove it if it changes nothing")


def is_off(name: str, value: Any) -> bool:
    """Whether the value switches off whatever the key is for."""
    factor = type(value) in (int, float) and name.endswith(("factor", "multiplier", "scale"))
    return value in (None, False, 0, "", {}, []) or (factor and value == 1)
