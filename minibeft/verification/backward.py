"""One backward pass through a model: ∂L at the output of each attention layer, and the norms before and after it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from minibeft.models.layers import RMSNorm
from minibeft.models.transformer import Attention, Transformer
from minibeft.theory.instance import Instance
from minibeft.theory.norms import Normed
from minibeft.verification.measure import draw
from minibeft.verification.probe import Batch, modules_of

Norm = nn.LayerNorm | RMSNorm


@dataclass
class Passed:
    """What the backward pass says of one attention layer.

    d_out    the gradient of L at the layer's output
    source   the norm whose output the layer reads; None where it reads something else
    readers  the norms through which the residual stream is read after the layer, each with ∂L at its output
    """

    d_out: Float[Tensor, "B T C"]
    source: Normed | None
    readers: list[tuple[Normed, Float[Tensor, "B T C"]]] = field(default_factory=list)


def backward(model: Transformer, batch: Batch, generator: Generator) -> list[Passed]:
    """Every attention layer, first layer first, for a random linear loss on the hidden states of real tokens."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        calls.append((module, given[0], out))

    inside = {part for module in modules_of(model) for part in module.children()}  # QK-norms
    kept = [module for module in model.modules() if isinstance(module, Norm | Attention) and module not in inside]
    hooks = [module.register_forward_hook(keep) for module in kept]
    hidden = model(**batch).hidden
    for hook in hooks:
        hook.remove()
    weight = draw(hidden, 1.0, generator) * batch["attention_mask"][..., None]
    slopes = torch.autograd.grad((hidden * weight).sum(), [out for *_, out in calls], allow_unused=True)
    layers = [at for at, (module, _, _) in enumerate(calls) if isinstance(module, Attention)]
    return [passed(calls, slopes, at, model.config.residual == "post") for at in layers]


def passed(
    calls: list[tuple[nn.Module, Tensor, Tensor]], slopes: tuple[Tensor | None, ...], at: int, post: bool
) -> Passed:
    """What the backward pass says of the layer called at this place.

    Where a norm follows each addition ("post"), only the first norm after the layer reads the stream that it adds to;
    otherwise all later norms do.
    """
    _, read, _ = calls[at]
    source = [norm_of(*call[:2]) for call in calls[:at] if call[2] is read and isinstance(call[0], Norm)]
    behind = zip(calls[at + 1 :], slopes[at + 1 :], strict=True)
    readers = [
        (norm_of(module, x), slope)
        for (module, x, _), slope in behind
        if isinstance(module, Norm) and slope is not None
    ]
    d_out = slopes[at]
    assert d_out is not None
    return Passed(d_out, source[-1] if source else None, readers[:1] if post else readers)


def at_heads(layer: Instance, d_out: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T D"]:
    """∂L/∂O of each head, from ∂L at the layer's output; zero in rows that see no key."""
    assert layer.w_o is not None
    d_o = (d_out @ layer.w_o).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    return d_o * layer.sees.unsqueeze(-1)


def norm_of(module: nn.Module, x: Tensor) -> Normed:
    """A norm with what it was given."""
    if isinstance(module, RMSNorm):
        return Normed(x.detach(), module.gain.detach(), None, module.eps)
    assert isinstance(module, nn.LayerNorm)
    return Normed(x.detach(), module.weight.detach(), module.bias.detach(), module.eps)
