"""Two computations agree when the candidate errs no more than a plain computation in the same type errs.

Three runs of one input: gold in float64, plain in the type under test, the candidate in that type. The candidate passes
when ‖candidate − gold‖∞ ≤ factor · ‖plain − gold‖∞ + u ‖gold‖∞. The factor is for another order of summation; the last
term is the one rounding that even a perfect result needs when it is stored, so that a plain run that happens to be
exact does not fail everyone else. Where float64 itself is tested there is no gold: `assert_close_float64` scales the
float32 error by the ratio of the unit roundoffs, because rounding errors are linear in u.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from minibeft.theory.bounds import unit_roundoff

FACTOR = 2.0


def error(value: Tensor, gold: Tensor) -> float:
    """‖value − gold‖∞ in float64; NaN or ±∞ where gold is finite counts as an infinite error."""
    if not value.numel():
        return 0.0
    difference = (value.double() - gold.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def in_float32(inputs: Any) -> Any:
    """The dataclass with its tensors in float32: what the run that measures the float32 error takes."""
    tensors = {f.name: value for f in fields(inputs) if isinstance(value := getattr(inputs, f.name), Tensor)}
    return replace(inputs, **{name: value.float() for name, value in tensors.items()})


def assert_agrees(candidate: Tensor, plain: Tensor, gold: Tensor, *, what: str = "result", factor: float = FACTOR):
    """The candidate's error is at most factor × the plain one's, plus one rounding of the largest entry."""
    assert candidate.shape == plain.shape == gold.shape, (
        f"{what}: shapes {tuple(candidate.shape)}, {tuple(plain.shape)}, {tuple(gold.shape)} of candidate, plain, gold"
    )
    assert candidate.dtype == plain.dtype, f"{what}: candidate is {candidate.dtype}, plain is {plain.dtype}"
    assert gold.dtype == torch.float64, f"{what}: gold must be float64, got {gold.dtype}"
    assert gold.isfinite().all(), f"{what}: gold is not finite"
    size = gold.abs().max().item() if gold.numel() else 0.0
    allowed = factor * error(plain, gold) + unit_roundoff(candidate.dtype) * size
    actual = error(candidate, gold)
    assert actual <= allowed, (
        f"{what}: error {actual:.3e} > {allowed:.3e} allowed (plain errs {error(plain, gold):.3e})"
    )


def assert_close_float64(
    candidate: Tensor, reference: Tensor, float32_error: float, *, what: str = "result", factor: float = 8.0
):
    """Two float64 runs differ by at most factor × the float32 error of the same computation × u64/u32.

    factor 8: two runs, each of which may err twice as much relative to its u, and a float32 error measured once.
    """
    assert candidate.dtype == reference.dtype == torch.float64
    size = reference.abs().max().item() if reference.numel() else 0.0
    ratio = unit_roundoff(torch.float64) / unit_roundoff(torch.float32)
    allowed = factor * float32_error * ratio + 2 * unit_roundoff(torch.float64) * size
    actual = error(candidate, reference)
    assert actual <= allowed, f"{what}: float64 runs differ by {actual:.3e} > {allowed:.3e} allowed"
