"""The projection by tensor descriptors, with which Hopper and its successors move whole tiles (TMA). One program per
multiprocessor computes several tiles, so that one tile is stored while the next is loaded.

The weight is one tensor, q|k|v. A tile lies in one sequence, and covers whole heads or a part of one: a descriptor of Q
(B, H, T, D) cuts off what is beyond. For pairs that turn there are two tiles of half as many columns, one of the first
members and one of the second: rows of W keep their order, and threads exchange nothing.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
from torch import Tensor

from minibeft.kernels.lang import Launch, descriptor, tl, triton
from minibeft.kernels.pairs import angle_arguments, load_angles
from minibeft.kernels.qkv_bias.forward import (
    Projection,
    bias_arguments,
    column_tiles,
    in_groups,
    load_bias,
    matmul_options,
    plan_qkv_bias,
)
from minibeft.kernels.qkv_bias.reference import Triple
from minibeft.kernels.tiles import GROUP, MULTIPROCESSORS, Variant, family, tuned, variants


@triton.jit
def store_heads(acc, out, b, head, t, d, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """acc (BM, BN) → out[b, head …, t …, d …]."""
    HEADS: tl.constexpr = BN // D if BN > D else 1
    by_head = tl.permute(tl.reshape(acc, (BM, HEADS, BN // HEADS)), (1, 0, 2))
    out.store([b, head, t, d], tl.reshape(by_head, (1, HEADS, BM, BN // HEADS)).to(out.dtype))


@triton.jit
def finish(
    low, high, bias, each, stride, out, cos, sin, b, t, n, T, angle_b, heads,
    D: tl.constexpr, R: tl.constexpr, HALVES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """turn(low + bias, high + bias) → out from column n on; R = 0: no turn; without HALVES there is no high."""
    place, column = t + tl.arange(0, BM), n + tl.arange(0, BN)
    live, used = place < T, column < heads * D
    r = b * T + place
    if bias is not None:
        low += load_bias(bias, each, stride, r, live, column, used).to(low.dtype)
        if HALVES:
            high += load_bias(bias, each, stride, r, live, column + D // 2, used).to(low.dtype)
    if R > 0:
        c, s = load_angles(cos, sin, (b * angle_b + place).to(tl.int64), live, column % D, R, low.dtype)
        low, high = low * c - high * s, high * c + low * s
    store_heads(low, out, b, n // D, t, n % D, D, BM, BN)
    if HALVES:
        store_heads(high, out, b, n // D, t, n % D + D // 2, D, BM, BN)


@triton.jit
def described_kernel(
    x, w, b_q, b_k, b_v, each, cos, sin, q, k, v,
    B, T, C, H, G, bq_r, bk_r, bv_r, angle_b,
    D: tl.constexpr, R: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLATTEN: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    HALVES: tl.constexpr = R > 0
    COLUMNS: tl.constexpr = BN // 2 if R > 0 else BN  # of one accumulator
    q_tiles, kv_tiles, row_tiles = tl.cdiv(H * D, BN), tl.cdiv(G * D, BN), tl.cdiv(T, BM)
    columns, rows = q_tiles + 2 * kv_tiles, B * row_tiles
    for tile in tl.range(
        tl.program_id(0), rows * columns, tl.num_programs(0), flatten=FLATTEN, warp_specialize=SPECIALIZE
    ):
        tile_m, tile_n = in_groups(tile, rows, columns, GROUP)
        b, t = tile_m // row_tiles, tile_m % row_tiles * BM

        is_q, is_v = tile_n < q_tiles, tile_n >= q_tiles + kv_tiles
        before, n, heads = H * D, (tile_n - q_tiles) * BN, G
        if is_q:
            before, n, heads = 0, tile_n * BN, H
        if is_v:
            before, n = (H + G) * D, (tile_n - q_tiles - kv_tiles) * BN
        if HALVES:
            n = n // D * D + n % D // 2
        low = tl.zeros((BM, COLUMNS), dtype=ACC)
        high = tl.zeros((BM, COLUMNS), dtype=ACC)
        for c in range(0, C, BK):
            x_part = x.load([b * T + t, c]).to(OPERAND)
            w_part = w.load([before + n, c]).to(OPERAND)
            low = tl.dot(x_part, w_part.T, low, input_precision="ieee", out_dtype=ACC)
            if HALVES:
                w_part = w.load([before + n + D // 2, c]).to(OPERAND)
                high = tl.dot(x_part, w_part.T, high, input_precision="ieee", out_dtype=ACC)

        if is_q:
            finish(
                low, high, b_q, each, bq_r, q, cos, sin, b, t, n, T, angle_b, heads, D, R, HALVES, BM, COLUMNS
            )  # fmt: skip
        elif is_v:
            finish(
                low, high, b_v, each, bv_r, v, cos, sin, b, t, n, T, angle_b, heads, D, 0, HALVES, BM, COLUMNS
            )  # fmt: skip
        else:
            finish(
                low, high, b_k, each, bk_r, k, cos, sin, b, t, n, T, angle_b, heads, D, R, HALVES, BM, COLUMNS
            )  # fmt: skip


def joined(weights: Triple) -> Tensor | None:
    """q|k|v as one tensor, where they lie one below the other in one; else None."""
    q, k, v = weights
    one = len({w.untyped_storage().data_ptr() for w in weights}) == 1 and all(w.is_contiguous() for w in weights)
    ends = [w.storage_offset() + w.numel() for w in (q, k)]
    if not one or ends != [k.storage_offset(), v.storage_offset()]:
        return None
    return q.as_strided((len(q) + len(k) + len(v), q.shape[1]), q.stride())


def describable(asked: Projection, variant: Variant) -> bool:
    """Whether descriptors can move these: nothing is empty, rows are evenly spaced and begin at multiples of 16 bytes,
    a tile of columns covers whole heads or divides one, and both members of a pair that turns lie in one tile."""
    x, weights, _, _, rotation, _, each = asked
    batch, tokens, width, _, _, size = asked.sizes
    columns, w, turns, sets = variant.tile.columns, joined(weights), rotation is not None, each is not None
    whole = size % columns == 0 or (columns % size == 0 and not turns)
    halves = rotation is None or (rotation.dims == size and not rotation.interleaved)
    rows = x.stride(2) == 1 and (batch == 1 or x.stride(0) == tokens * x.stride(1))
    if w is None or not x.numel() or not (whole and halves and rows) or ((turns or sets) and not variant.general):
        return False
    steps = (x.stride(1), width, size)
    return not any(n * x.itemsize % 16 for n in steps) and not any(t.data_ptr() % 16 for t in (x, w))


def plan_described(asked: Projection, variant: Variant) -> Launch:
    """As plan_qkv_bias; what is asked for is describable."""
    x, weights, biases, outputs, rotation, chip, each = asked
    batch, tokens, width, heads, groups, size = asked.sizes
    tile, w = variant.tile, joined(weights)
    assert w is not None
    cos, sin, angle_b = angle_arguments(rotation, tokens)
    tables, strides = bias_arguments(biases)
    accumulated = tile.columns // 2 if rotation else tile.columns
    flat = x.as_strided((batch * tokens, width), x.stride()[1:])
    block = [1, max(accumulated // size, 1), tile.rows, min(accumulated, size)]
    tiles = batch * triton.cdiv(tokens, tile.rows) * column_tiles(heads, groups, size, tile)
    programs = min(tiles, 3 if chip is None else MULTIPROCESSORS[family(chip)])  # 3, so that small tests share some
    return Launch(
        described_kernel,
        (programs,),
        (
            descriptor(flat, [tile.rows, tile.depth]), descriptor(w, [accumulated, tile.depth]),
            *tables, each, cos, sin, *(descriptor(out, block) for out in outputs),
            batch, tokens, width, heads, groups, *strides, angle_b,
        ),
        {
            "D": size, "R": rotation.dims if rotation else 0, "GROUP": GROUP,
            "FLATTEN": variant.flatten, "SPECIALIZE": variant.specialize, **matmul_options(tile, x.dtype, chip),
        },
    )  # fmt: skip


def plan_projection(asked: Projection) -> Launch:
    """With descriptors if these were quickest on this kind of card (tune.py) and can move the inputs, else without."""
    best = tuned(*asked.kind)
    if not isinstance(best, Variant):
        return plan_qkv_bias(asked, best)
    if best in variants(asked.chip) and describable(asked, best):
        return plan_described(asked, best)
    return plan_qkv_bias(asked)
