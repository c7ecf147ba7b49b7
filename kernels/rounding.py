"""How far rounding can move a result of the kernels, entry by entry: what the tests and the benchmark's gate allow."""

from typing import NamedTuple

import torch
from torch import Tensor

from minibeft.theory.bounds import gamma, unit_roundoff
from minibeft.theory.rotary import Rotation


class Reach(NamedTuple):
    """Replaces a rotation when sums of absolute values are computed."""

    rotation: Rotation

    def __call__(self, x: Tensor) -> Tensor:
        return self.rotation.reach(x)

    def inverse(self) -> "Reach":
        return self


def rounding_bound(gold: Tensor, size: Tensor, terms: int, dtype: torch.dtype, *, turned: bool = False) -> Tensor:
    """How far an entry may lie from the exact one: (γ_{n+6} + u') size + u (|gold| + the same), entry by entry.

    n terms are summed in the accumulator's type, float32 at least, in any order, and then a bias, two products, a sum
    and an angle's two roundings (Higham's bound; size is the sum of the terms without their signs). u' is for operands
    that are `turned` before they are multiplied, and rounded to the type again; u is for the one rounding when the
    result is stored. Both are twice that where Triton's interpreter casts to bfloat16, because it truncates.
    """
    wide = torch.promote_types(dtype, torch.float32)
    truncates = gold.device.type == "cpu" and dtype == torch.bfloat16
    cast = (1 + truncates) * unit_roundoff(dtype)
    inner = (gamma(terms + 6, unit_roundoff(wide)) + turned * (dtype != wide) * cast) * size
    return inner + cast * (gold.abs() + inner)
