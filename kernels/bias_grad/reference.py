"""The ground truth in plain torch: a bias gradient is the sum of its output's gradient over batch and tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.theory.rotary import Rotation


def column_sum_reference(
    d_out: Float[Tensor, "B h T D"], rotation: Rotation | None, shared: int, dtype: torch.dtype
) -> Float[Tensor, " n"]:
    """Σ over batch and tokens of d_out turned back, in `dtype`; `shared` neighbouring heads with one bias add up."""
    d_out = d_out if rotation is None else rotation.inverse()(d_out)
    return d_out.unflatten(1, (-1, shared)).sum((0, 2, 3), dtype=dtype).flatten()
