"""dX = dQ W_q + dK W_k + dV W_v in one kernel: three sums in one accumulator; gradients are read as (B, h, T, D).

Under rotary positions the gradients are turned back while they are loaded. The outer loop runs over pairs, the inner
over heads, so that each angle is read once for all heads; both members of a pair multiply their own rows of W.

On request, the programs of the first column of tiles also sum the columns of the gradients that they read. The sums of
all tiles of rows, added up, are the biases' gradients.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
import torch
from torch import Tensor

from minibeft.kernels.bias_grad.forward import plan_final_sum
from minibeft.kernels.lang import Launch, tl, triton
from minibeft.kernels.pairs import angle_arguments, load_angles, load_pairs, pair_members, rotation_options
from minibeft.kernels.qkv_bias.forward import in_groups, matmul_options, same_strides
from minibeft.kernels.qkv_bias.reference import Triple
from minibeft.kernels.tiles import GROUP, Tile, matmul_tile
from minibeft.theory.rotary import Rotation


@triton.jit
def add_plain(
    acc, sums, summing, g, w, b, t, live, c, used, heads, g_b, g_h, g_t, g_d, w_n, w_c,
    FIRST: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc + Σ g_n W_n over the entries FIRST … D − 1 of every head; sums[n] = Σ g_n over the rows where `summing`."""
    COUNT: tl.constexpr = D - FIRST
    rows = g + (b * g_b + t * g_t)[:, None]
    for start in range(0, heads * COUNT, BK):
        n = start + tl.arange(0, BK)
        inside = n < heads * COUNT
        head, d = n // COUNT, FIRST + n % COUNT
        g_part = tl.load(
            rows + (head.to(tl.int64) * g_h + d * g_d)[None, :], mask=live[:, None] & inside[None, :], other=0.0
        )
        if sums is not None:  # noqa: SIM102  # known when it is compiled, the other is not
            if summing:
                tl.store(sums + head * D + d, tl.sum(g_part.to(acc.dtype), 0), mask=inside)
        w_tile = w + (head * D + d).to(tl.int64)[:, None] * w_n + c[None, :] * w_c
        w_part = tl.load(w_tile, mask=inside[:, None] & used[None, :], other=0.0)
        acc = tl.dot(g_part.to(OPERAND), w_part.to(OPERAND), acc, input_precision="ieee", out_dtype=acc.dtype)
    return acc


