"""qkv_bias: the three projections with their biases as one differentiable operator, which torch.compile sees through.

A gradient is computed only where it is asked for. With frozen weights X is not even saved; with a frozen X the
weights are not; a bias alone costs one column sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels import tiles
from minibeft.kernels.bias_grad.function import column_sum
from minibeft.kernels.checks import check_projection
from minibeft.kernels.dispatch import on_kernels
from minibeft.kernels.owners import Owners
from minibeft.kernels.qkv_bias.reference import (
    Triple,
    input_grad_reference,
    qkv_bias_reference,
    weight_grad_reference,
)
from minibeft.kernels.tiles import Tile
from minibeft.theory.rotary import Rotation


def _rotation(cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> Rotation | None:
    return None if cos is None or sin is None else Rotation(cos, sin, interleaved)


@torch.library.custom_op("minibeft::qkv_bias", mutates_args=())
def qkv_bias_op(
    x: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    b_q: Tensor | None,
    b_k: Tensor | None,
    b_v: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    heads: int,
    each: Tensor | None = None,
    order: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked inputs → Q (B,H,T,D), K (B,G,T,D), V (B,G,T,D), contiguous. each, order, starts: all or none, Owners."""
    rotation = _rotation(cos, sin, interleaved)
    if not on_kernels(x):
        return qkv_bias_reference(x, (w_q, w_k, w_v), (b_q, b_k, b_v), rotation, heads, each)
    from minibeft.kernels.lang import chip_of
    from minibeft.kernels.qkv_bias.descriptors import plan_projection
    from minibeft.kernels.qkv_bias.forward import Projection

    outputs, chip = _outputs(x, w_q, w_k, heads), chip_of(x.device)
    plan_projection(Projection(x, (w_q, w_k, w_v), (b_q, b_k, b_v), outputs, rotation, chip, each)).run()
    return outputs


