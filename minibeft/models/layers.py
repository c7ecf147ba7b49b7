"""What surrounds attention: learned positions, norms, activations, and the MLP."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.models.packed.frozen import frozen_linear
from minibeft.models.packed.sets import Sets
from minibeft.theory.attention import linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_bloom": lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),  # √(2/π) to 8 digits
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Learned:
    """Learned positions: a table with `rows` rows; the first real token reads row `start`, padding reads start − 1.

    counted says which tokens are real: "all" (BERT: padding counts too), "tokens" (RoBERTa: all but the padding token)
    or "mask" (OPT: those the attention mask keeps).
    """

    rows: int
    start: int = 0
    counted: str = "all"

    def indices(self, tokens: Int[Tensor, "B T"], mask: Int[Tensor, "B T"], pad: int | None) -> Int[Tensor, "B T"]:
        """Each token's row of the table."""
        real = {"all": torch.ones_like(tokens), "tokens": (tokens != pad).long(), "mask": mask.long()}[self.counted]
        return real.cumsum(1) * real + self.start - 1


class RMSNorm(nn.Module):
    """x · gain/√(mean x² + eps) over the last axis; the gain is the weight, or 1 + weight (Gemma)."""

    def __init__(self, width: int, eps: float, *, offset: bool):
        super().__init__()
        self.eps, self.offset = eps, float(offset)
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))

    @property
    def gain(self) -> Float[Tensor, " C"]:
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        return F.rms_norm(x, self.weight.shape, self.gain, self.eps)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, whose bias may be each row's own."""

    sets: Sets | None = None

    def reset_parameters(self) -> None:
        """Skipped for weights on the meta device, as most are while a checkpoint is loaded (load.py)."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        if self.sets is None:
            return super().forward(input)
        normed = F.layer_norm(input, self.normalized_shape, self.weight, None, self.eps)
        return normed.add_(self.sets.picked(len(input)))


class Scale(nn.Module):
    """x · weight, entry by entry of the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        return x * self.weight


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """LayerNorm or RMSNorm over the last axis."""
    return LayerNorm(width, eps=eps) if kind == "layer" else RMSNorm(width, eps, offset=kind == "rms+1")


class Linear(nn.Linear):
    """nn.Linear whose bias may have a wider type than its weight, or be each row's own, and that may know that its
    weight is frozen."""

    frozen = False
    sets: Sets | None = None

    def reset_parameters(self) -> None:
        """As LayerNorm's."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Float[Tensor, "*B T C"]) -> Float[Tensor, "*B T n"]:
        if self.sets is not None:
            return self.sets.linear(input, self.weight)
        return (frozen_linear if self.frozen else linear)(input, self.weight, self.bias)


class MLP(nn.Module):
    """down(act(up(x))), or with a gate down(act(gate(x)) · up(x))."""

    def __init__(self, width: int, inner: int, activation: str, *, gated: bool, bias: bool):
        super().__init__()
        self.gate = Linear(width, inner, bias=bias) if gated else None
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))
