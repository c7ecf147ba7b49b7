"""K of a quantised cache in one kernel: projected, biased, turned, the shift subtracted, and rounded with one step per
key and head. K itself is never written.

A program computes some rows of one whole head, as two tiles: the first members of its pairs and the second members.
A rotation needs both members of a pair together, and so does a byte that holds two codes.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
from torch import Tensor

from minibeft.kernels.key_cache.reference import levels
from minibeft.kernels.lang import Launch, tl, triton
from minibeft.kernels.pairs import angle_arguments, load_angles, pair_members, rotation_options
from minibeft.kernels.qkv_bias.forward import matmul_options
from minibeft.kernels.tiles import key_tile
from minibeft.theory.rotary import Rotation


@triton.jit
def quantised_keys_kernel(
    x, w, bias, shift, cos, sin, codes, steps,
    M, T, C, G, x_b, x_t, x_c, w_n, w_c, angle_b,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr,
    LEVELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < M
    b, t = (r // T).to(tl.int64), r % T
    p = tl.arange(0, BN // 2)
    used = p < D // 2
    d0, d1 = pair_members(p, R, D, INTERLEAVED)
    c = tl.arange(0, BK)
    x_tile = x + (b * x_b + t * x_t)[:, None] + c[None, :] * x_c
    low_tile = w + (g * D + d0).to(tl.int64)[None, :] * w_n + c[:, None] * w_c
    high_tile = w + (g * D + d1).to(tl.int64)[None, :] * w_n + c[:, None] * w_c
    low = tl.zeros((BM, BN // 2), dtype=ACC)
    high = tl.zeros((BM, BN // 2), dtype=ACC)
    for first in range(0, C, BK):
        inside = c < C - first
        x_part = tl.load(x_tile, mask=live[:, None] & inside[None, :], other=0.0).to(OPERAND)
        w_mask = inside[:, None] & used[None, :]
        w_part = tl.load(low_tile, mask=w_mask, other=0.0).to(OPERAND)
        low = tl.dot(x_part, w_part, low, input_precision="ieee", out_dtype=ACC)
        w_part = tl.load(high_tile, mask=w_mask, other=0.0).to(OPERAND)
        high = tl.dot(x_part, w_part, high, input_precision="ieee", out_dtype=ACC)
        x_tile += BK * x_c
        low_tile += BK * w_c
        high_tile += BK * w_c
    if bias is not None:
        low += tl.load(bias + g * D + d0, mask=used, other=0.0).to(ACC)[None, :]
        high += tl.load(bias + g * D + d1, mask=used, other=0.0).to(ACC)[None, :]
    if R > 0:
        co, si = load_angles(cos, sin, b * angle_b + t, live, p, R, ACC)
        low, high = low * co - high * si, high * co + low * si
    low -= tl.load(shift + g * D + d0, mask=used, other=0.0).to(ACC)[None, :]
    high -= tl.load(shift + g * D + d1, mask=used, other=0.0).to(ACC)[None, :]

    largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), 1)
    step = tl.maximum(largest, 1.1754943508222875e-38) / LEVELS
    key = (b * G + g) * T + t
    tl.store(steps + key, step.to(tl.float32), mask=live)
    low = tl.floor(low / step[:, None] + 0.5).to(tl.int32)
    high = tl.floor(high / step[:, None] + 0.5).to(tl.int32)
    mask = live[:, None] & used[None, :]
    if LEVELS > 7:
        tl.store(codes + key[:, None] * D + d0[None, :], low.to(tl.int8), mask=mask)
        tl.store(codes + key[:, None] * D + d1[None, :], high.to(tl.int8), mask=mask)
    else:
        both = ((low & 15) | ((high & 15) << 4)).to(tl.uint8)
        tl.store(codes + key[:, None] * (D // 2) + p[None, :], both, mask=mask)


def plan_quantised_keys(
    x: Tensor,
    w_k: Tensor,
    b_k: Tensor | None,
    shift: Tensor,
    codes: Tensor,
    steps: Tensor,
    rotation: Rotation | None,
    bits: int,
    chip: int | None,
) -> Launch:
    """The launch that fills codes (B,G,T,D), of four bits (B,G,T,D/2), and steps (B,G,T). Inputs have been checked."""
    batch, tokens, width = x.shape
    groups, size = shift.shape
    tile = key_tile(chip, x.dtype, max(triton.next_power_of_2(size), 32))
    cos, sin, angle_b = angle_arguments(rotation, tokens)
    return Launch(
        quantised_keys_kernel,
        (triton.cdiv(batch * tokens, tile.rows), groups),
        (
            x, w_k, b_k if b_k is None else b_k.contiguous(), shift.contiguous(), cos, sin, codes, steps,
            batch * tokens, tokens, width, groups, *x.stride(), *w_k.stride(), angle_b,
        ),
        {"D": size, "LEVELS": levels(bits), **rotation_options(rotation), **matmul_options(tile, x.dtype, chip)},
    )  # fmt: skip