@triton.jit
def add_turned(
    acc, sums, summing, g, w, cos, sin, b, t, angle, live, c, used, heads, g_b, g_h, g_t, g_d, w_n, w_c,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The same of g turned back, over the entries 0 … R − 1 of every head, PAIRS pairs at a time."""
    rows = g + b * g_b + t * g_t
    for start in range(0, R // 2, PAIRS):
        p = start + tl.arange(0, PAIRS)
        co, si = load_angles(cos, sin, angle, live, p, R, acc.dtype)
        d0, d1 = pair_members(p, R, R, INTERLEAVED)
        w_mask = (p < R // 2)[:, None] & used[None, :]
        w_low = w + d0.to(tl.int64)[:, None] * w_n + c[None, :] * w_c
        w_high = w + d1.to(tl.int64)[:, None] * w_n + c[None, :] * w_c
        head = rows
        for h in range(0, heads):
            low, high = load_pairs(head, g_d, live, start, R // 2, R, R, INTERLEAVED, BM, PAIRS, acc.dtype)
            low, high = low * co + high * si, high * co - low * si
            if sums is not None:  # noqa: SIM102
                if summing:
                    tl.store(sums + h * D + d0, tl.sum(low, 0), mask=p < R // 2)
                    tl.store(sums + h * D + d1, tl.sum(high, 0), mask=p < R // 2)
            w_part = tl.load(w_low, mask=w_mask, other=0.0).to(OPERAND)
            acc = tl.dot(low.to(OPERAND), w_part, acc, input_precision="ieee", out_dtype=acc.dtype)
            w_part = tl.load(w_high, mask=w_mask, other=0.0).to(OPERAND)
            acc = tl.dot(high.to(OPERAND), w_part, acc, input_precision="ieee", out_dtype=acc.dtype)
            head += g_h
            w_low += D * w_n
            w_high += D * w_n
    if R < D:
        acc = add_plain(
            acc, sums, summing, g, w, b, t, live, c, used, heads, g_b, g_h, g_t, g_d, w_n, w_c,
            R, D, OPERAND, 2 * PAIRS,
        )  # fmt: skip
    return acc


@triton.jit
def input_grad_kernel(
    d_q, d_k, d_v, w_q, w_k, w_v, cos, sin, d_x, sums,
    M, T, C, H, G,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, w_n, w_c, angle_b,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    tile_m, tile_c = in_groups(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(C, BN), GROUP)
    summing = tile_c == 0
    sums_q, sums_k, sums_v = sums, sums, sums
    if sums is not None:
        sums_q += tile_m.to(tl.int64) * (H + 2 * G) * D
        sums_k = sums_q + H * D
        sums_v = sums_k + G * D

    r = tile_m * BM + tl.arange(0, BM)
    live = r < M
    b, t = (r // T).to(tl.int64), r % T
    c = tile_c * BN + tl.arange(0, BN)
    used = c < C
    acc = tl.zeros((BM, BN), dtype=ACC)
    if R == 0:
        acc = add_plain(
            acc, sums_q, summing, d_q, w_q, b, t, live, c, used, H, q_b, q_h, q_t, q_d, w_n, w_c, 0, D, OPERAND, BK
        )  # fmt: skip
        acc = add_plain(
            acc, sums_k, summing, d_k, w_k, b, t, live, c, used, G, k_b, k_h, k_t, k_d, w_n, w_c, 0, D, OPERAND, BK
        )  # fmt: skip
    else:
        angle = b * angle_b + t
        acc = add_turned(
            acc, sums_q, summing, d_q, w_q, cos, sin, b, t, angle, live, c, used, H, q_b, q_h, q_t, q_d, w_n, w_c,
            D, R, INTERLEAVED, OPERAND, BM, BK // 2,
        )  # fmt: skip
        acc = add_turned(
            acc, sums_k, summing, d_k, w_k, cos, sin, b, t, angle, live, c, used, G, k_b, k_h, k_t, k_d, w_n, w_c,
            D, R, INTERLEAVED, OPERAND, BM, BK // 2,
        )  # fmt: skip
    acc = add_plain(
        acc, sums_v, summing, d_v, w_v, b, t, live, c, used, G, v_b, v_h, v_t, v_d, w_n, w_c, 0, D, OPERAND, BK
    )  # fmt: skip
    out = d_x + r.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(out, acc.to(d_x.dtype.element_ty), mask=live[:, None] & used[None, :])


def plan_input_grad(
    grads: Triple,
    weights: Triple,
    d_x: Tensor,
    rotation: Rotation | None,
    chip: int | None,
    tile: Tile | None = None,
    sums: Tensor | None = None,
) -> Launch:
    """The launch that fills d_x (B, T, C), contiguous. Inputs have been checked.

    tile  instead of the one that tiles.py chooses
    sums  (tiles of rows, (H + 2G)·D): the columns of dQ, dK and dV, turned back, summed over the rows of each tile
    """
    batch, heads, tokens, size = grads[0].shape
    groups, width = grads[1].shape[1], d_x.shape[-1]
    rows = batch * tokens
    tile = tile or matmul_tile(chip, d_x.dtype, "backward", rows, width, rotation is not None)
    weights = same_strides(weights)
    cos, sin, angle_b = angle_arguments(rotation, tokens)
    strides = (stride for grad in grads for stride in grad.stride())
    return Launch(
        input_grad_kernel,
        (triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.columns),),
        (
            *grads, *weights, cos, sin, d_x, sums,
            rows, tokens, width, heads, groups, *strides, *weights[0].stride(), angle_b,
        ),
        {"D": size, "GROUP": GROUP, **rotation_options(rotation), **matmul_options(tile, d_x.dtype, chip)},
    )  # fmt: skip


def plan_backward(
    grads: Triple,
    weights: Triple,
    d_x: Tensor,
    sums: Tensor,
    rotation: Rotation | None,
    chip: int | None,
    tile: Tile,
) -> tuple[Launch, Launch]:
    """The two launches that fill d_x, and sums ((H + 2G)·D) with the biases' gradients. Inputs have been checked."""
    batch, heads, tokens, size = grads[0].shape
    every = heads + 2 * grads[1].shape[1]
    kind = torch.promote_types(d_x.dtype, torch.float32)
    partial = torch.empty((1, triton.cdiv(batch * tokens, tile.rows), every, size), dtype=kind, device=d_x.device)
    first = plan_input_grad(grads, weights, d_x, rotation, chip, tile, partial)
    return first, plan_final_sum(partial, sums, 1)
