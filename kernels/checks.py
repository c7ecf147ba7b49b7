"""Refuse what does not fit together, naming both sides, before anything is launched."""

import torch
from torch import Tensor

from minibeft.kernels.owners import Owners
from minibeft.kernels.qkv_bias.reference import OptionalTriple, Triple
from minibeft.theory.rotary import Rotation

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x on {x.device}: move one of them")


def check_type(name: str, value: Tensor, x: Tensor, *, wider: bool) -> None:
    """The type of x; where `wider`, float32 beside half precision too."""
    if value.dtype == x.dtype or (wider and value.dtype == torch.float32 and x.dtype.itemsize == 2):
        return
    remedy = "cast one of them, or this one to float32" if wider and x.dtype.itemsize == 2 else "cast one of them"
    raise ValueError(f"{name} is {value.dtype}, x is {x.dtype}: {remedy}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], reason: str) -> None:
    """`reason` says where the expected shape comes from, with the other side's numbers."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: {reason}")


def check_rotation(rotation: Rotation | None, x: Tensor, size: int) -> None:
    """The tables of angles fit the sequences and the heads."""
    if rotation is None:
        return
    batch, tokens, _ = x.shape
    cos, sin = rotation.cos, rotation.sin
    check_shape("sin", sin, tuple(cos.shape), f"cos has shape {tuple(cos.shape)}")
    if cos.shape[:-1] not in ((tokens,), (batch, tokens)):
        expected = f"({tokens}, R/2) or ({batch}, {tokens}, R/2)"
        raise ValueError(f"cos has shape {tuple(cos.shape)}, x needs {expected}")
    if size % 2 or not 2 <= rotation.dims <= size:
        raise ValueError(f"cos turns {rotation.dims} entries, heads have D = {size}: D must be even and no smaller")
    for table, value in {"cos": cos, "sin": sin}.items():
        check_device(table, value, x)
        if value.dtype != torch.float32:
            check_type(table, value, x, wider=True)


def check_projection(
    x: Tensor,
    weights: Triple,
    biases: OptionalTriple,
    rotation: Rotation | None,
    heads: int,
    sets: Owners | None = None,
) -> None:
    """x (B,T,C), w_q (H·D,C), w_k and w_v (G·D,C), biases (H·D), (G·D), (G·D) or tables of them, and the angles."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected three axes (B, T, C)")
    if x.dtype not in TYPES:
        raise ValueError(f"x is {x.dtype}, the kernels take {', '.join(map(str, TYPES))}")
    for name, w in zip(("w_q", "w_k", "w_v"), weights, strict=True):
        check_device(name, w, x)
        check_type(name, w, x, wider=False)
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
        if b is None:
            continue
        check_device(f"b_{letter}", b, x)
        check_type(f"b_{letter}", b, x, wider=True)
        tables = () if sets is None or b.ndim == 1 else (len(sets.starts) - 1,)
        reason = f"w_{letter} has shape {tuple(w.shape)}"
        if tables:
            reason = f"{reason}, and there are {tables[0]} sets"
        check_shape(f"b_{letter}", b, (*tables, w.shape[0]), reason)
    if sets is not None:
        check_device("sets", sets.each, x)
        check_shape("sets", sets.each, (x.shape[0] * x.shape[1],), f"x has shape {tuple(x.shape)}")
    check_rotation(rotation, x, size)
