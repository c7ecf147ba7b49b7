"""Column sums in two stages without atomics: the order of every addition is fixed by the shape, so that the same
input gives the same bits on every run. Sums are kept in float32 (float64 for float64).

A program of the first stage reads a contiguous run of rows of one head; the second stage adds up the partial sums,
SUM_SPLITS at a time, and those of the heads that share a bias. With several sets of biases a run contains rows of one
set only, in an order that groups the rows by set.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
import torch
from torch import Tensor

from minibeft.kernels.lang import Launch, accumulator, tl, triton
from minibeft.kernels.owners import Owners
from minibeft.kernels.pairs import angle_arguments, load_angles, load_pairs, pair_members, rotation_options
from minibeft.kernels.tiles import SUM_ELEMENTS, SUM_SPLITS
from minibeft.theory.rotary import Rotation

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def rows_of_run(order, place, end):
    """The rows of X at these places of `order`, and which of them there are."""
    live = place < end
    if order is not None:
        place = tl.load(order + place, mask=live, other=0)
    return place, live


@triton.jit
def partial_sum_kernel(
    g, cos, sin, partial, order, starts, M, T, heads, g_b, g_h, g_t, g_d, angle_b, RUN,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, ACC: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """partial[set, split, head, :] = Σ of RUN rows of one head, turned back where R > 0.

    starts  where each set's rows begin in `order`; a set has as many runs as there are splits, of equal length
    """
    split, head, own = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    out = partial + ((own.to(tl.int64) * tl.num_programs(0) + split) * heads + head) * D
    start = g + head.to(tl.int64) * g_h
    begin, end, run = 0, M, RUN
    if starts is not None:
        begin, end = tl.load(starts + own), tl.load(starts + own + 1)
        run = tl.cdiv(tl.cdiv(end - begin, BR), tl.num_programs(0)) * BR
    if R == 0:
        d = tl.arange(0, BD)
        total = tl.zeros((BR, BD), dtype=ACC)
        for first in range(0, run, BR):
            r, live = rows_of_run(order, begin + split * run + first + tl.arange(0, BR), end)
            rows = start + (r // T).to(tl.int64) * g_b + (r % T).to(tl.int64) * g_t
            mask = live[:, None] & (d < D)[None, :]
            total += tl.load(rows[:, None] + d[None, :] * g_d, mask=mask, other=0.0).to(ACC)
        tl.store(out + d, tl.sum(total, 0), mask=d < D)
    else:
        p = tl.arange(0, BD // 2)
        low_total = tl.zeros((BR, BD // 2), dtype=ACC)
        high_total = tl.zeros((BR, BD // 2), dtype=ACC)
        for first in range(0, run, BR):
            r, live = rows_of_run(order, begin + split * run + first + tl.arange(0, BR), end)
            b, t = (r // T).to(tl.int64), (r % T).to(tl.int64)
            rows = start + b * g_b + t * g_t
            low, high = load_pairs(rows, g_d, live, 0, D // 2, R, D, INTERLEAVED, BR, BD // 2, ACC)
            c, s = load_angles(cos, sin, b * angle_b + t, live, p, R, ACC)
            low_total += low * c + high * s
            high_total += high * c - low * s
        d0, d1 = pair_members(p, R, D, INTERLEAVED)
        tl.store(out + d0, tl.sum(low_total, 0), mask=p < D // 2)
        tl.store(out + d1, tl.sum(high_total, 0), mask=p < D // 2)


@triton.jit
def final_sum_kernel(
    partial, out, splits, columns, D: tl.constexpr, SHARED: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr
):
    """out[set, n] = Σ over splits, and over SHARED neighbouring heads, of partial (sets, splits, heads, D)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    own = tl.program_id(1).to(tl.int64)
    partial += own * splits * columns * SHARED
    total = tl.zeros((BS, BN), dtype=partial.dtype.element_ty)
    for first in range(0, splits, BS):
        s = first + tl.arange(0, BS)
        mask = (s < splits)[:, None] & (n < columns)[None, :]
        for member in range(0, SHARED):
            column = (n // D * SHARED + member) * D + n % D
            part = partial + s.to(tl.int64)[:, None] * (columns * SHARED) + column[None, :]
            total += tl.load(part, mask=mask, other=0.0)
    tl.store(out + own * columns + n, tl.sum(total, 0).to(out.dtype.element_ty), mask=n < columns)


def run_length(rows: int, block: int) -> int:
    """Rows per partial sum: a whole number of blocks, so that at most SUM_SPLITS partial sums cover all rows."""
    blocks = triton.cdiv(max(rows, 1), block)
    return block * triton.cdiv(blocks, SUM_SPLITS)


def plan_column_sum(
    d_out: Tensor, out: Tensor, rotation: Rotation | None, shared: int, sets: Owners | None = None
) -> tuple[Launch, Launch]:
    """The two launches that fill out (h·D/shared) from d_out (B, h, T, D). Inputs have been checked.

    sets  each row is added to the sum of its set; out is then (R, h·D/shared), contiguous
    """
    batch, heads, tokens, size = d_out.shape
    rows = batch * tokens
    padded = triton.next_power_of_2(max(size, 2))
    block = max(SUM_ELEMENTS // padded, 1)
    run = run_length(rows, block)
    splits = triton.cdiv(rows, run)
    count, order, starts = 1, None, None
    if sets is not None:
        count, order, starts = len(sets.starts) - 1, sets.order, sets.starts
        splits = triton.cdiv(splits, count)  # as many partial sums as without sets, but one of each set at least
    kind = accumulator(d_out.dtype)
    partial = torch.empty(
        (count, splits, heads, size),
        dtype=torch.float64 if d_out.dtype == torch.float64 else torch.float32,
        device=d_out.device,
    )
    cos, sin, angle_b = angle_arguments(rotation, tokens)
    first = Launch(
        partial_sum_kernel,
        (splits, heads, count),
        (d_out, cos, sin, partial, order, starts, rows, tokens, heads, *d_out.stride(), angle_b, run),
        {
            "D": size,
            **rotation_options(rotation),
            "ACC": kind,
            "BR": block,
            "BD": padded,
            **OPTIONS,
        },
    )
    return first, plan_final_sum(partial, out, shared)


def plan_final_sum(partial: Tensor, out: Tensor, shared: int) -> Launch:
    """The launch that fills out (sets, h·D/shared) from partial sums (sets, splits, h, D)."""
    count, splits, heads, size = partial.shape
    columns = heads * size // shared
    width, together = 64, min(triton.next_power_of_2(max(splits, 1)), SUM_SPLITS)
    return Launch(
        final_sum_kernel,
        (triton.cdiv(columns, width), count),
        (partial, out, splits, columns),
        {"D": size, "SHARED": shared, "BS": together, "BN": width, **OPTIONS},
    )
