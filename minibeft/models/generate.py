"""Greedy continuation, the plainest way to see that a decoder was loaded right."""

import torch
from jaxtyping import Int
from torch import Tensor

from minibeft.models.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer, ids: Int[Tensor, "B T"], *, tokens: int, stop: int | None = None
) -> Int[Tensor, "B total"]:
    """`ids` continued by up to `tokens` most likely next tokens; ends early once every row has produced `stop`.

    Every step runs the whole sequence again: quadratic, and simple enough to trust.
    """
    start = ids.shape[1]
    for _ in range(tokens):
        logits = model(ids).logits
        if logits is None or logits.ndim != 3:
            raise ValueError(f"generate needs a model with an LM head; this one was loaded for {model.config.task}")
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
        if stop is not None and bool((ids[:, start:] == stop).any(1).all()):
            break
    return ids
