"""Two runs agree when they differ by no more than rounding explains; what is not finite agrees with nothing.

A computation is compared with an exact one, in float64, beside a sample of what rounding does to it: the error of an
equally accurate run. simplify, merge, verify and the benchmarks decide by this, and every statement by `within`.
"""

from math import inf, isfinite, isnan

import torch
from torch import Tensor

from minibeft.theory.bounds import unit_roundoff

# Two equally accurate runs are compared by their largest errors. A classifier on eight sentences has as few as eight
# independent outputs; the largest of eight normal errors exceeds 8 times that of eight others in 3 of a million cases
# (simulated), 2 times in 5 of a hundred. A wrong step is off by a bias, many orders more.
FACTOR = 8.0


def within(value: float, allowed: float) -> bool:
    """Whether the allowance explains the value. An infinite allowance would explain everything, so it explains nothing;
    NaN on either side, or an infinite value, is never explained."""
    return isfinite(allowed) and isfinite(value) and value <= allowed


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖∞ in float64; NaN counts as infinite."""
    value = (a.double() - b.double()).abs().max().item()
    return inf if isnan(value) else value


def explained(
    error: float, size: float, dtype: torch.dtype, *, sampled_in: torch.dtype | None = None, roundings: int = 1
) -> float:
    """How far rounding in this type may move a result: FACTOR times the sampled error, and `roundings` of `size`.

    Rounding errors are linear in the unit roundoff u: an error sampled in another type counts u/u_other times.
    """
    u = unit_roundoff(dtype)
    shrink = 1.0 if sampled_in is None else u / unit_roundoff(sampled_in)
    return FACTOR * error * shrink + roundings * u * size
