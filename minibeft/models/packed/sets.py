"""Several sets of biases over one frozen model: each row of a packed batch adds the bias of its own set.

A bias is one added vector, so those who share the weights can share every matrix product: the biases of R sets are a
table (R, n), and a row picks its own from it. The gradient of a set's bias is the sum over the rows that picked it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.kernels.owners import Owners, owners
from minibeft.models.packed.frozen import frozen_linear


class Rows:
    """Which set each row of a batch belongs to: the rows are in segments, and segment i belongs to set owners[i].

    tokens     rows of each segment where a row is a token
    sequences  rows of each where a row is a sequence's first token; equal to `tokens` if every sequence has one token
    streams    where dropout draws the random numbers of each segment
    """

    def __init__(
        self,
        owners: Int[Tensor, " S"],
        tokens: Sequence[int],
        sequences: Sequence[int],
        streams: Sequence[torch.Generator | None] = (),
    ):
        self.owners, self.streams = owners, streams
        self.by_count = {sum(sizes): list(sizes) for sizes in (sequences, tokens)}
        self.picked: dict[int, Int[Tensor, " N"]] = {}
        self.owned: dict[int, Owners] = {}

    def sizes(self, count: int) -> list[int]:
        """The rows of each segment, of `count` in all."""
        return self.by_count[count]

    def pick(self, count: int) -> Int[Tensor, " N"]:
        """The set of each row; made once per batch."""
        if count not in self.picked:
            sizes = torch.tensor(self.sizes(count), device=self.owners.device)
            self.picked[count] = self.owners.repeat_interleave(sizes)
        return self.picked[count]

    def of_sets(self, sets: int, count: int) -> Owners:
        """The same as the kernels take it; made once per batch."""
        if count not in self.owned:
            self.owned[count] = owners(self.pick(count), sets)
        return self.owned[count]


class Pick(torch.autograd.Function):
    """Row i of the result is row pick[i] of the table; backward sums the rows of each set."""

    @staticmethod
    def forward(ctx: Any, table: Float[Tensor, "R n"], rows: Rows, count: int) -> Float[Tensor, "N n"]:
        ctx.rows, ctx.sets = rows, len(table)
        return table.index_select(0, rows.pick(count))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "N n"]) -> tuple[Float[Tensor, "R n"], None, None]:
        (grad,) = grad_outputs
        sums = torch.stack([part.sum(0) for part in grad.split(ctx.rows.sizes(len(grad)))])
        return sums.new_zeros(ctx.sets, sums.shape[1]).index_add_(0, ctx.rows.owners, sums), None, None


class Sets(NamedTuple):
    """One bias for each set, and the rows of the current batch."""

    table: Float[Tensor, "R n"]
    rows: Rows

    def picked(self, count: int) -> Float[Tensor, "N n"]:
        """The bias of each row."""
        return Pick.apply(self.table, self.rows, count)

    def linear(self, x: Float[Tensor, "N C"], weight: Float[Tensor, "n C"]) -> Float[Tensor, "N n"]:
        """x Wᵀ + each row's bias; where possible the sum is in place, at the cost of one shared bias."""
        bias, wide = self.picked(len(x)), torch.is_autocast_enabled(x.device.type)
        if not wide and x.dtype == weight.dtype == bias.dtype:
            return bias.addmm_(x, weight.t()) if torch.is_grad_enabled() else frozen_linear(x, weight, None).add_(bias)
        product = F.linear(x, weight)
        return (product + bias).to(product.dtype)


class Served(NamedTuple):
    """R adapters side by side.

    tables  their biases by name
    head    the head's tensors by name: (R, …), or without R where all adapters leave the model's own
    labels  the names of the classes of each
    """

    tables: dict[str, Float[Tensor, "R n"]]
    head: dict[str, Tensor]
    labels: list[tuple[str, ...]]

    def map(self, name: str, owners: Int[Tensor, " B"]) -> Callable[[Float[Tensor, "B C"]], Float[Tensor, "B n"]]:
        """A linear map of the head, row i by that of adapter owners[i]."""
        weight, bias = (self.head[f"{name}.{part}"] for part in ("weight", "bias"))
        own = bias[owners] if bias.ndim == 2 else bias
        if weight.ndim == 2:
            return lambda x: F.linear(x, weight) + own
        rows = owners.tolist()
        return lambda x: torch.stack([weight[i] @ row for row, i in zip(x, rows, strict=True)]) + own


def side_by_side(biases: Sequence[Tensor | None], sets: Sequence[Sets | None], sizes: Sequence[int]) -> Sets:
    """The biases of maps whose outputs stand side by side; a map without sets has its one bias, or zero, in each."""
    found = next(each for each in sets if each is not None)
    tables = []
    for bias, own, size in zip(biases, sets, sizes, strict=True):
        one = found.table.new_zeros(size) if bias is None else bias.to(found.table.dtype)
        tables.append(one.expand(len(found.table), -1) if own is None else own.table)
    return Sets(torch.cat(tables, 1), found.rows)


@contextmanager
def in_sets(model: nn.Module, tables: Mapping[str, Float[Tensor, "R n"]], rows: Rows) -> Iterator[None]:
    """Within it, each row adds the bias of its own set, and its dropout draws from that set's stream.

    tables  by the name of the bias
    """
    maps = {model.get_submodule(name.removesuffix(".bias")): table for name, table in tables.items()}
    drops = [module for module in model.modules() if hasattr(module, "rows")] if rows.streams else []
    try:
        for module, table in maps.items():
            module.sets = Sets(table, rows)  # type: ignore[assignment]
        for module in drops:
            module.rows = rows  # type: ignore[assignment]
        yield
    finally:
        for module in maps:
            module.sets = None  # type: ignore[assignment]
        for module in drops:
            module.rows = None  # type: ignore[assignment]