def _outputs(x: Tensor, w_q: Tensor, w_k: Tensor, heads: int) -> Triple:
    batch, tokens, _ = x.shape
    size = w_q.shape[0] // heads
    kv_shape = (batch, w_k.shape[0] // size, tokens, size)
    return x.new_empty((batch, heads, tokens, size)), x.new_empty(kv_shape), x.new_empty(kv_shape)


@qkv_bias_op.register_fake
def _(x, w_q, w_k, w_v, b_q, b_k, b_v, cos, sin, interleaved, heads, each=None, order=None, starts=None):
    return _outputs(x, w_q, w_k, heads)


@torch.library.custom_op("minibeft::qkv_input_grad", mutates_args=())
def qkv_input_grad(
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
) -> Tensor:
    """dX (B, T, C) from the gradients of Q, K and V."""
    rotation = _rotation(cos, sin, interleaved)
    if not on_kernels(d_q):
        return input_grad_reference((d_q, d_k, d_v), (w_q, w_k, w_v), rotation)
    from minibeft.kernels.lang import chip_of
    from minibeft.kernels.qkv_bias.backward import plan_input_grad

    d_x = _input_like(d_q, w_q)
    plan_input_grad((d_q, d_k, d_v), (w_q, w_k, w_v), d_x, rotation, chip_of(d_q.device)).run()
    return d_x


def _input_like(d_q: Tensor, w_q: Tensor) -> Tensor:
    return d_q.new_empty((d_q.shape[0], d_q.shape[2], w_q.shape[1]))


@qkv_input_grad.register_fake
def _(d_q, d_k, d_v, w_q, w_k, w_v, cos, sin, interleaved):
    return _input_like(d_q, w_q)


@torch.library.custom_op("minibeft::qkv_backward", mutates_args=())
def qkv_backward(
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    tile: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """dX, and the gradients of all three biases one after the other, in float32 at least, by this Tile of a kernel."""
    from minibeft.kernels.lang import chip_of
    from minibeft.kernels.qkv_bias.backward import plan_backward

    d_x, sums = _backward(d_q, d_k, w_q)
    chip, turn = chip_of(d_q.device), _rotation(cos, sin, interleaved)
    for launch in plan_backward((d_q, d_k, d_v), (w_q, w_k, w_v), d_x, sums, turn, chip, Tile(*tile)):
        launch.run()
    return d_x, sums


def _backward(d_q: Tensor, d_k: Tensor, w_q: Tensor) -> tuple[Tensor, Tensor]:
    every = (d_q.shape[1] + 2 * d_k.shape[1]) * d_q.shape[3]
    return _input_like(d_q, w_q), d_q.new_empty(every, dtype=torch.promote_types(d_q.dtype, torch.float32))


@qkv_backward.register_fake
def _(d_q, d_k, d_v, w_q, w_k, w_v, cos, sin, interleaved, tile):
    return _backward(d_q, d_k, w_q)


def inside_tile(d_q: Tensor, w_q: Tensor, turning: bool) -> Tile | None:
    """The tile for one kernel for dX and the biases' gradients; None where that was not the quickest (tune.py)."""
    if not on_kernels(d_q):
        return None
    from minibeft.kernels.lang import chip_of

    rows, width = d_q.shape[0] * d_q.shape[2], w_q.shape[1]
    found = tiles.tuned(chip_of(d_q.device), d_q.dtype, tiles.BOTH, rows, width, turning)
    return found.tile if isinstance(found, tiles.Inside) else None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, w_q, w_k, w_v, *biases, cos, sin, ctx.interleaved, _, each, order, starts = inputs
    ctx.biases = [(None, False) if b is None else (b.dtype, b.ndim == 2) for b in biases]
    needs_x, *needs_w = ctx.needs_input_grad[:4]
    weights = (w_q, w_k, w_v) if needs_x else (None, None, None)
    ctx.save_for_backward(x if any(needs_w) else None, *weights, cos, sin, each, order, starts)


def _gradients(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor | None, ...]:
    x, w_q, w_k, w_v, cos, sin, *sets = ctx.saved_tensors
    angles = cos, sin, ctx.interleaved
    rotation = _rotation(*angles)
    needs_x, *needs_w = ctx.needs_input_grad[:4]
    needs_b = ctx.needs_input_grad[4:7]
    untabled = any(needs_b) and not any(tabled for _, tabled in ctx.biases)
    if needs_x and untabled and (tile := inside_tile(d_q, w_q, rotation is not None)) is not None:
        d_x, sums = qkv_backward(d_q, d_k, d_v, w_q, w_k, w_v, *angles, tile)
        summed = sums.split([len(w) for w in (w_q, w_k, w_v)])
    else:
        d_x = qkv_input_grad(d_q, d_k, d_v, w_q, w_k, w_v, *angles) if needs_x else None
        summed = None, None, None
    outputs = (d_q, angles, rotation), (d_k, angles, rotation), (d_v, (None, None, False), None)
    d_w = [weight_grad_reference(d, x, r) if need else None for need, (d, _, r) in zip(needs_w, outputs, strict=True)]
    d_b = [
        None if not need else column_sum(d, *a, 1, kind, *(sets if tabled else ())) if found is None else found.to(kind)
        for need, (kind, tabled), (d, a, _), found in zip(needs_b, ctx.biases, outputs, summed, strict=True)
    ]
    return d_x, *d_w, *d_b, *[None] * 7


qkv_bias_op.register_autograd(_gradients, setup_context=_save)


def qkv_bias(
    x: Float[Tensor, "B T C"],
    w_q: Float[Tensor, "HD C"],
    w_k: Float[Tensor, "GD C"],
    w_v: Float[Tensor, "GD C"],
    b_q: Float[Tensor, "*R HD"] | None = None,
    b_k: Float[Tensor, "*R GD"] | None = None,
    b_v: Float[Tensor, "*R GD"] | None = None,
    *,
    heads: int,
    rotation: Rotation | None = None,
    skip_null: bool = False,
    sets: Owners | None = None,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B G T D"], Float[Tensor, "B G T D"]]:
    """Q = turn(X W_qᵀ + b_q), K = turn(X W_kᵀ + b_k), V = X W_vᵀ + b_v, each written once, where attention reads it.

    rotation    rotary positions, applied to Q and K after their biases
    skip_null   the caller's word that certify calls b_k null: it is not loaded, and gets no gradient, which theorem
                K2 says is zero. Refused under rotation, where b_k has an effect (theorem K4).
    sets        which of R bias sets each of the B·T rows adds: adapters, or runs, over one weight. A bias is then a
                table (R, …), whose gradient sums the rows of each set, in a fixed order; or one vector for all sets.

    A packed weight is passed as views: w_q, w_k, w_v = packed.split((H·D, G·D, G·D)). Biases may stay in float32 beside
    half precision; so may their gradients. Under autocast x and the weights are cast first. Not differentiable in the
    angles. Raises ValueError where shapes, types or devices do not fit.
    """
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, w_q, w_k, w_v = x.to(kind), w_q.to(kind), w_k.to(kind), w_v.to(kind)
    check_projection(x, (w_q, w_k, w_v), (b_q, b_k, b_v), rotation, heads, sets)
    if skip_null and rotation is not None:
        raise ValueError(
            f"skip_null=True with rotary on {rotation.dims} entries of each head: b_k has an effect there "
            "(theorem K4), pass skip_null=False"
        )
    cos, sin, interleaved = (None, None, False) if rotation is None else rotation
    b_k = None if skip_null else b_k
    q, k, v = qkv_bias_op(x, w_q, w_k, w_v, b_q, b_k, b_v, cos, sin, interleaved, heads, *(sets or ()))
    # Attention computes no unneeded gradient: training b_v alone needs neither Q's nor K's gradient (theorem V3).
    q, k, v = (
        out if any(t is not None and t.requires_grad for t in (x, w, b)) else out.detach()
        for out, w, b in ((q, w_q, b_q), (k, w_k, b_k), (v, w_v, b_v))
    )
    return q, k, v
