"""The statements about one attention layer, measured in every layer of a model on the inputs that it got."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from minibeft.models.transformer import Transformer
from minibeft.theory import statements
from minibeft.theory.bounds import gamma
from minibeft.theory.instance import Instance
from minibeft.theory.mechanisms import broken
from minibeft.theory.statements import Gap
from minibeft.verification.findings import Check
from minibeft.verification.measure import draw, worst
from minibeft.verification.probe import Batch, live_part, modules_of, null_part, where

MAGNITUDES = (0.1, 1.0, 10.0)  # standard deviations that b_k is redrawn with; real b_q reach about 1
DIRECTIONS = 16  # in which the hull of the values is tried
T = TypeVar("T")


def check(
    theorem: str, what: str, layers: Mapping[int, Instance], measure: Callable[[Instance], Gap], **more: Any
) -> Check:
    """One statement in each of these layers."""
    return Check(theorem, what, tuple(worst(i, measure(layer)) for i, layer in layers.items()), **more)


def groups(values: Iterable[T | None]) -> dict[T, list[int]]:
    """The layers that share a value, None left out."""
    found: dict[T, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            found.setdefault(value, []).append(i)
    return found


def keys(model: Transformer, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """Redraw b_k at several magnitudes, where it must do nothing and where it must not."""
    specs = dict(enumerate(model.config.attention))

    def effect(layer: Instance, part: range, magnitude: float) -> Gap:
        assert layer.b_k is not None
        b_k = torch.zeros_like(layer.b_k).view(layer.kv_heads, -1)
        entries = slice(part.start, part.stop)
        b_k[:, entries] = draw(b_k[:, entries], magnitude, generator)
        return statements.key_effect(replace(layer, b_k=b_k.flatten()))

    for find, must_hold in ((null_part, True), (live_part, False)):
        for part, which in groups(map(find, specs.values())).items():
            for magnitude in MAGNITUDES:
                place = where(specs, dict.fromkeys(which, part))
                what = f"b_k redrawn, σ = {magnitude:g}{place}: change of the attention output"
                measure = lambda layer, p=part, m=magnitude: effect(layer, p, m)  # noqa: E731
                yield check("K1", what, {i: layers[i] for i in which}, measure, must_hold=must_hold)


def values(layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """The shift law at the attention output."""

    def shift(layer: Instance) -> Gap:
        assert layer.b_v is not None
        return statements.value_shift(replace(layer, b_v=draw(layer.b_v, 1.0, generator)))

    what = "b_v redrawn: the attention output shifts by b_v, but for"
    yield check("V1", what, dict(enumerate(layers)), shift)


def gradients(model: Transformer, batch: Batch, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """Of b_k against that of b_v, and of b_v without the attention's backward pass."""
    d_outs = output_gradients(model, batch, generator)
    d_os = []
    for layer, d_out in zip(layers, d_outs, strict=True):
        assert layer.w_o is not None
        d_o = (d_out @ layer.w_o).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        d_os.append(d_o * layer.sees.unsqueeze(-1))
    at = {id(layer): (d_out, d_o) for layer, d_out, d_o in zip(layers, d_outs, d_os, strict=True)}
    first = statements.bias_gradients(layers[0], d_os[0])
    scale = f"layer 0: ‖∂L/∂b_k‖ {first['b_k'].norm():.0e}, ‖∂L/∂b_v‖ {first['b_v'].norm():.0e}"
    every, specs = dict(enumerate(layers)), dict(enumerate(model.config.attention))
    measure = lambda layer: statements.key_gradient(layer, at[id(layer)][1])  # noqa: E731
    for find, must_hold in ((null_part, True), (live_part, False)):
        # where a part of each head turns, the gradient is zero on the rest alone
        whole = {i: heads for i, spec in specs.items() if find(spec) == (heads := range(spec.head_size))}
        if whole:
            what = f"∂L/∂b_k, of any loss{where(specs, whole)}"
            yield check("K2", what, {i: layers[i] for i in whole}, measure, must_hold=must_hold, note=scale)
    measure = lambda layer: statements.value_gradient(layer, at[id(layer)][1])  # noqa: E731
    yield check("V3", "∂L/∂b_v − Σ_i ∂L/∂O_i", every, measure)
    yield check("V3", "∂L/∂b_v − W_oᵀ ∂L/∂b_o", every, lambda layer: output_gradient(layer, at[id(layer)][0]))


def output_gradient(layer: Instance, d_out: Float[Tensor, "B T C"]) -> Gap:
    """V3, the other way: |Σ_i W_oᵀ ∂L/∂out_i − W_oᵀ ∂L/∂b_o|; both are sums of B·T·C products in another order."""
    w_o = layer.w_o
    assert w_o is not None
    one, other = (d_out @ w_o).sum((0, 1)), d_out.sum((0, 1)) @ w_o
    rows = d_out.shape[0] * d_out.shape[1]
    allowed = 2 * gamma(rows + w_o.shape[0], layer.arithmetic.u) * (d_out.abs() @ w_o.abs()).sum((0, 1))
    return Gap((one - other).abs(), allowed)


def output_gradients(model: Transformer, batch: Batch, generator: Generator) -> tuple[Float[Tensor, "B T C"], ...]:
    """∂L/∂out of every attention layer, for a random linear loss on the hidden states of real tokens."""
    outs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> None:
        outs.append(out)

    hooks = [module.register_forward_hook(keep) for module in modules_of(model)]
    hidden = model(**batch).hidden
    for hook in hooks:
        hook.remove()
    weight = draw(hidden, 1.0, generator) * batch["attention_mask"][..., None]
    return torch.autograd.grad((hidden * weight).sum(), outs)


def queries(model: Transformer, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """The hull, the bound, the price and the double differences, with the model's b_q and with a redrawn one."""
    choices = [("b_q redrawn, σ = 1", [replace(p, b_q=draw(p.b_q, 1.0, generator)) for p in layers])]  # type: ignore[arg-type]
    if "q" in model.config.biases:
        choices.insert(0, ("the model's b_q", layers))
    directions = draw(layers[0].w_q.new_zeros(model.config.head_size, DIRECTIONS), 1.0, generator)
    specs = dict(enumerate(model.config.attention))
    for name, chosen in choices:
        every = dict(enumerate(chosen))
        hull = lambda layer: statements.hull(layer, directions)  # noqa: E731
        yield check("Q2", f"{name}: reach of O beyond the convex hull of V", every, hull)
        what = f"{name}: total variation of P, against tanh(osc(β)/4)"
        yield check("Q3", what, every, statements.query_variation)
        what = f"{name}: the ‖b_q‖ that its effect needs"
        yield check("Q10", what, every, statements.query_price, note=price(chosen[0]))
        for must_hold, which in groups(not broken(spec, "q") for spec in specs.values()).items():
            place = where(specs, {i: range(specs[i].head_size) for i in which})
            what = f"{name}: change of double differences of log P{place}"
            yield check("Q4", what, {i: chosen[i] for i in which}, statements.blindness, must_hold=must_hold)


def price(layer: Instance) -> str:
    """Q10 in the median head: ‖b_q‖, what its effect needs, and what leaves 1 % to all keys but one in every row."""
    gap, enough = statements.query_price(layer), statements.enough(layer, 0.01)
    length, needed, enough = (x.median().item() for x in (gap.allowed, gap.value.amax((0, 2)), enough))
    return f"layer 0, median head: ‖b_q‖ {length:.3g}, needed {needed:.3g}, enough for 99 % on one key {enough:.3g}"
