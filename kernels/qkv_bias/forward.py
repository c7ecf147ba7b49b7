"""One read of X gives Q, K and V: a program computes one tile of the packed columns q|k|v, adds its bias, turns it,
and writes it head by head, (B, H, T, D); no transpose follows.

Where rotary pairs lie R/2 apart, the rows of W are loaded in the order p, p + R/2, p + 1, …: then the members of a
pair are neighbours in the accumulator, in registers of one thread, whatever the tile and the head size.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibeft.kernels.lang import Launch, accumulator, operand, tl, triton
from minibeft.kernels.pairs import angle_arguments, load_angles, pair_members, rotation_options
from minibeft.kernels.qkv_bias.reference import OptionalTriple, Triple
from minibeft.kernels.tiles import GROUP, Tile, matmul_tile
from minibeft.theory.rotary import Rotation


@triton.jit
def in_groups(tile, rows, columns, GROUP: tl.constexpr):
    """The row and column of a tile. Tiles come in groups of GROUP rows, down the rows first, so that tiles that run at
    the same time share W and X in the L2."""
    group, within = tile // (GROUP * columns), tile % (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    return group * GROUP + within % height, within // height


@triton.jit
def load_bias(bias, each, stride, r, live, n, used):
    """The bias of columns n: one for all rows, (1, BN), or with sets the bias of each row's set, (BM, BN)."""
    if each is None:
        found = tl.load(bias + n, mask=used, other=0.0)[None, :]
    else:
        own = tl.load(each + r, mask=live, other=0).to(tl.int64) * stride
        found = tl.load(bias + own[:, None] + n[None, :], mask=live[:, None] & used[None, :], other=0.0)
    return found


