"""Rotary positions as plain data, and what they do in plain torch: the ground truth of the kernels' epilogue."""

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
        """What no turn of numbers of these sizes exceeds, entry by entry: both members of a pair become their sum."""
        turned, rest = size[..., : self.dims], size[..., self.dims :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        both = torch.stack((a + b, a + b), -1).flatten(-2) if self.interleaved else torch.cat((a + b, a + b), -1)
        return torch.cat((both, rest), -1)

    @property
    def dims(self) -> int:
        """R, the entries of each head that turn."""
        return 2 * self.cos.shape[-1]

    def inverse(self) -> "Rotation":
        """The same turn backwards: a rotation's transpose, which is what gradients pass through."""
        return self._replace(sin=-self.sin)

    def double(self) -> "Rotation":
        """The same angles, in float64."""
        return self._replace(cos=self.cos.double(), sin=self.sin.double())


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of the first `dims` entries of each head turn by position · base^(−2i/dims) / scale.

    interleaved pairs neighbours (2i, 2i+1) as GPT-J does; otherwise i pairs with i + dims/2 as LLaMA does. dims < D
    leaves the other entries alone (partial rotary). scale > 1 stretches positions (linear rope scaling).
    Source: Su et al., RoFormer (arXiv 2104.09864). They break K1 on the turned dims, and Q4 (theorems K4, Q7).
    """

    dims: int
    base: float = 10_000.0
    interleaved: bool = False
    scale: float = 1.0

    def angles(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T {self.dims//2}"]:
        """Angles in radians, in float32 whatever the model's type: that is how every checkpoint was trained."""
        exponents = torch.arange(0, self.dims, 2, device=positions.device).float() / self.dims
        frequencies = 1.0 / self.base**exponents / self.scale
        return positions.float()[..., None] * frequencies

    def rotate(self, positions: Int[Tensor, "*B T"]) -> Rotation:
        """Turns (B, h, T, D) queries or keys to these positions, (T) or (B, T), when called."""
        angles = self.angles(positions)
        return Rotation(angles.cos(), angles.sin(), self.interleaved)
