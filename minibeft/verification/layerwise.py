"""The statements about one attention layer, measured in every layer of a model on the inputs that it got."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from minibeft.models.transformer import Transformer
from minibeft.verification import measure
from minibeft.verification.findings import Check
from minibeft.verification.probe import Batch, Layer, modules_of, turned, where

MAGNITUDES = (0.1, 1.0, 10.0)  # standard deviations that b_k is redrawn with; real b_q reach about 1


def keys(model: Transformer, layers: list[Layer], generator: Generator) -> Iterator[Check]:
    """Redraw b_k at several magnitudes, where it must do nothing and where it must not."""
    live, null = turned(model)
    for part, must_hold in ((null, True), (live, False)):
        for magnitude in MAGNITUDES:
            if part is not None:
                found = tuple(measure.key_bias(layer, part, magnitude, generator) for layer in layers)
                what = f"b_k redrawn, σ = {magnitude:g}{where(model, part)}: change of the attention output"
                yield Check("K1", what, found, must_hold)


def values(layers: list[Layer], generator: Generator) -> Iterator[Check]:
    """The shift law at the attention output."""
    found = tuple(measure.value_shift(layer, 1.0, generator) for layer in layers)
    yield Check("V1", "b_v redrawn: the attention output shifts by b_v, but for", found)


def gradients(model: Transformer, batch: Batch, layers: list[Layer], generator: Generator) -> Iterator[Check]:
    """Of b_k against that of b_v, and of b_v without the attention's backward pass."""
    d_outs = output_gradients(model, batch, generator)
    keys_, values_, outputs = [], [], []
    scale = ""
    for layer, d_out in zip(layers, d_outs, strict=True):
        d_o = (d_out @ layer.arguments["w_o"]).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        d_o = d_o * layer.sees[:, None, :, None]
        found, norm_k, norm_v = measure.key_gradient(layer, d_o)
        keys_.append(found)
        values_.append(measure.value_gradient(layer, d_o))
        outputs.append(measure.output_gradient(layer, d_out))
        scale = scale or f"layer 0: ‖∂L/∂b_k‖ {norm_k:.0e}, ‖∂L/∂b_v‖ {norm_v:.0e}"
    live, null = turned(model)
    if live is None or null is None:
        yield Check("K2", "∂L/∂b_k, of any loss", tuple(keys_), live is None, scale)
    yield Check("V3", "∂L/∂b_v − Σ_i ∂L/∂O_i", tuple(values_))
    yield Check("V3", "∂L/∂b_v − W_oᵀ ∂L/∂b_o", tuple(outputs))


def output_gradients(model: Transformer, batch: Batch, generator: Generator) -> tuple[Float[Tensor, "B T C"], ...]:
    """∂L/∂out of every attention layer, for a random linear loss on the hidden states of real tokens."""
    outs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> None:
        outs.append(out)

    hooks = [module.register_forward_hook(keep) for module in modules_of(model)]
    hidden = model(**batch).hidden
    for hook in hooks:
        hook.remove()
    weight = measure.draw(hidden, 1.0, generator) * batch["attention_mask"][..., None]
    return torch.autograd.grad((hidden * weight).sum(), outs)


def queries(layers: list[Layer], generator: Generator) -> Iterator[Check]:
    """The hull, the bound and the double differences."""
    rotary = any(layer.rotary for layer in layers)
    drawn = [measure.draw(layer.arguments["b_q"], 1.0, generator) for layer in layers]
    choices = [("b_q redrawn, σ = 1", drawn)]
    if "q" not in layers[0].absent:
        choices.insert(0, ("the model's b_q", [layer.arguments["b_q"] for layer in layers]))
    for name, biases in choices:
        pairs = list(zip(layers, biases, strict=True))
        found = tuple(measure.hull(layer, b, generator) for layer, b in pairs)
        yield Check("Q2", f"{name}: reach of O beyond the convex hull of V", found)
        found = tuple(measure.query_total_variation(layer, b) for layer, b in pairs)
        yield Check("Q3", f"{name}: total variation of P, against tanh(osc(β)/4)", found)
        found = tuple(measure.query_double_difference(layer, b) for layer, b in pairs)
        yield Check("Q4", f"{name}: change of double differences of log P", found, not rotary)
