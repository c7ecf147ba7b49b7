"""A batch without its padding: the real tokens of all sequences in one table, (N, C) instead of (B, T, C).

Linear maps, norms and activations work on one token at a time, so they need no change. Only attention must know which
tokens belong to one sequence: it gets them as (B, H, T, D), where padding is zero and masked. This is exact: the real
tokens get what the padded computation gives, and nothing reads the padding.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minibeft.models.packed.dropout import draw_keep, keep_only
from minibeft.models.packed.sets import Rows


class Places(NamedTuple):
    """`parts` vectors per token, N tokens: rows of D numbers in packed order (token, part, head), and in the order of
    attention (part, sequence, head, position). n = parts·N·H, m = parts·B·H·T.

    there  the packed row that goes to each position in the order of attention; an arbitrary row at padding
    back   the position of each packed row in that order
    empty  the positions of padding
    """

    there: Int[Tensor, " m"]
    back: Int[Tensor, " n"]
    empty: Int[Tensor, " e"]


class Packing:
    """Where the N real tokens of B sequences stand among B×T positions; sequences are padded on the right.

    real   the tokens' positions b·T + t, in order
    first  the row of each sequence's first token among the N
    stream where attention's dropout draws its random numbers; None: torch's own
    """

    def __init__(self, mask: Int[Tensor, "B T"], heads: int, stream: torch.Generator | None = None):
        self.stream = stream
        self.shape, self.heads = (mask.shape[0], heads, mask.shape[1]), heads
        self.filled: Bool[Tensor, "B T"] = mask.bool()
        self.real = self.filled.flatten().nonzero()[:, 0]
        self.first = self.filled.sum(1).cumsum(0) - self.filled.sum(1)
        self.known: dict[int, Places] = {}

    @cached_property
    def mask(self) -> Float[Tensor, "B 1 1 T"] | None:
        """0 at real tokens, −∞ at padding; None when there is no padding."""
        if len(self.real) == self.filled.numel():
            return None
        zeros = torch.zeros(self.filled.shape, device=self.filled.device)
        return zeros.masked_fill(~self.filled, -torch.inf)[:, None, None]

    def places(self, parts: int) -> Places:
        """Made once per batch: all blocks use the same."""
        if parts not in self.known:
            rows, heads, columns = self.shape
            device, grid = self.real.device, (parts, rows, heads, columns)
            part, head = torch.arange(parts, device=device), torch.arange(heads, device=device)
            row = (self.filled.flatten().cumsum(0) - 1).clamp_min(0).view(rows, 1, columns)
            there = (row * parts + part[:, None, None, None]) * heads + head[:, None]
            sequence, position = self.real // columns, self.real % columns
            back = ((part[:, None] * rows + sequence[:, None, None]) * heads + head) * columns + position[:, None, None]
            empty = (~self.filled)[None, :, None].expand(grid).flatten().nonzero()[:, 0]
            self.known[parts] = Places(there.flatten(), back.flatten(), empty)
        return self.known[parts]

    def spread(self, x: Float[Tensor, "N pHD"], parts: int) -> tuple[Float[Tensor, "B H T D"], ...]:
        """Each part by sequence and head, zero where there is no token."""
        out = Spread.apply(x, self.places(parts), x.shape[1] // (parts * self.heads))
        return out.view(parts, *self.shape, -1).unbind(0)

    def collect(self, o: Float[Tensor, "B H T D"]) -> Float[Tensor, "N HD"]:
        """The real tokens again, heads side by side."""
        return Collect.apply(o.flatten(0, 2), self.places(1), self.heads)

    def mix(self, q: Tensor | None, projected: Sequence[Tensor], dropout: float) -> Float[Tensor, "n HD"]:
        """O of every token, from its projections, which stand side by side in one tensor or in several.

        With q (B, HD), the queries of the first tokens, O of the first tokens alone.
        """
        size, width = sum(part.shape[1] for part in projected), 2 if q is not None else 3
        parts = [one for x in projected for one in self.spread(x, width * x.shape[1] // size)]  # (B, H, T, D) each
        if q is not None:
            parts.insert(0, q.unflatten(-1, (1, self.heads, -1)).transpose(1, 2))  # (B, H, 1, D)
        o = Mix.apply(*parts, self.mask, dropout, self.stream)
        return self.collect(o) if q is None else o.flatten(1)


class Packings:
    """Packings of several runs, one after another, each padded to its own longest; none attends to another."""

    def __init__(self, parts: Sequence[Packing]):
        self.parts = parts
        self.tokens, self.sequences = [len(part.real) for part in parts], [len(part.first) for part in parts]
        starts = [sum(self.tokens[:i]) for i in range(len(parts))]
        self.first = torch.cat([part.first + start for part, start in zip(parts, starts, strict=True)])

    @property
    def rows(self) -> Rows:
        """The rows of packing i belong to set i."""
        owners = torch.arange(len(self.parts), device=self.first.device)
        return Rows(owners, self.tokens, self.sequences, [part.stream for part in self.parts])

    def mix(self, q: Tensor | None, projected: Sequence[Tensor], dropout: float) -> Float[Tensor, "n HD"]:
        """As Packing.mix, each part for itself."""
        queries = [None] * len(self.parts) if q is None else q.split(self.sequences)
        split = zip(*(x.split(self.tokens) for x in projected), strict=True)
        found = zip(self.parts, queries, split, strict=True)
        return torch.cat([part.mix(own, values, dropout) for part, own, values in found])


class Spread(torch.autograd.Function):
    """Packed order to the order of attention. Its transpose is Collect, which is its backward."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "N pHD"], places: Places, size: int) -> Float[Tensor, "m D"]:
        ctx.places, ctx.width = places, x.shape[1] // size
        return x.reshape(-1, size).index_select(0, places.there).index_fill_(0, places.empty, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "m D"]) -> tuple[Float[Tensor, "N pHD"], None, None]:
        return Collect.apply(*grad_outputs, ctx.places, ctx.width), None, None


