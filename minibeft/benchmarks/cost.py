"""The matrix products that a step cannot do without, to compare its time with the measured speed of a product."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.models.config import ModelConfig
from minibeft.models.packed.frozen import frozen_linear

PRODUCT = "a matrix product"


def product(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A matrix product as training computes it."""
    return a @ b


@torch.inference_mode()
def evaluated_product(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A matrix product as evaluation computes it."""
    return frozen_linear(a, b, None)


class Products(NamedTuple):
    """Multiply-adds of a forward pass: of a whole layer, of its products Q Kᵀ and P V alone, of the last layer, which
    needs all tokens only for its keys and values, and of the head. square: of one map (C, C) on one token."""

    square: int
    attention: int
    whole: int
    last: int
    head: int


def products(c: ModelConfig, lengths: Sequence[int]) -> Products:
    """The multiply-adds for sequences of these lengths."""
    tokens, pairs, sequences = sum(lengths), sum(n * n for n in lengths), len(lengths)
    square, mlp = c.width * c.heads * c.head_size, (3 if c.gated else 2) * c.width * c.inner
    attention = 2 * c.width * pairs
    last = tokens * 2 * square + sequences * (2 * square + mlp) + 2 * c.width * tokens
    head = sequences * (c.width**2 + c.width * c.labels)
    return Products(square, attention, tokens * (4 * square + mlp) + attention, last, head)


def forward_operations(c: ModelConfig, lengths: Sequence[int]) -> int:
    """Operations (two per multiply-add) of the logits for sequences of these lengths."""
    one = products(c, lengths)
    return 2 * ((c.layers - 1) * one.whole + one.last + one.head)


def least_operations(c: ModelConfig, lengths: Sequence[int], lowest: int = 0) -> int:
    """Operations of one bias-only update of b_v from layer `lowest` up, on sequences of these lengths.

    No padding, no gradient of a weight, after the last layer's keys and values nothing but the first token, no
    gradient below the lowest bias. Norms, activations and dropout are not counted.
    """
    one, tokens, pairs = products(c, lengths), sum(lengths), sum(n * n for n in lengths)
    above = c.layers - 1 - lowest  # whole layers that a gradient passes, were the lowest one whole
    backward = above * (one.whole + one.attention) + one.last + 2 * c.width * tokens + one.head
    # The lowest layer's projections of Q, K and V pass nothing on; of its attention only d_V is needed.
    top = lowest == c.layers - 1
    backward -= (2 * tokens + len(lengths) if top else 3 * tokens) * one.square
    backward -= 3 * c.width * (tokens if top else pairs)
    return forward_operations(c, lengths) + 2 * backward
