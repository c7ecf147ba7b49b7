"""Dropout from 16 random bits per number: on a CPU a third of the time of torch's, which draws 64 bits and divides."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from minibeft.models.packed.sets import Rows

STEPS = 1 << 16


def rounded(p: float) -> float:
    """The probability that 16 bits can give: within 2⁻¹⁷ of p."""
    return round(p * STEPS) / STEPS


def draw_keep(like: Float[Tensor, "*shape"], p: float, stream: torch.Generator | None = None) -> Int8[Tensor, "*shape"]:
    """0 with probability rounded(p), else 1, independently, from this stream of random numbers, or torch's own.

    The mask is int8 and not bool: on a CPU, torch selects by a bool mask at a fifth of the speed of a multiplication.
    """
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=stream)
    numbers = words.view(torch.int16)[: like.numel()].view(like.shape)  # uniform on −2¹⁵ … 2¹⁵ − 1
    return (numbers >= round(p * STEPS) - STEPS // 2).view(torch.int8)


def keep_only(keep: Int8[Tensor, "*shape"], x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """x where keep, scaled so that the mean stays; zero elsewhere. Its own transpose."""
    return x * keep * (1 / (1 - rounded(p)))


class Dropout(nn.Dropout):
    """nn.Dropout with draw_keep's random numbers; with `rows`, those of each set from its own stream."""

    rows: Rows | None = None

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self.p == 0:
            return input
        if self.rows is None:
            return keep_only(draw_keep(input, self.p), input, self.p)
        parts = zip(input.split(self.rows.sizes(len(input))), self.rows.streams, strict=True)
        return keep_only(torch.cat([draw_keep(part, self.p, stream) for part, stream in parts]), input, self.p)


def make_dropout(p: float, *, same: bool) -> nn.Dropout:
    """With `same`, torch's own, which draws the same numbers as other implementations from the same seed."""
    return nn.Dropout(p) if same else Dropout(p)
