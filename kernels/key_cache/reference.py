"""The ground truth in plain torch: K minus a vector that all keys share, rounded with one step per key and head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minibeft.theory.rotary import Rotation


def shifted_keys_reference(
    x: Float[Tensor, "B T C"],
    w_k: Float[Tensor, "GD C"],
    b_k: Float[Tensor, " GD"] | None,
    shift: Float[Tensor, "G D"],
    rotation: Rotation | None,
) -> Float[Tensor, "B G T D"]:
    """turn(X W_kᵀ + b_k) − c: what is rounded."""
    k = F.linear(x, w_k, b_k).unflatten(-1, shift.shape).transpose(1, 2)
    return (k if rotation is None else rotation(k)) - shift[:, None]


def levels(bits: int) -> int:
    """How many quantisation steps lie between zero and the largest entry."""
    return 2 ** (bits - 1) - 1


def quantise_reference(keys: Float[Tensor, "B G T D"], bits: int) -> tuple[Int[Tensor, "B G T D"], Tensor]:
    """Codes from −levels to levels, and the steps (B, G, T): each key's largest entry divided by the levels."""
    step = keys.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / levels(bits)
    return torch.floor(keys / step[..., None] + 0.5).to(torch.int8), step


def packed(codes: Int[Tensor, "B G T D"], rotation: Rotation | None) -> Int[Tensor, "B G T half"]:
    """Two codes of four bits per byte: those of one pair, the first member's in the low bits."""
    low, high = (codes[..., d].to(torch.int32) & 15 for d in pairs(codes.shape[-1], rotation))
    return (low | high << 4).to(torch.uint8)


def unpacked(bytes_: Int[Tensor, "B G T half"], rotation: Rotation | None) -> Int[Tensor, "B G T D"]:
    """The codes that packed() put into these bytes."""
    codes = bytes_.new_empty((*bytes_.shape[:-1], 2 * bytes_.shape[-1]), dtype=torch.int8)
    for place, d in zip((0, 4), pairs(codes.shape[-1], rotation), strict=True):
        nibble = bytes_.to(torch.int32) >> place & 15
        codes[..., d] = (nibble - 16 * (nibble > 7)).to(torch.int8)
    return codes


def pairs(size: int, rotation: Rotation | None) -> tuple[Int[Tensor, " half"], Int[Tensor, " half"]]:
    """Which two entries of a head form pair p: neighbours, or entries R/2 apart under half-split rotary positions."""
    p = torch.arange(size // 2)
    if rotation is None or rotation.interleaved:
        return 2 * p, 2 * p + 1
    turned = p < rotation.dims // 2
    return torch.where(turned, p, 2 * p), torch.where(turned, p + rotation.dims // 2, 2 * p + 1)