@triton.jit
def store_columns(acc, bias, each, stride, out, r, row, live, n, T, heads, D: tl.constexpr):
    """acc + bias → out, columns in their own order. row: b · heads · T + t, the output's row for head 0."""
    used = n < heads * D
    if bias is not None:
        acc += load_bias(bias, each, stride, r, live, n, used).to(acc.dtype)
    column = (n // D).to(tl.int64) * T * D + n % D
    tl.store(out + row[:, None] * D + column[None, :], acc.to(out.dtype.element_ty), mask=live[:, None] & used[None, :])


@triton.jit
def store_turned(
    acc, bias, each, stride, out, cos, sin, r, row, angle, live, first, T, heads,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """turn(acc + bias) → out, columns in pairs: neighbours in acc are the two members of pair first + i."""
    pair = first + tl.arange(0, BN // 2)
    head, p = pair // (D // 2), pair % (D // 2)
    used = head < heads
    d0, d1 = pair_members(p, R, D, INTERLEAVED)
    low, high = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
    if bias is not None:
        low += load_bias(bias, each, stride, r, live, head * D + d0, used).to(acc.dtype)
        high += load_bias(bias, each, stride, r, live, head * D + d1, used).to(acc.dtype)
    c, s = load_angles(cos, sin, angle, live, p, R, acc.dtype)
    low, high = low * c - high * s, high * c + low * s
    start = out + row[:, None] * D
    if INTERLEAVED:
        n = 2 * first + tl.arange(0, BN)
        column = (n // D).to(tl.int64) * T * D + n % D
        both = tl.reshape(tl.join(low, high), (BM, BN))
        tl.store(start + column[None, :], both.to(out.dtype.element_ty), mask=live[:, None] & (n < heads * D)[None, :])
    else:
        skip = head.to(tl.int64) * T * D
        mask = live[:, None] & used[None, :]
        tl.store(start + (skip + d0)[None, :], low.to(out.dtype.element_ty), mask=mask)
        tl.store(start + (skip + d1)[None, :], high.to(out.dtype.element_ty), mask=mask)


@triton.jit
def qkv_bias_kernel(
    x, w_q, w_k, w_v, b_q, b_k, b_v, each, cos, sin, q, k, v,
    M, T, C, H, G, x_b, x_t, x_c, w_n, w_c, bq_r, bk_r, bv_r, angle_b,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    q_tiles, kv_tiles = tl.cdiv(H * D, BN), tl.cdiv(G * D, BN)
    tile_m, tile_n = in_groups(tl.program_id(0), tl.cdiv(M, BM), q_tiles + 2 * kv_tiles, GROUP)

    is_q, is_v = tile_n < q_tiles, tile_n >= q_tiles + kv_tiles
    w, heads, tile = w_k, G, tile_n - q_tiles
    if is_q:
        w, heads, tile = w_q, H, tile_n
    if is_v:
        w, heads, tile = w_v, G, tile_n - q_tiles - kv_tiles

    r = tile_m * BM + tl.arange(0, BM)
    live = r < M
    b, t = (r // T).to(tl.int64), r % T
    n = tile * BN + tl.arange(0, BN)
    used = n < heads * D
    w_row = n
    if R > 0:
        d0, d1 = pair_members(n % D // 2, R, D, INTERLEAVED)
        w_row = tl.where(is_v, n, n // D * D + tl.where(n % 2 == 0, d0, d1))

    c = tl.arange(0, BK)
    x_tile = x + (b * x_b + t * x_t)[:, None] + c[None, :] * x_c
    w_tile = w + w_row.to(tl.int64)[None, :] * w_n + c[:, None] * w_c
    acc = tl.zeros((BM, BN), dtype=ACC)
    for first in range(0, C, BK):
        inside = c < C - first
        x_part = tl.load(x_tile, mask=live[:, None] & inside[None, :], other=0.0).to(OPERAND)
        w_part = tl.load(w_tile, mask=inside[:, None] & used[None, :], other=0.0).to(OPERAND)
        acc = tl.dot(x_part, w_part, acc, input_precision="ieee", out_dtype=ACC)
        x_tile += BK * x_c
        w_tile += BK * w_c

    row, angle = b * heads * T + t, b * angle_b + t
    if is_v:
        store_columns(acc, b_v, each, bv_r, v, r, row, live, n, T, heads, D)
    elif R == 0:
        if is_q:
            store_columns(acc, b_q, each, bq_r, q, r, row, live, n, T, heads, D)
        else:
            store_columns(acc, b_k, each, bk_r, k, r, row, live, n, T, heads, D)
    else:
        pair = tile * (BN // 2)
        if is_q:
            store_turned(
                acc, b_q, each, bq_r, q, cos, sin, r, row, angle, live, pair, T, heads,
                D, R, INTERLEAVED, BM, BN,
            )  # fmt: skip
        else:
            store_turned(
                acc, b_k, each, bk_r, k, cos, sin, r, row, angle, live, pair, T, heads,
                D, R, INTERLEAVED, BM, BN,
            )  # fmt: skip


class Projection(NamedTuple):
    """What is asked for: outputs (B,H,T,D), (B,G,T,D), (B,G,T,D), to be filled. Inputs have been checked.

    chip  its compute capability; None: the interpreter
    each  the set of each row, (B·T); biases are then tables, one row per set, or one vector that all sets share
    """

    x: Tensor
    weights: Triple
    biases: OptionalTriple
    outputs: Triple
    rotation: Rotation | None
    chip: int | None
    each: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, T, C, H, G, D."""
        batch, tokens, width = self.x.shape
        _, heads, _, size = self.outputs[0].shape
        return batch, tokens, width, heads, self.outputs[1].shape[1], size

    @property
    def kind(self) -> tuple[int | None, torch.dtype, str, int, int, bool]:
        """The arguments of matmul_tile() and tuned()."""
        batch, tokens, _, heads, groups, size = self.sizes
        columns = (heads + 2 * groups) * size
        return self.chip, self.x.dtype, "forward", batch * tokens, columns, self.rotation is not None


def same_strides(weights: Triple) -> Triple:
    """The weights as they are when their strides agree (three nn.Linear, views of a packed one), else contiguous."""
    q, k, v = weights
    if q.stride() == k.stride() == v.stride():
        return weights
    return q.contiguous(), k.contiguous(), v.contiguous()


def bias_arguments(biases: OptionalTriple) -> tuple[list[Tensor | None], list[int]]:
    """The biases, and how far the rows of each table lie apart: 0 for one vector, which all sets share."""
    tables = [b if b is None or b.stride(-1) == 1 else b.contiguous() for b in biases]
    return tables, [b.stride(0) if b is not None and b.ndim == 2 else 0 for b in tables]


def matmul_options(tile: Tile, dtype: torch.dtype, chip: int | None) -> dict[str, Any]:
    """What every kernel with a tl.dot is launched with."""
    blocks = {"BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "num_warps": tile.warps, "num_stages": tile.stages}
    # Contracting a·b + c saves a rounding; triton warns when this is left to its default.
    return blocks | {"OPERAND": operand(dtype, chip), "ACC": accumulator(dtype), "enable_fp_fusion": True}


def column_tiles(heads: int, groups: int, size: int, tile: Tile) -> int:
    """How many column tiles q, k and v have together; no two of them share a tile."""
    return triton.cdiv(heads * size, tile.columns) + 2 * triton.cdiv(groups * size, tile.columns)


def plan_qkv_bias(asked: Projection, tile: Tile | None = None) -> Launch:
    """The launch that fills the outputs. tile: instead of the one that tiles.py chooses."""
    x, weights, biases, outputs, rotation, chip, each = asked
    batch, tokens, width, heads, groups, size = asked.sizes
    rows, tile = batch * tokens, tile or matmul_tile(*asked.kind)
    weights = same_strides(weights)
    cos, sin, angle_b = angle_arguments(rotation, tokens)
    tables, strides = bias_arguments(biases)
    return Launch(
        qkv_bias_kernel,
        (triton.cdiv(rows, tile.rows) * column_tiles(heads, groups, size, tile),),
        (
            x, *weights, *tables, each, cos, sin, *outputs,
            rows, tokens, width, heads, groups, *x.stride(), *weights[0].stride(), *strides, angle_b,
        ),
        {"D": size, "GROUP": GROUP, **rotation_options(rotation), **matmul_options(tile, x.dtype, chip)},
    )  # fmt: skip
