"""A statement measured in one layer, as a single number with its allowance."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minibeft.theory.statements import Gap


@dataclass(frozen=True)
class Measurement:
    """The entry that comes closest to its allowance (or exceeds it most), and the largest value of all entries."""

    layer: int
    value: float
    allowed: float
    largest: float

    @property
    def ratio(self) -> float:
        return self.value / self.allowed if self.allowed else float(self.value > 0)


def worst(layer: int, gap: Gap) -> Measurement:
    """The first entry that is not finite or has no finite allowance, else the one with the largest value/allowed. NaN
    counts as infinite."""
    value, allowed = torch.broadcast_tensors(gap.value.double(), gap.allowed.double())
    value = value.nan_to_num(nan=torch.inf, posinf=torch.inf)
    limits = torch.finfo(torch.float64)
    ratio = (value / allowed.clamp_min(limits.tiny)).clamp_max(limits.max)
    at = int(ratio.masked_fill(~(value.isfinite() & allowed.isfinite()), torch.inf).argmax())
    return Measurement(layer, value.flatten()[at].item(), allowed.flatten()[at].item(), value.max().item())


def draw(like: Tensor, magnitude: float, generator: Generator) -> Tensor:
    """Normal numbers with this standard deviation, the same in every type."""
    return (magnitude * torch.randn(like.shape, generator=generator, dtype=torch.float64)).to(like)
