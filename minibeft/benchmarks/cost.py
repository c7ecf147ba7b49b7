"""The matrix products that a step cannot do without, to hold measured times against the measured speed of a product."""

from collections.abc import Sequence

from minibeft.models.config import ModelConfig


def forward_operations(c: ModelConfig, lengths: Sequence[int]) -> int:
    """Operations of the logits of sequences so long."""
    tokens, pairs, sequences = sum(lengths), sum(n * n for n in lengths), len(lengths)
    square, mlp = c.width * c.heads * c.head_size, (3 if c.gated else 2) * c.width * c.inner
    whole = tokens * (4 * square + mlp) + 2 * c.width * pairs  # Q Kᵀ and P V
    last = tokens * 2 * square + sequences * (2 * square + mlp) + 2 * c.width * tokens
    return 2 * ((c.layers - 1) * whole + last + sequences * (c.width**2 + c.width * c.labels))


def least_operations(c: ModelConfig, lengths: Sequence[int], lowest: int = 0) -> int:
    """Operations (two a multiply-add) of one bias-only update of b_v from layer `lowest` up, on sequences so long.

    No padding, no gradient of a weight, nothing but the first token behind the last layer's keys and values, no
    gradient below the lowest bias. Norms, activations and dropout are not counted.
    """
    tokens, pairs, sequences = sum(lengths), sum(n * n for n in lengths), len(lengths)
    square, mlp = c.width * c.heads * c.head_size, (3 if c.gated else 2) * c.width * c.inner
    attention = 2 * c.width * pairs  # Q Kᵀ and P V
    whole = tokens * (4 * square + mlp) + attention
    last = tokens * 2 * square + sequences * (2 * square + mlp) + 2 * c.width * tokens
    head = sequences * (c.width**2 + c.width * c.labels)
    above = c.layers - 1 - lowest  # whole layers that a gradient passes, were the lowest one whole
    backward = above * (whole + attention) + last + 2 * c.width * tokens + head
    # The lowest layer's projections of Q, K and V pass nothing on; of its attention only d_V is needed.
    top = lowest == c.layers - 1
    backward -= (2 * tokens + sequences if top else 3 * tokens) * square + 3 * (c.width * (tokens if top else pairs))
    return forward_operations(c, lengths) + 2 * backward
