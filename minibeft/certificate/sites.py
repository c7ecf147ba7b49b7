"""How a config.json tells of a model's attention: which key says what, and which layers have which kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from minibeft.certificate.reading import StrictReader, Unclear, rotary
from minibeft.theory.variants import AttentionSpec

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Site:
    """One kind of attention in a model: where it is, which layers have it, what it is, and whether prefix tuning gives
    it keys and values."""

    name: str
    layers: tuple[int, ...]
    spec: AttentionSpec
    takes_prefix: bool = True


Sites = Callable[[StrictReader, AttentionSpec, int], list[Site]]


def self_attention(_: StrictReader, spec: AttentionSpec, count: int) -> list[Site]:
    """The usual case: the same self-attention in every layer."""
    return [Site("self-attention", tuple(range(count)), spec)]


@dataclass(frozen=True)
class KnownFamily:
    """Which keys of config.json say what; "old|new" are two spellings of one key, (key, default) has a default.

    biases    those that the attention has; with biases_if, those that it has only when that key is on
    always    the biases that it has in any case
    rotary    "whole" heads turn, or this share of their dims unless the configuration names another
    windows   where the configuration has a sliding window and no layer_types: which layers have it, and its default
    sites     the kinds of attention that a configuration can ask for, from what has been read so far
    """

    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: tuple[str, Any] | None = None
    head_size: tuple[str, Any] | None = None
    layers: str = "num_hidden_layers"
    dropout: tuple[str, float] = ("attention_dropout", 0.0)
    biases: str = "qkvo"
    biases_if: tuple[str, bool] | None = None
    always: str = ""
    causal: bool = False
    rotary: Literal["whole"] | float | None = None
    windows: tuple[Literal["all", "even", "late"], int] | None = None
    sites: Sites = self_attention

    def read(self, c: StrictReader) -> list[Site]:
        """The sites of this configuration; Unclear when it is not understood."""
        present = self.biases if self.biases_if is None or c.flag(*self.biases_if) else ""
        biases, dropout = frozenset(present + self.always), c.number(*self.dropout)
        spec = AttentionSpec(*self.sizes(c), biases=biases, causal=self.causal, dropout=dropout)
        if self.rotary is not None:
            share = None if self.rotary == "whole" else self.rotary
            spec = replace(spec, rotary=rotary(c, spec.head_size, fraction=share))
        count = c.count(self.layers)
        sites = self.sites(c, spec, count)
        if self.windows is not None:
            sites = [part for site in sites for part in self.by_window(c, site)]
        c.finish()
        return sites

    def sizes(self, c: StrictReader) -> tuple[int, int, int, int]:
        """H, G, D and C, which must fit."""
        width, heads = c.count(self.width), c.count(self.heads)
        kv_heads, size = heads, None
        if self.kv_heads is not None and c.get(*self.kv_heads) is not None:
            kv_heads = c.count(*self.kv_heads)
        if self.head_size is not None and c.get(*self.head_size) is not None:
            size = c.count(*self.head_size)
        if size is None and width % heads:
            raise Unclear(f"{self.heads} is {heads}, which does not divide {self.width}, {width}")
        if heads % kv_heads:
            raise Unclear(f"{kv_heads} key-value heads do not divide {heads} heads")
        return heads, kv_heads, size or width // heads, width

    def by_window(self, c: StrictReader, site: Site) -> list[Site]:
        """The site split into the layers that see everything and those that see a sliding window."""
        assert self.windows is not None
        where, default = self.windows
        size, kinds = c.get("sliding_window", default), c.get("layer_types", None)
        if (where == "late" and not c.flag("use_sliding_window", False)) or size is None:
            return [site]
        first = c.get("max_window_layers", 28) if where == "late" else 0
        sliding = set(range(first, len(site.layers), 2 if where == "even" else 1))
        if kinds is not None:
            if not isinstance(kinds, list) or len(kinds) != len(site.layers) or not {FULL, SLIDING}.issuperset(kinds):
                raise Unclear(f"layer_types is {kinds!r}, not {len(site.layers)} of {FULL} and {SLIDING}")
            sliding = {i for i, kind in enumerate(kinds) if kind == SLIDING}
        windowed = replace(site.spec, window=c.count("sliding_window", default))
        parts = [
            replace(site, layers=tuple(i for i in site.layers if i not in sliding)),
            replace(site, name=f"{site.name}, sliding window", layers=tuple(sorted(sliding)), spec=windowed),
        ]
        return [part for part in parts if part.layers]