class Collect(torch.autograd.Function):
    """The order of attention to packed order, `heads` rows side by side. Its transpose is Spread."""

    @staticmethod
    def forward(ctx: Any, grid: Float[Tensor, "m D"], places: Places, heads: int) -> Float[Tensor, "N hD"]:
        ctx.places, ctx.size = places, grid.shape[1]
        return grid.index_select(0, places.back).view(-1, heads * grid.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "N hD"]) -> tuple[Float[Tensor, "m D"], None, None]:
        return Spread.apply(*grad_outputs, ctx.places, ctx.size), None, None


def softmax(z: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch S"]:
    """Softmax of each row, in place; torch.softmax takes four times as long for rows of a dozen numbers."""
    z = z.sub_(z.amax(-1, keepdim=True)).exp_()
    return z.div_(z.sum(-1, keepdim=True))


def mixing(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], mask: Float[Tensor, "B 1 1 S"] | None
) -> Float[Tensor, "B H T S"]:
    """P = softmax(q kᵀ/√D + mask), in float32 at least, rounded to q's type."""
    z = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)).div_(math.sqrt(q.shape[-1]))
    return softmax(z if mask is None else z.add_(mask)).to(q.dtype)


class Mix(torch.autograd.Function):
    """O = dropout(softmax(q kᵀ/√D + mask)) v, for short sequences: torch's fused attention is slow for those on a CPU.

    Q, K and V are kept, and P, of B H T S numbers, is computed again from them. Only the gradients that are asked for
    are computed: b_v of the lowest trained layer needs only the gradient of v (theorem V3), and then only P is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "B H T D"],
        k: Float[Tensor, "B H S D"],
        v: Float[Tensor, "B H S D"],
        mask: Float[Tensor, "B 1 1 S"] | None,
        dropout: float,
        stream: torch.Generator | None = None,
    ) -> Float[Tensor, "B H T D"]:
        p = mixing(q, k, mask)
        keep = draw_keep(p, dropout, stream) if dropout else None
        ctx.save_for_backward(*((q, k, v, mask, None) if any(ctx.needs_input_grad[:2]) else (*[None] * 4, p)), keep)
        ctx.dropout = dropout
        return (p if keep is None else keep_only(keep, p, dropout)) @ v

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "B H T D"]) -> tuple[Tensor | None, ...]:
        (do,) = grad_outputs
        q, k, v, mask, p, keep = ctx.saved_tensors
        p = mixing(q, k, mask) if p is None else p
        need_q, need_k, need_v = ctx.needs_input_grad[:3]
        dq = dk = None
        if need_q or need_k:
            dp = do @ v.mT
            dp = dp if keep is None else keep_only(keep, dp, ctx.dropout)
            dz = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
            dq = dz @ k if need_q else None
            dk = dz.mT @ q if need_k else None
        if not need_v:
            return dq, dk, None, None, None, None
        dropped = p if keep is None else keep_only(keep, p, ctx.dropout)
        return dq, dk, dropped.mT @ do, None, None, None
