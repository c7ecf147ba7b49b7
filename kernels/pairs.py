"""What kernels need for rotary pairs: where the two members of a pair lie, how to load them, and their angles.

Pair p of a head has the members d0(p) and d1(p). Under half-split rotary positions they lie R/2 apart; under
interleaved ones, and beyond the R entries that turn, they are neighbours.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
from torch import Tensor

from minibeft.kernels.lang import tl, triton
from minibeft.theory.rotary import Rotation


@triton.jit
def pair_members(p, R: tl.constexpr, D: tl.constexpr, INTERLEAVED: tl.constexpr):
    """d0, d1 of pair p, 0 ≤ p < D/2."""
    if INTERLEAVED:
        return 2 * p, 2 * p + 1
    if R == D:
        return p, p + R // 2
    turned = p < R // 2
    return tl.where(turned, p, 2 * p), tl.where(turned, p + R // 2, 2 * p + 1)


@triton.jit
def load_pairs(
    base, stride, live, first, PAIRS: tl.constexpr, R: tl.constexpr, D: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr, COUNT: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Both members of the pairs first … first + COUNT − 1 below PAIRS, two (ROWS, COUNT) tiles.

    base (ROWS,) points at entry 0 of one head in each row. Neighbours are read as one contiguous tile and split.
    """
    if INTERLEAVED:
        d = 2 * first + tl.arange(0, 2 * COUNT)
        both = tl.load(base[:, None] + d[None, :] * stride, mask=live[:, None] & (d < 2 * PAIRS)[None, :], other=0.0)
        return tl.split(tl.reshape(both.to(TYPE), (ROWS, COUNT, 2)))
    p = first + tl.arange(0, COUNT)
    d0, d1 = pair_members(p, R, D, INTERLEAVED)
    mask = live[:, None] & (p < PAIRS)[None, :]
    low = tl.load(base[:, None] + d0[None, :] * stride, mask=mask, other=0.0)
    high = tl.load(base[:, None] + d1[None, :] * stride, mask=mask, other=0.0)
    return low.to(TYPE), high.to(TYPE)


@triton.jit
def load_angles(cos, sin, row, live, p, R: tl.constexpr, TYPE: tl.constexpr):
    """Cosine and sine of pairs p in each row of the tables; 1 and 0 where pairs do not turn."""
    offset = row[:, None] * (R // 2) + p[None, :]
    mask = live[:, None] & (p < R // 2)[None, :]
    c = tl.load(cos + offset, mask=mask, other=1.0)
    s = tl.load(sin + offset, mask=mask, other=0.0)
    return c.to(TYPE), s.to(TYPE)


def angle_arguments(rotation: Rotation | None, tokens: int) -> tuple[Tensor | None, Tensor | None, int]:
    """cos, sin, and by how many rows of their tables one sequence lies behind the previous one (0: all share them)."""
    if rotation is None:
        return None, None, 0
    return rotation.cos.contiguous(), rotation.sin.contiguous(), tokens if rotation.cos.ndim == 3 else 0


def rotation_options(rotation: Rotation | None) -> dict[str, int | bool]:
    return {"R": rotation.dims if rotation else 0, "INTERLEAVED": bool(rotation and rotation.interleaved)}
