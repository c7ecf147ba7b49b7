"""The ground truth in plain torch: a bias gradient is the sum of its output's gradient over batch and tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels.owners import Owners
from minibeft.theory.rotary import Rotation


def column_sum_reference(
    d_out: Float[Tensor, "B h T D"],
    rotation: Rotation | None,
    shared: int,
    dtype: torch.dtype,
    sets: Owners | None = None,
) -> Float[Tensor, "*R n"]:
    """Σ over batch and tokens of d_out turned back, in `dtype`; `shared` neighbouring heads with one bias add up.

    sets  the rows of each set are summed by themselves, a row of the result for each
    """
    d_out = d_out if rotation is None else rotation.inverse()(d_out)
    if sets is None:
        return d_out.unflatten(1, (-1, shared)).sum((0, 2, 3), dtype=dtype).flatten()
    wide = torch.promote_types(dtype, torch.float32)
    rows = d_out.unflatten(1, (-1, shared)).sum(2, dtype=wide).transpose(1, 2).flatten(2).flatten(0, 1)  # (M, n)
    return rows.new_zeros(len(sets.starts) - 1, rows.shape[1]).index_add_(0, sets.each, rows).to(dtype)
