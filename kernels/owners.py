"""Which of several bias sets each row of X uses, in the form the kernels take: adapters, or runs, over one weight."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Owners(NamedTuple):
    """M rows, those of X (B, T, C) in order, and R sets; all int32.

    each    the set of each row
    order   the rows sorted by set; within a set in their original order
    starts  where each set begins in `order`; the last entry is where the last set ends
    """

    each: Int[Tensor, " M"]
    order: Int[Tensor, " M"]
    starts: Int[Tensor, " R+1"]


def owners(each: Int[Tensor, " M"], count: int) -> Owners:
    """Owners for `count` sets; made once per batch, for all layers. Raises ValueError for a set that does not exist."""
    if len(each) and not 0 <= int(each.min()) <= int(each.max()) < count:
        raise ValueError(f"rows belong to sets {int(each.min())} … {int(each.max())}; there are {count}, from 0")
    by_set, order = torch.sort(each, stable=True)
    edges = torch.arange(count + 1, device=each.device, dtype=each.dtype)
    return Owners(each.int(), order.int(), torch.searchsorted(by_set, edges, out_int32=True))


def as_owners(each: Tensor | None, order: Tensor | None, starts: Tensor | None) -> Owners | None:
    """From an operator's arguments, which torch wants to be tensors."""
    return None if each is None or order is None or starts is None else Owners(each, order, starts)
