"""Refuse what does not fit together, naming both sides, before anything is launched."""

from collections.abc import Mapping

import torch
from torch import Tensor

from minibeft.kernels.qkv_bias.reference import OptionalTriple, Triple
from minibeft.kernels.rotation import Rotation

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_alike(name: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """One supported type and one device for all."""
    if tensor.dtype not in TYPES:
        raise ValueError(f"{name} is {tensor.dtype}, the kernels take {', '.join(map(str, TYPES))}")
    for other, value in others.items():
        if value is None:
            continue
        if value.dtype != tensor.dtype:
            raise ValueError(f"{other} is {value.dtype}, {name} is {tensor.dtype}: cast one of them")
        if value.device != tensor.device:
            raise ValueError(f"{other} is on {value.device}, {name} on {tensor.device}: move one of them")


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], reason: str) -> None:
    """`reason` says where the expected shape comes from, with the other side's numbers."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: {reason}")


def check_rotation(rotation: Rotation | None, name: str, like: Tensor, batch: int, tokens: int, size: int) -> None:
    """The tables of angles fit the sequences and the heads."""
    if rotation is None:
        return
    cos, sin = rotation.cos, rotation.sin
    check_shape("sin", sin, tuple(cos.shape), f"cos has shape {tuple(cos.shape)}")
    if cos.shape[:-1] not in ((tokens,), (batch, tokens)):
        expected = f"({tokens}, R/2) or ({batch}, {tokens}, R/2)"
        raise ValueError(f"cos has shape {tuple(cos.shape)}, {name} needs {expected}")
    if size % 2 or not 2 <= rotation.dims <= size:
        raise ValueError(f"cos turns {rotation.dims} entries, heads have D = {size}: D must be even and no smaller")
    for table, value in {"cos": cos, "sin": sin}.items():
        if value.dtype not in (torch.float32, like.dtype):
            raise ValueError(f"{table} is {value.dtype}, {name} is {like.dtype}: angles take that or float32")
        if value.device != like.device:
            raise ValueError(f"{table} is on {value.device}, {name} on {like.device}: move one of them")


def check_projection(
    x: Tensor,
    weights: Triple,
    biases: OptionalTriple,
    rotation: Rotation | None,
    heads: int,
) -> None:
    """x (B,T,C), w_q (H·D,C), w_k and w_v (G·D,C), biases (H·D), (G·D), (G·D), and the angles."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected three axes (B, T, C)")
    names = ("w_q", "w_k", "w_v")
    check_alike("x", x, dict(zip((*names, "b_q", "b_k", "b_v"), (*weights, *biases), strict=True)))
    for name, w in zip(names, weights, strict=True):
        if w.ndim != 2 or w.shape[1] != x.shape[2]:
            raise ValueError(f"{name} has shape {tuple(w.shape)}, x has C = {x.shape[2]}: expected (…, {x.shape[2]})")
    w_q, w_k, w_v = weights
    if heads < 1 or w_q.shape[0] % heads or not w_q.shape[0]:
        raise ValueError(f"w_q has {w_q.shape[0]} rows, which heads = {heads} does not divide into heads")
    size = w_q.shape[0] // heads
    groups = w_k.shape[0] // size
    if not groups or w_k.shape[0] % size or heads % groups:
        raise ValueError(
            f"w_k has {w_k.shape[0]} rows, w_q {w_q.shape[0]} for {heads} heads: w_k needs G·{size}, G dividing {heads}"
        )
    check_shape("w_v", w_v, tuple(w_k.shape), f"w_k has shape {tuple(w_k.shape)}")
    for letter, w, b in zip("qkv", weights, biases, strict=True):
        check_shape(f"b_{letter}", b, (w.shape[0],), f"w_{letter} has shape {tuple(w.shape)}")
    check_rotation(rotation, "x", x, x.shape[0], x.shape[1], size)
