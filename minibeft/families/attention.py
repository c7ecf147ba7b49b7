"""How a config.json tells of a model's attention: which key says what, and which layers have which kind."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minibeft.families.reading import LARGE, Reader
from minibeft.theory.rotary import Llama3, Rotary, Yarn
from minibeft.theory.variants import AttentionSpec

FULL, SLIDING = "full_attention", "sliding_attention"
# Each of these turns every pair of the rotary dims; other types (proportional, mrope, axial) may leave some alone.
# Of the first four we know the frequencies as well.
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
EXACT = ROPE_TYPES[:4]
FLAT = frozenset({"rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct"})
MOST_LAYERS = 2**16


@dataclass(frozen=True)
class Site:
    """One kind of attention in a model: where it is, which layers have it, and what it is.

    takes_prefix  prefix tuning gives it keys and values
    exact         the spec has every number that the model needs; False: only what verdicts depend on (of yarn's rotary
                  positions the dims, but not the frequencies)
    carries       the bias after the output projection, where there is one, is added; False: it is ignored
    """

    name: str
    layers: tuple[int, ...]
    spec: AttentionSpec
    takes_prefix: bool = True
    exact: bool = True
    carries: bool = True


@dataclass(frozen=True)
class Switch:
    """Biases that exist where a key of config.json is on; those of `always` exist in any case."""

    key: str
    biases: str | tuple[str, ...]
    default: bool = False
    always: str = ""

    def read(self, c: Reader) -> frozenset[str]:
        """The biases of this configuration."""
        return frozenset(self.always) | frozenset(self.biases if c.flag(self.key, self.default) else "")


def self_attention(_: Reader, site: Site) -> list[Site]:
    """The usual case: the same self-attention in every layer."""
    return [site]


@dataclass(frozen=True)
class Keys:
    """Which keys say what, each with the default of transformers' configuration class; "old|new" are two spellings.

    names      of the keys that hold C, H and the number of layers; sizes: their defaults
    kv_heads   None, and null in the file: as many as heads
    head_size  None, and null in the file: C / H
    biases     those of q, k, v, o that the attention has, or the switch that says so
    rotary     "whole" heads turn, or this share of their dims unless the file names another; or the key that holds the
               number of dims, whose pairs are then neighbours (GPT-J)
    windows    where there is a sliding window and no layer_types: which layers have it ("unturned": those without
               rotary positions), and its default size
    only       key → the values for which the attention is what this says
    sites      the kinds of attention that a configuration can ask for, from the plain one
    layered    sites also says which layers have which kind, so it handles layer_types and windows itself
    """

    names: tuple[str, str, str] = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    sizes: tuple[int, int, int] = (768, 12, 12)
    kv_heads: tuple[str, int | None] | None = None
    head_size: tuple[str, int | None] | None = None
    dropout: tuple[str, float] = ("attention_dropout", 0.0)
    biases: str | Switch = "qkvo"
    causal: bool = False
    rotary: Literal["whole"] | float | tuple[str, int] | None = None
    theta: float = 10_000.0
    windows: tuple[Literal["all", "even", "late", "unturned"], int | None] | None = None
    qk_norm: Literal["rms"] | None = None
    sink: Literal["learned"] | None = None
    position_bias: Literal["alibi", "learned"] | None = None
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sites: Callable[[Reader, Site], list[Site]] = self_attention
    layered: bool = False

    def read(self, c: Reader) -> list[Site]:
        """The sites of this configuration; Unclear when it is not understood."""
        c.only(self.only)
        heads, kv_heads, size, width, count = self.shape(c)
        rotary, exact = self.rotation(c, size)
        spec = AttentionSpec(
            *(heads, kv_heads, size, width),
            biases=self.biases.read(c) if isinstance(self.biases, Switch) else frozenset(self.biases),
            causal=self.causal,
            rotary=rotary,
            position_bias=self.position_bias,
            qk_norm=self.qk_norm,
            sink=self.sink,
            dropout=c.probability(*self.dropout),
        )
        sites = self.sites(c, Site("self-attention", tuple(range(count)), spec, exact=exact))
        if self.layered:
            return sites
        window, sliding = self.window(c, count)
        if self.windows is not None and self.windows[0] == "unturned" and not c.get("layer_types", []):
            sliding = {i for each in sites if each.spec.rotary is None for i in each.layers}
        return [part for site in sites for part in split(site, window, sliding)]

    def shape(self, c: Reader) -> tuple[int, int, int, int, int]:
        """H, G, D and C, which must fit, and the number of layers."""
        most = (LARGE, LARGE, MOST_LAYERS)
        width, heads, layers = (c.count(*each) for each in zip(self.names, self.sizes, most, strict=True))
        kv_heads, size = (count_or_none(c, key) for key in (self.kv_heads, self.head_size))
        if size is None and width % heads:
            raise c.refuse(self.names[0], f"is not a multiple of {heads} attention heads")
        if self.kv_heads is not None and heads % (kv_heads or heads):
            raise c.refuse(self.kv_heads[0], f"does not divide the {heads} heads")
        return heads, kv_heads or heads, size or width // heads, width, layers

    def rotation(self, c: Reader, size: int) -> tuple[Rotary | None, bool]:
        """Rotary positions, and whether their frequencies are known."""
        if isinstance(self.rotary, tuple):
            dims = c.optional(*self.rotary)
            if dims is None or dims % 2 or not 0 < dims <= size:
                raise c.refuse(self.rotary[0], f"must be even and between 2 and the head size {size}")
            return Rotary(dims, interleaved=True), True
        return (None, True) if self.rotary is None else rope(c, size, self.rotary, self.theta)

    def window(self, c: Reader, layers: int) -> tuple[int | None, set[int]]:
        """The sliding window, and the layers that have it."""
        kinds, size, sliding = c.get("layer_types", []), None, set[int]()
        if kinds and (len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds)):
            raise c.refuse("layer_types", f"is not handled: only {layers} of {FULL} and {SLIDING} are")
        if self.windows is not None:
            where, default = self.windows
            size = count_or_none(c, ("sliding_window", default))
            first = c.natural("max_window_layers", 28) if where == "late" else 0
            sliding = set(range(first, layers, 2 if where == "even" else 1))
            if where in ("late", "unturned") and not c.flag("use_sliding_window", False):
                size = None
        if kinds:
            sliding = {i for i, kind in enumerate(kinds) if kind == SLIDING}
            if sliding and size is None:
                raise c.refuse("layer_types", f"is not handled: without a window only {FULL} is")
        return size, sliding


def count_or_none(c: Reader, key: tuple[str, int | None] | None) -> int | None:
    """A positive integer; None where the family lacks the key, its default is None, or the file says null."""
    value = None if key is None else c.optional(*key)
    return None if key is None or value is None else c.count(key[0], value)


def split(site: Site, window: int | None, sliding: set[int]) -> list[Site]:
    """The site as the layers that see everything and those that see a sliding window."""
    if window is None:
        return [site]
    parts = [
        replace(site, layers=tuple(i for i in site.layers if i not in sliding)),
        replace(site, layers=tuple(i for i in site.layers if i in sliding), spec=replace(site.spec, window=window)),
    ]
    parts[1] = replace(parts[1], name=f"{site.name}, sliding window")
    return [part for part in parts if part.layers]


def by_kind(c: Reader, site: Site, every: int, specs: dict[str, dict[str, Any]], names: dict[str, str]) -> list[Site]:
    """A site for each kind of layer: as layer_types says, or full attention in each `every`-th layer."""
    count = len(site.layers)
    kinds = c.get("layer_types", []) or [FULL if (i + 1) % every == 0 else SLIDING for i in range(count)]
    if len(kinds) != count or any(kind not in specs and kind not in names for kind in kinds):
        raise c.refuse("layer_types", f"is not handled: only {count} of {' and '.join((*specs, *names))} are")
    found = []
    for kind, fields in specs.items():
        layers = tuple(i for i, each in enumerate(kinds) if each == kind)
        if layers:
            spec = replace(site.spec, **fields)
            found.append(replace(site, name=f"self-attention, {kind.split('_')[0]}", layers=layers, spec=spec))
    return found


def rope(c: Reader, size: int, share: Literal["whole"] | float, theta: float) -> tuple[Rotary, bool]:
    """Rotary positions from rope_parameters, rope_scaling or the flat keys, and whether their frequencies are known."""
    given = {name: c.get(name, {}) for name in ("rope_scaling", "rope_parameters")}
    name = "rope_parameters" if given["rope_parameters"] or not given["rope_scaling"] else "rope_scaling"
    inner = {**given["rope_scaling"], **given["rope_parameters"]}
    if any(isinstance(value, dict) for value in inner.values()):
        raise c.refuse(name, "is not one flat object")
    c.read |= FLAT
    flat = {key: value for key, value in c.raw.items() if key in FLAT and inner.get(key) is None}
    r = Reader({**inner, **flat}, c.where, f"{name}: " if inner and not flat else "")
    kind = r.get("rope_type|type", "default")
    if kind not in ROPE_TYPES:
        raise r.refuse("rope_type|type", f"is not one of {', '.join(ROPE_TYPES)}")
    base = r.positive("rope_theta|rotary_emb_base", theta)
    turned = r.get("partial_rotary_factor|rotary_pct", 1.0 if share == "whole" else share)
    if share == "whole" and turned != 1.0:
        raise r.refuse("partial_rotary_factor|rotary_pct", "is not handled: this family turns whole heads")
    if not 0 <= turned <= 1:
        raise r.refuse("partial_rotary_factor|rotary_pct", "must be a share, from 0 to 1")
    dims = int(size * turned)
    if dims % 2:
        raise c.refuse("partial_rotary_factor|rotary_pct|head_dim", f"leaves {dims} rotary dims, which must be even")
    scale = r.positive("factor", 1.0 if kind == "default" else 0.0) if kind in EXACT else 1.0
    turn = Rotary(dims, base, scale=scale if kind == "linear" else 1.0)
    if kind in ("llama3", "yarn"):
        length = r.get("original_max_position_embeddings", None) or c.get("max_position_embeddings", None)
        if length is None:
            return turn, False
        turn = replace(turn, **(llama3 if kind == "llama3" else yarn)(r, scale, length))
    if kind in EXACT:
        for key in sorted(inner.keys() - r.read - {"original_max_position_embeddings"}):
            if inner[key] is not None:
                raise r.refuse(key, f"is not known to the rope type {kind}")
    return turn, kind in EXACT


def llama3(r: Reader, factor: float, length: int) -> dict[str, Any]:
    """Llama 3.1's stretch of the frequencies."""
    low, high = r.positive("low_freq_factor", 0.0), r.positive("high_freq_factor", 0.0)
    if low >= high:
        raise r.refuse("high_freq_factor", f"must be more than low_freq_factor, {low}")
    return {"stretch": Llama3(factor, low, high, length)}


def yarn(r: Reader, factor: float, length: int) -> dict[str, Any]:
    """YaRN's stretch, and its factor on the logits, which is the square of the gain."""

    def gain(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if r.positive("rope_theta|rotary_emb_base", 10_000.0) <= 1:
        raise r.refuse("rope_theta|rotary_emb_base", "must be more than 1 for the rope type yarn")
    fast, slow = r.positive("beta_fast", 32.0), r.positive("beta_slow", 1.0)
    above, below = r.get("mscale", 0.0), r.get("mscale_all_dim", 0.0)
    found = r.positive("attention_factor", gain(above) / gain(below) if above and below else gain(1.0))
    return {"stretch": Yarn(factor, fast, slow, length, r.flag("truncate", True)), "gain": found}
