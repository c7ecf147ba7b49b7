"""Hypothesis composites that share dimensions: random attention problems of every shape, mask, magnitude and type.

Numbers come from a seeded generator, so an example is a shape, a few switches and a seed; every parameter is redrawn,
biases too. Each float32 problem can be read exactly as a float64 one (`exact`).
"""

import torch
from hypothesis import strategies as st
from torch import Tensor

from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance

MASKS = ("none", "causal", "padding", "additive", "mixed")


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
) -> Instance:
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
    return Instance(
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
