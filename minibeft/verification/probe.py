"""What each attention layer of a model sees on given inputs: the place where the theorems are measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minibeft.models.transformer import Attention, Transformer
from minibeft.theory.instance import Instance
from minibeft.theory.mechanisms import null_dims
from minibeft.theory.variants import AttentionSpec

Batch = Mapping[str, Tensor]


def modules_of(model: Transformer) -> list[Attention]:
    """The model's attention modules, first layer first."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextmanager
def recorded_inputs(model: Transformer) -> Iterator[list[tuple[Attention, tuple[Any, ...]]]]:
    """Each attention module with the arguments of its forward pass, in order."""
    seen: list[tuple[Attention, tuple[Any, ...]]] = []

    def keep(module: Attention, _: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((module, args))

    hooks = [m.register_forward_pre_hook(partial(keep, m)) for m in modules_of(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def probe(model: Transformer, batch: Batch) -> list[Instance]:
    """Run the model once and return every attention layer with what it saw, first layer first.

    layers = probe(model, batch); layers[0].weights() is P of the first layer, layers[0].weights(b_q=None) without b_q.
    """
    with torch.no_grad(), recorded_inputs(model) as seen:
        model(**batch)
    layers = []
    for module, (x, mask, rotate) in seen:
        given: dict[str, Any] = {n: t.detach() if isinstance(t, Tensor) else t for n, t in module.arguments().items()}
        layers.append(Instance(x, mask=mask, rotate=rotate, **given))
    return layers


def null_part(spec: AttentionSpec) -> range | None:
    """The entries of each head on which b_k does nothing."""
    return null_dims(spec) or None


def live_part(spec: AttentionSpec) -> range | None:
    """The other entries: those that rotary positions turn, or all where a norm or a cap follows."""
    return range(spec.head_size - len(null_dims(spec))) or None


def where(specs: Mapping[int, AttentionSpec], parts: Mapping[int, range]) -> str:
    """Which layers and entries of a head a check is about; nothing where it is about all of them."""
    part, spec = next((part, specs[i]) for i, part in parts.items())
    layers = "" if len(parts) == len(specs) else f", layers {', '.join(map(str, parts))}"
    whole = part == range(spec.head_size)
    return layers + ("" if whole else f", entries {part.start}–{part.stop - 1} of each head")
