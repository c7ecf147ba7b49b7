"""K1 and V2 on a whole model: what redrawing a bias in every layer, or folding b_v, does to the last hidden states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from minibeft.models.transformer import Transformer
from minibeft.theory.agreement import explained
from minibeft.verification import measure
from minibeft.verification.findings import Check
from minibeft.verification.layerwise import MAGNITUDES
from minibeft.verification.measure import Measurement
from minibeft.verification.probe import Batch, live_part, modules_of, null_part, where


@contextmanager
def exchanged(model: Transformer, bias: str, values: list[Tensor | None]) -> Iterator[None]:
    """The model with one bias of every attention layer exchanged."""
    linears = [getattr(module, bias) for module in modules_of(model)]
    before = [linear.bias for linear in linears]
    try:
        for linear, value in zip(linears, values, strict=True):
            linear.bias = None if value is None else nn.Parameter(value, requires_grad=False)
        yield
    finally:
        for linear, value in zip(linears, before, strict=True):
            linear.bias = value


def effects(model: Transformer, batch: Batch, seed: int) -> dict[str, float]:
    """How far the last hidden states of real tokens move when one bias is redrawn in every layer, or b_v folded."""
    real = batch["attention_mask"].bool()
    linears = {name: [getattr(module, name) for module in modules_of(model)] for name in "qkv"}

    def hidden() -> Tensor:
        with torch.no_grad():
            return model(**batch).hidden[real]

    def redraw(name: str, parts: Mapping[int, range], magnitude: float) -> list[Tensor | None]:
        generator = Generator().manual_seed(seed)
        drawn: list[Tensor | None] = []
        for i, linear in enumerate(linears[name]):
            bias = (
                linear.weight.new_zeros(linear.weight.shape[0]) if linear.bias is None else linear.bias.detach().clone()
            )
            bias = bias.view(-1, model.config.head_size)
            if i in parts:
                entries = slice(parts[i].start, parts[i].stop)
                bias[:, entries] = measure.draw(bias[:, entries], magnitude, generator)
            drawn.append(bias.flatten() if i in parts else linear.bias)
        return drawn

    base, every = hidden(), {i: range(spec.head_size) for i, spec in enumerate(model.config.attention)}
    found = {"size": base.abs().max().item()}
    for key, parts in parts_of(model).items():
        for magnitude in MAGNITUDES if parts else ():
            with exchanged(model, "k", redraw("k", parts, magnitude)):
                found[f"k {key} {magnitude:g}"] = (hidden() - base).abs().max().item()
    for name in "qv":
        with exchanged(model, name, redraw(name, every, 1.0)):
            found[name] = (hidden() - base).abs().max().item()
    with folded(model):
        found["fold"] = (hidden() - base).abs().max().item()
    return found


def parts_of(model: Transformer) -> dict[str, dict[int, range]]:
    """The entries of b_k with an effect ("live") and those without ("null"), for the layers that have such entries."""
    found = {"live": live_part, "null": null_part}
    layers = list(enumerate(model.config.attention))
    return {key: {i: part for i, spec in layers if (part := find(spec)) is not None} for key, find in found.items()}


@contextmanager
def folded(model: Transformer) -> Iterator[None]:
    """The model with b_v moved into b_o (V2), repeated over its group under GQA; unchanged where there is no b_v."""
    biases: list[Tensor | None] = []
    with torch.no_grad():
        for module in modules_of(model):
            b_v = module.v.bias
            if b_v is None:
                biases.append(module.o.bias)
                continue
            wide = b_v.view(module.kv_heads, -1).repeat_interleave(module.heads // module.kv_heads, 0).flatten()
            moved = module.o.weight @ wide
            biases.append(moved if module.o.bias is None else module.o.bias + moved)
    with exchanged(model, "v", [None] * len(biases)), exchanged(model, "o", biases):
        yield


def whole_model(model: Transformer, single: dict[str, float], double: dict[str, float]) -> Iterator[Check]:
    """K1 and V2 on the last hidden states. Rounding shrinks with the unit roundoff, an effect does not: the float64
    effect may be at most what the float32 effect explains (agreement.py)."""
    specs, parts = dict(enumerate(model.config.attention)), parts_of(model)
    scale = f"b_q redrawn, σ = 1, changes them by {double['q']:.2g}, b_v by {double['v']:.2g}"
    for key, value in double.items():
        name, *rest = key.split()
        if name not in ("k", "fold"):
            continue
        allowed = explained(single[key], double["size"], torch.float64, sampled_in=torch.float32, roundings=2)
        measured = (Measurement(-1, value, allowed, value),)
        if name == "fold" and "v" in model.config.biases:
            yield Check("V2", "b_v folded into b_o: change of the last hidden states", measured)
        elif name == "k":
            part = where(specs, parts[rest[0]])
            what = f"every b_k redrawn, σ = {rest[1]}{part}: change of the last hidden states"
            yield Check("K1", what, measured, rest[0] == "null", scale)
            scale = ""
