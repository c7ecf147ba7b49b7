"""What each attention layer of a model sees on given inputs: the place where the theorems are measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minibeft.models.transformer import Attention, Transformer
from minibeft.theory.attention import Mask, Rotate, attend, attention_weights, project
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.rotary import Rotary

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """One attention layer with the input it got. Absent biases q, k and v stand as zeros, `absent` names them."""

    index: int
    x: Float[Tensor, "B T C"]
    mask: Mask | None
    rotate: Rotate | None
    rotary: Rotary | None
    arguments: dict[str, Any]
    absent: frozenset[str]

    @property
    def heads(self) -> int:
        return self.arguments["heads"]

    @property
    def kv_heads(self) -> int:
        return self.arguments["kv_heads"]

    @cached_property
    def head_size(self) -> int:
        return self.arguments["w_q"].shape[0] // self.heads

    @cached_property
    def scale(self) -> float:
        return self.head_size**-0.5

    @cached_property
    def sees(self) -> Bool[Tensor, "B T"]:
        """Rows that see at least one key."""
        if self.mask is None:
            return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        return (~self.mask.isneginf().all(-1))[:, 0].expand(self.x.shape[:2])

    def outputs(self, **biases: Tensor | None) -> Float[Tensor, "B H T D"]:
        """O = P V, before W_o, with some biases exchanged."""
        out = attend(self.x, mask=self.mask, rotate=self.rotate, **{**self.arguments, "w_o": None, **biases}).output
        return out.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def queries(self, b_q: Float[Tensor, " HD"] | None) -> Float[Tensor, "B H T D"]:
        """Q with this bias, turned where positions are rotary."""
        q = project(self.x, self.arguments["w_q"], b_q, self.heads)
        return q if self.rotate is None else self.rotate(q)

    def keys(self, b_k: Float[Tensor, " GD"] | None) -> Float[Tensor, "B G T D"]:
        """K with this bias, turned where positions are rotary."""
        k = project(self.x, self.arguments["w_k"], b_k, self.kv_heads)
        return k if self.rotate is None else self.rotate(k)

    def values(self, b_v: Float[Tensor, " GD"] | None) -> Float[Tensor, "B G T D"]:
        """V with this bias."""
        return project(self.x, self.arguments["w_v"], b_v, self.kv_heads)

    def weights(self, b_q: Float[Tensor, " HD"] | None) -> Float[Tensor, "B H T S"]:
        """P with this b_q."""
        return attention_weights(self.queries(b_q), self.keys(self.arguments["b_k"]), self.mask, self.scale)

    def grouped(self, x: Float[Tensor, "*B G n D"]) -> Float[Tensor, "*B H n D"]:
        """Keys or values, each repeated for the query heads that read it."""
        return x.repeat_interleave(self.heads // self.kv_heads, dim=-3)

    def bias_heads(self, bias: Float[Tensor, " GD"]) -> Float[Tensor, "H 1 D"]:
        """A key or value bias as every query head sees it."""
        return self.grouped(bias.view(self.kv_heads, 1, -1))

    def magnitude(self, weight: str) -> Float[Tensor, "B H S D"]:
        """|x||W|ᵀ for w_k or w_v: what the rounding errors of a projection are measured by. A rotation mixes pairs."""
        size = self.grouped(project(self.x.abs(), self.arguments[weight].abs(), None, self.kv_heads))
        if self.rotary is None or weight == "w_v":
            return size
        turned, rest = size[..., : self.rotary.dims], size[..., self.rotary.dims :]
        if self.rotary.interleaved:
            pairs = (turned[..., 0::2] + turned[..., 1::2]).repeat_interleave(2, -1)
        else:
            a, b = turned.chunk(2, -1)
            pairs = (a + b).repeat(1, 1, 1, 2)
        return torch.cat((pairs, rest), -1)

    @property
    def roundings(self) -> int:
        """Of an entry of K or V: a dot product of length C, its bias, and three more for a rotation."""
        return self.x.shape[-1] + 1 + (3 if self.rotary else 0)

    @property
    def unit_roundoff(self) -> float:
        """Of the type that the layer runs in."""
        return unit_roundoff(self.x.dtype)

    @property
    def arithmetic(self) -> dict[str, Any]:
        """What every bound of bounds.py asks of the logits and their arithmetic."""
        return {"mask": self.mask, "scale": self.scale, "u": self.unit_roundoff, "roundings": self.roundings}


def modules_of(model: Transformer) -> list[Attention]:
    """The model's attention modules, first layer first."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextmanager
def recorded_inputs(model: Transformer) -> Iterator[list[tuple[Attention, tuple[Any, ...]]]]:
    """Each attention module with the arguments of its forward pass, in order."""
    seen: list[tuple[Attention, tuple[Any, ...]]] = []

    def keep(module: Attention, _: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((module, args))

    hooks = [m.register_forward_pre_hook(partial(keep, m)) for m in modules_of(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def probe(model: Transformer, batch: Batch) -> list[Layer]:
    """Run the model once and return what every attention layer saw."""
    positions = model.config.positions
    with torch.no_grad(), recorded_inputs(model) as seen:
        model(**batch)
    layers = []
    for index, (module, (x, mask, rotate)) in enumerate(seen):
        arguments = {name: t.detach() if isinstance(t, Tensor) else t for name, t in module.arguments().items()}
        absent = frozenset(name for name in "qkv" if arguments[f"b_{name}"] is None)
        for name in absent:
            arguments[f"b_{name}"] = x.new_zeros(arguments[f"w_{name}"].shape[0])
        rotary = positions if isinstance(positions, Rotary) else None
        layers.append(Layer(index, x, mask, rotate, rotary, arguments, absent))
    return layers


def turned(model: Transformer) -> tuple[slice | None, slice | None]:
    """The entries of each head that rotary positions turn, and those they leave alone."""
    positions, size = model.config.positions, model.config.head_size
    if not isinstance(positions, Rotary):
        return None, slice(0, size)
    return slice(0, positions.dims), slice(positions.dims, size) if positions.dims < size else None


def where(model: Transformer, part: slice | None) -> str:
    """Which entries of a head a check is about; nothing where it is about all of them."""
    if part is None or part == slice(0, model.config.head_size):
        return ""
    return f", entries {part.start}–{part.stop - 1} of each head"
