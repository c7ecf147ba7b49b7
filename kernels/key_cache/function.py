"""quantised_keys: the keys that a quantised cache stores, from the hidden states."""

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels.checks import check_device, check_projection, check_shape
from minibeft.kernels.dispatch import on_kernels
from minibeft.kernels.key_cache.reference import packed, quantise_reference, shifted_keys_reference
from minibeft.theory.rotary import Rotation


@torch.no_grad()
def quantised_keys(
    x: Float[Tensor, "B T C"],
    w_k: Float[Tensor, "GD C"],
    b_k: Float[Tensor, " GD"] | None,
    shift: Float[Tensor, "G D"],
    *,
    rotation: Rotation | None = None,
    bits: int = 8,
) -> tuple[Tensor, Float[Tensor, "B G T"]]:
    """Codes of turn(X W_kᵀ + b_k) − c and their steps: code · step is within half a step of it. Where theorem K9 holds,
    K − c gives the same attention weights as K, for every c that all keys share.

    shift  c, the mean key of earlier tokens: what `minibeft quantkeys --export` writes for each layer
    bits   8: codes (B, G, T, D) in int8; 4: two codes per byte, (B, G, T, D/2), those of a pair (reference.unpacked)

    Not differentiable. Raises ValueError where shapes, types or devices do not fit, and for an odd D.
    """
    if shift.ndim != 2 or shift.shape[1] % 2 or bits not in (4, 8):
        raise ValueError(f"shift has shape {tuple(shift.shape)}, bits = {bits}: expected (G, D), D even, and 4 or 8")
    groups, size = shift.shape
    check_device("shift", shift, x)
    check_shape("w_k", w_k, (groups * size, x.shape[-1]), f"shift has shape {tuple(shift.shape)}, x {tuple(x.shape)}")
    check_projection(x, (w_k, w_k, w_k), (None, b_k, None), rotation, groups)
    if not on_kernels(x):
        keys = shifted_keys_reference(x.float(), w_k.float(), None if b_k is None else b_k.float(), shift, rotation)
        codes, steps = quantise_reference(keys, bits)
        return (codes if bits == 8 else packed(codes, rotation)), steps
    from minibeft.kernels.key_cache.forward import plan_quantised_keys
    from minibeft.kernels.lang import chip_of

    shape = (x.shape[0], groups, x.shape[1])
    bytes_, kind = (size, torch.int8) if bits == 8 else (size // 2, torch.uint8)
    codes = x.new_empty((*shape, bytes_), dtype=kind)
    steps = x.new_empty(shape, dtype=torch.float32)
    plan_quantised_keys(x, w_k, b_k, shift, codes, steps, rotation, bits, chip_of(x.device)).run()
    return codes, steps
