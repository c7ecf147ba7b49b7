"""Hypothesis composites that share dimensions: random attention problems of every shape, mask, magnitude and type.

Numbers come from a seeded generator, so an example is a shape, a few switches and a seed; every parameter is redrawn,
biases too. Each float32 problem can be read exactly as a float64 one (`exact`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.attention import Attended, attend, project
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws

MASKS = ("none", "causal", "padding", "additive", "mixed")
Attend = Callable[..., Attended]


@dataclass(frozen=True)
class Problem:
    """One attention problem. run() calls attend() on it, or any other function with that signature."""

    x: Float[Tensor, "B T C"]
    y: Float[Tensor, "B S C"] | None
    w_q: Float[Tensor, "HD C"]
    w_k: Float[Tensor, "GD C"]
    w_v: Float[Tensor, "GD C"]
    w_o: Float[Tensor, "C HD"]
    b_q: Float[Tensor, " HD"]
    b_k: Float[Tensor, " GD"]
    b_v: Float[Tensor, " GD"]
    b_o: Float[Tensor, " C"]
    mask: Float[Tensor, "b h t S"] | None
    heads: int
    kv_heads: int
    scale: float | None
    fused: bool

    def run(self, function: Attend = attend, **changes: Any) -> Attended:
        """The output of the heads side by side (w_o=None) unless w_o is asked for: run(w_o=p.w_o)."""
        given = {f.name: getattr(self, f.name) for f in fields(self)} | {"w_o": None, "b_o": None} | changes
        return function(given.pop("x"), given.pop("w_q"), given.pop("w_k"), given.pop("w_v"), given.pop("w_o"), **given)

    def heads_out(self, function: Attend = attend, **changes: Any) -> Float[Tensor, "B H T D"]:
        """O for each head, read in float64."""
        return self.run(function, **changes).output.double().unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def weights(self, function: Attend = attend, **changes: Any) -> Float[Tensor, "B H T S"]:
        """P, read in float64."""
        weights = self.run(function, weights=True, **changes).weights
        assert weights is not None
        return weights.double()

    def exact(self) -> "Problem":
        """The same numbers in float64."""
        return replace(self, **{k: v.double() for k, v in vars(self).items() if isinstance(v, Tensor)})

    def redrawn(self, seed: int, magnitude: float, *names: str) -> "Problem":
        """These biases drawn anew at this magnitude."""
        g = Draws(seed)
        old = {name: getattr(self, name) for name in names}
        return replace(
            self,
            **{n: (magnitude * g.normal(*b.shape)).to(b) for n, b in old.items()},
        )

    @property
    def source(self) -> Float[Tensor, "B S C"]:
        return self.x if self.y is None else self.y

    @property
    def u(self) -> float:
        return unit_roundoff(self.x.dtype)

    @property
    def roundings(self) -> int:
        """Of a projection with a bias: C products, C − 1 sums and the bias."""
        return self.x.shape[-1] + 1

    @property
    def factor(self) -> float:
        return (self.w_q.shape[0] // self.heads) ** -0.5 if self.scale is None else self.scale

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def mask64(self) -> Tensor | None:
        return None if self.mask is None else self.mask.double()

    @property
    def sees(self) -> Float[Tensor, "B H T"]:
        """The rows that see at least one key."""
        shape = (self.x.shape[0], self.heads, self.x.shape[1], self.source.shape[1])
        visible = torch.ones(shape, dtype=torch.bool) if self.mask is None else ~self.mask.isneginf()
        return visible.expand(shape).any(-1)

    def q(self, bias: Tensor | None) -> Float[Tensor, "B H T D"]:
        return project(self.x, self.w_q, bias, self.heads).double()

    def k(self, bias: Tensor | None) -> Float[Tensor, "B H S D"]:
        return project(self.source, self.w_k, bias, self.kv_heads).double().repeat_interleave(self.group, 1)

    def v(self, bias: Tensor | None) -> Float[Tensor, "B H S D"]:
        return project(self.source, self.w_v, bias, self.kv_heads).double().repeat_interleave(self.group, 1)

    def sizes(self, weight: Tensor, heads: int, bias: Tensor | None = None) -> Float[Tensor, "B H t D"]:
        """|y||W|ᵀ + |b|, which bounds a projection and scales its rounding error."""
        tokens = self.x if heads == self.heads and weight is self.w_q else self.source
        size = project(tokens.abs(), weight.abs(), None if bias is None else bias.abs(), heads).double()
        return size.repeat_interleave(self.heads // heads, 1)

    def per_head(self, bias: Float[Tensor, " hD"]) -> Float[Tensor, "H 1 D"]:
        """A bias as each query head meets it, in float64."""
        by_head = bias.double().view(-1, 1, self.w_q.shape[0] // self.heads)
        return by_head.repeat_interleave(self.heads // by_head.shape[0], 0)


@st.composite
def problems(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    *,
    blind: bool = False,
    keys: int = 1,
    magnitude: float = 1e3,
    masks: tuple[str, ...] = MASKS,
    single: bool = False,
) -> Problem:
    """MHA, MQA and GQA; self- and cross-attention; masks that hide, that add, or both; biases from 1e-3 to `magnitude`.

    blind  some rows may see no key
    keys   at least this many key tokens
    single one sequence and one head
    """
    batch, queries = draw(st.integers(1, 1 if single else 2)), draw(st.integers(1, 5))
    cross = draw(st.booleans()) or keys > queries
    sources = draw(st.integers(keys, 6)) if cross else queries
    kv_heads, group = (1, 1) if single else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    heads, size, width = kv_heads * group, draw(st.integers(1, 5)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(masks))
    scale = draw(st.sampled_from((None, 1.0, 0.1)))
    fused = draw(st.booleans())
    big = 10.0 ** draw(st.floats(-3, torch.tensor(magnitude).log10().item()))
    g = Draws(draw(st.integers(0, 2**31)))

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (std * g.normal(*shape)).to(dtype)

    mask = random_mask(kind, (batch, heads, queries, sources), g, blind=blind)
    return Problem(
        x=normal(batch, queries, width),
        y=normal(batch, sources, width) if cross else None,
        w_q=normal(heads * size, width),
        w_k=normal(kv_heads * size, width),
        w_v=normal(kv_heads * size, width),
        w_o=normal(width, heads * size),
        b_q=normal(heads * size, std=big),
        b_k=normal(kv_heads * size, std=big),
        b_v=normal(kv_heads * size, std=big),
        b_o=normal(width, std=big),
        mask=None if mask is None else mask.to(dtype),
        heads=heads,
        kv_heads=kv_heads,
        scale=scale,
        fused=fused,
    )


def random_mask(kind: str, shape: tuple[int, ...], g: Draws, *, blind: bool) -> Tensor | None:
    """An additive mask. Unless `blind`, every row keeps one finite entry."""
    if kind == "none":
        return None
    batch, heads, queries, keys = shape
    gap = torch.arange(queries)[:, None] - torch.arange(keys)
    hidden = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    if kind == "causal":
        hidden = hidden | (gap < 0)
    if kind in ("padding", "mixed"):
        hidden = hidden | (g.uniform(batch, 1, 1, keys) < 0.4)
    mask = torch.zeros(batch, 1, queries, keys, dtype=torch.float64)
    if kind in ("additive", "mixed"):
        slopes = g.uniform(1, heads, 1, 1)
        mask = mask - slopes * gap.abs() + g.normal(batch, 1, queries, keys)
    if blind:
        hidden = hidden | (g.uniform(batch, 1, queries, 1) < 0.3)
    else:
        hidden = hidden & ~(hidden.all(-1, keepdim=True) & (torch.arange(keys) == 0))
    return mask.masked_fill(hidden, -torch.inf)
