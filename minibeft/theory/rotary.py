"""Rotary positions as plain data, and what they do in plain torch: the ground truth of the kernels' epilogue."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rotation(NamedTuple):
    """Pair i of each head turns by the angle whose cosine and sine stand in column i; half = R/2 pairs, R ≤ D.

    cos, sin     (T, R/2), or (B, T, R/2) when the sequences of a batch differ in their positions
    interleaved  pairs are neighbours (2i, 2i+1), as in GPT-J; otherwise (i, i + R/2), as in LLaMA

    Entries R and up of each head stay as they are (partial rotary). Calling it turns a (B, h, T, D) tensor. Source:
    RoFormer, arXiv 2104.09864.
    """

    cos: Float[Tensor, "*B T half"]
    sin: Float[Tensor, "*B T half"]
    interleaved: bool = False

    def __call__(self, x: Float[Tensor, "B h T D"]) -> Float[Tensor, "B h T D"]:
        """R x, in the type of x."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        if cos.ndim == 3:
            cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, R/2): the same for every head
        turned, rest = x[..., : self.dims], x[..., self.dims :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        a, b = a * cos - b * sin, b * cos + a * sin
        turned = torch.stack((a, b), -1).flatten(-2) if self.interleaved else torch.cat((a, b), -1)
        return torch.cat((turned, rest), -1)

    def reach(self, size: Float[Tensor, "B h T D"]) -> Float[Tensor, "B h T D"]:
        """A bound, entry by entry, on every rotation of numbers of these sizes.

        Both members of a pair become their sum; YaRN also multiplies by a factor, which is √(cos² + sin²).
        """
        if self.cos.numel():
            size = size * (self.cos.double().square() + self.sin.double().square()).max().sqrt().clamp_min(1.0)
        turned, rest = size[..., : self.dims], size[..., self.dims :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        both = torch.stack((a + b, a + b), -1).flatten(-2) if self.interleaved else torch.cat((a + b, a + b), -1)
        return torch.cat((both, rest), -1)

    @property
    def dims(self) -> int:
        """R, the entries of each head that turn."""
        return 2 * self.cos.shape[-1]

    def inverse(self) -> "Rotation":
        """The transpose, which is what gradients pass through: the same turn backwards, but for YaRN's factor."""
        return self._replace(sin=-self.sin)

    def double(self) -> "Rotation":
        """The same angles, in float64."""
        return self._replace(cos=self.cos.double(), sin=self.sin.double())


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's frequencies: wavelengths above length/low are stretched by `factor`, those below length/high are
    kept, and those between are mixed. Source: transformers, modeling_rope_utils."""

    factor: float
    low: float
    high: float
    length: int

    def frequencies(self, periods: Float[Tensor, " half"], _: "Rotary") -> Float[Tensor, " half"]:
        frequencies = 1.0 / periods
        waves = 2 * math.pi / frequencies
        kept = ((self.length / waves - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True)
class Yarn:
    """YaRN's frequencies: pairs that turn more than `fast` times over `length` tokens are kept, those that turn less
    than `slow` times are stretched by `factor`, with a ramp over the pairs between. Source: arXiv 2309.00071."""

    factor: float
    fast: float
    slow: float
    length: int
    whole: bool = True  # the ramp starts and ends at whole pairs

    def frequencies(self, periods: Float[Tensor, " half"], rotary: "Rotary") -> Float[Tensor, " half"]:
        low, high = (self.pair(turns, rotary) for turns in (self.fast, self.slow))
        low, high = (math.floor(low), math.ceil(high)) if self.whole else (low, high)
        low, high = max(low, 0), min(high, rotary.dims - 1)
        pairs = torch.arange(rotary.dims // 2, dtype=torch.float32, device=periods.device)
        kept = 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)
        return 1.0 / (self.factor * periods) * (1 - kept) + 1.0 / periods * kept

    def pair(self, turns: float, rotary: "Rotary") -> float:
        """Which pair, counted in fractions, turns so often over `length` tokens."""
        return rotary.dims * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of the first `dims` entries of each head turn by position · base^(−2i/dims) / scale.

    interleaved pairs neighbours (2i, 2i+1) as GPT-J does; otherwise i pairs with i + dims/2 as LLaMA does. dims < D
    leaves the other entries alone (partial rotary). scale > 1 stretches positions (linear rope scaling); `stretch`
    changes each frequency in its own way, and gain ≠ 1 makes what turns longer (YaRN, both).
    Source: Su et al., RoFormer (arXiv 2104.09864). They break K1 on the turned dims, and Q4 (theorems K4, Q7).
    """

    dims: int
    base: float = 10_000.0
    interleaved: bool = False
    scale: float = 1.0
    stretch: Llama3 | Yarn | None = None
    gain: float = 1.0

    def angles(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T {self.dims//2}"]:
        """Angles in radians, in float32 whatever the model's type: that is how every checkpoint was trained."""
        exponents = torch.arange(0, self.dims, 2, device=positions.device).float() / self.dims
        periods = self.base**exponents
        frequencies = 1.0 / periods / self.scale if self.stretch is None else self.stretch.frequencies(periods, self)
        return positions.float()[..., None] * frequencies

    def rotate(self, positions: Int[Tensor, "*B T"]) -> Rotation:
        """Turns (B, h, T, D) queries or keys to these positions, (T) or (B, T), when called."""
        angles = self.angles(positions)
        return Rotation(angles.cos() * self.gain, angles.sin() * self.gain, self.interleaved)
