"""Random numbers that are the same on every processor, from numpy's PCG64.

torch.randn draws other numbers with AVX2 than with AVX-512, so an example that holds on one machine may be another
example on the next.
"""

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Tensors drawn one after another from a seed, in float64, and rounded to the type that is asked for."""

    def __init__(self, seed: int):
        self.source = np.random.default_rng(seed)

    def normal(self, *shape: int, mean: float = 0.0, std: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Normal numbers."""
        return torch.tensor(self.source.normal(mean, std, shape), dtype=dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Numbers from low to high."""
        return torch.tensor(self.source.uniform(low, high, shape), dtype=dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from low up to high − 1."""
        return torch.tensor(self.source.integers(low, high, shape))

    def permutation(self, n: int) -> Tensor:
        """The numbers 0 to n − 1 in random order."""
        return torch.tensor(self.source.permutation(n))
