"""The projections that are measured and compiled ahead of time, each with its two numbers: operations and bytes."""

from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """One model's projection of one batch. dims: entries of a head that turn under rotary positions, 0 for none."""

    name: str
    batch: int
    tokens: int
    width: int
    heads: int
    kv_heads: int
    size: int
    dims: int = 0
    interleaved: bool = False

    @property
    def rows(self) -> int:
        """B·T."""
        return self.batch * self.tokens

    @property
    def columns(self) -> int:
        """Packed output columns, (H + 2G)·D."""
        return (self.heads + 2 * self.kv_heads) * self.size

    def forward_operations(self) -> int:
        """Floating-point operations of X Wᵀ; the backward's dX has as many."""
        return 2 * self.rows * self.width * self.columns

    def forward_bytes(self, dtype: torch.dtype) -> int:
        """X, W, biases and angles read once, Q, K and V written once."""
        numbers = self.rows * self.width + self.columns * self.width + self.columns + self.rows * self.columns
        return numbers * dtype.itemsize + self._angle_bytes()

    def backward_bytes(self, dtype: torch.dtype) -> int:
        """dQ, dK, dV, W and angles read once, dX and the bias gradients written once."""
        numbers = self.rows * self.columns + self.columns * self.width + self.rows * self.width + self.columns
        return numbers * dtype.itemsize + self._angle_bytes()

    def sum_bytes(self, dtype: torch.dtype) -> int:
        """dQ read once, db_q written once."""
        return (self.rows + 1) * self.heads * self.size * dtype.itemsize

    def _angle_bytes(self) -> int:
        return 4 * self.tokens * self.dims  # cosine and sine of dims/2 pairs, in float32


SHAPES = (
    Shape("BERT-base 16×128", 16, 128, 768, 12, 12, 64),
    Shape("BERT-large 16×128", 16, 128, 1024, 16, 16, 64),
    Shape("LLaMA-2-7B 1×2048, no rotary", 1, 2048, 4096, 32, 32, 128),
    Shape("LLaMA-2-7B 8×512, no rotary", 8, 512, 4096, 32, 32, 128),
    Shape("LLaMA-2-7B 1×2048", 1, 2048, 4096, 32, 32, 128, dims=128),
    Shape("LLaMA-2-7B 8×512", 8, 512, 4096, 32, 32, 128, dims=128),
    Shape("GPT-J 1×2048", 1, 2048, 4096, 16, 16, 256, dims=64, interleaved=True),
)

SMALL = (
    Shape("small", 2, 9, 33, 2, 1, 24),
    Shape("small rotary", 1, 17, 48, 2, 2, 16, dims=16),
    Shape("small interleaved", 2, 5, 32, 2, 2, 16, dims=8, interleaved=True),
)
"""For trying the benchmark itself, in the interpreter."""

TYPES = (torch.bfloat16, torch.float16)
