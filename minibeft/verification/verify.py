"""The theorems measured on a checkpoint, layer by layer: what must hold, does it; what must fail, how much."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from minibeft.bounds import unit_roundoff
from minibeft.certificate.certify import certify
from minibeft.checkpoint import load_model
from minibeft.config import Task
from minibeft.layers import Rotary
from minibeft.model import Transformer
from minibeft.tokenizer import encode, has_tokenizer, load_tokenizer
from minibeft.verification import measure
from minibeft.verification.measure import Measurement
from minibeft.verification.probe import Batch, Layer, modules_of, probe
from minibeft.verification.sentences import SENTENCES

MAGNITUDES = (0.1, 1.0, 10.0)  # standard deviations that b_k is redrawn with; real b_q reach about 1
FLOAT64_FACTOR = 8.0  # two runs in each type, each up to twice its typical error, measured once
STEPS = 7  # how often verify reports progress


@dataclass(frozen=True)
class Check:
    """One statement measured in every layer (or once, on the whole model: layer −1)."""

    theorem: str
    what: str
    measurements: tuple[Measurement, ...]
    must_hold: bool = True
    note: str = ""

    @property
    def worst(self) -> Measurement:
        return max(self.measurements, key=lambda m: m.ratio)

    @property
    def verdict(self) -> str:
        """ "holds", "VIOLATED", or where the theory says that the statement stops: "fails, as it must"."""
        holds = self.worst.value <= self.worst.allowed
        if self.must_hold:
            return "holds" if holds else "VIOLATED"
        return "not seen to fail" if holds else "fails, as it must"


@dataclass
class Report:
    """Everything that verify found. `norms` has a row per layer: ‖b_q‖, ‖b_k‖, ‖b_v‖, None where the bias is absent."""

    model: str
    family: str
    settings: dict[str, Any]
    reason: str
    norms: list[dict[str, float | None]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.verdict != "VIOLATED" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        checks = [asdict(check) | {"verdict": check.verdict} for check in self.checks]
        return {**asdict(self), "checks": checks, "ok": self.ok}


def verify(
    name: str | Path, *, task: Task | None = None, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Measure K1, K2, V1 to V3 and Q2 to Q4 on a checkpoint; `progress` is told each step's name."""
    progress("loading in float32")
    model = load_model(name, task=task, dtype=torch.float32)
    batch = batch_of(model, name, seed)
    layers = probe(model, batch)
    report = Report(str(name), model.config.family, settings(model, batch, seed), reason(model))
    report.norms = [norms(layer) for layer in layers]
    progress("keys and values, layer by layer in float32")
    report.checks += keys(model, layers, Generator().manual_seed(seed))
    report.checks += values(layers, Generator().manual_seed(seed))
    progress("the whole model in float32")
    single = effects(model, batch, seed)
    del model, layers
    gc.collect()
    progress("loading in float64")
    model = load_model(name, task=task, dtype=torch.float64)
    layers = probe(model, batch)
    progress("queries, layer by layer in float64")
    report.checks += queries(layers, Generator().manual_seed(seed))
    progress("gradients in float64")
    report.checks += gradients(model, batch, layers, Generator().manual_seed(seed))
    progress("the whole model in float64")
    report.checks += whole_model(model, single, effects(model, batch, seed))
    report.checks.sort(key=lambda check: check.theorem)
    return report


def batch_of(model: Transformer, name: str | Path, seed: int) -> dict[str, Tensor]:
    """The built-in sentences, padded to one length; random tokens where the folder has no tokenizer."""
    if has_tokenizer(name):
        return encode(load_tokenizer(name), SENTENCES, pad=model.config.pad)
    ids = torch.randint(model.config.vocab, (4, 16), generator=Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def settings(model: Transformer, batch: Batch, seed: int) -> dict[str, Any]:
    """What the numbers depend on besides the checkpoint."""
    b, t = batch["input_ids"].shape
    biases = sorted(model.config.biases & {"q", "k", "v"})
    return {"seed": seed, "rows": b, "tokens": t, "torch": torch.__version__, "biases": biases}


def turned(model: Transformer) -> tuple[slice | None, slice | None]:
    """The entries of each head that rotary positions turn, and those they leave alone."""
    positions, size = model.config.positions, model.config.head_size
    if not isinstance(positions, Rotary):
        return None, slice(0, size)
    return slice(0, positions.dims), slice(positions.dims, size) if positions.dims < size else None


def where(model: Transformer, part: slice | None) -> str:
    """Which entries of a head a check is about; nothing where it is about all of them."""
    if part is None or part == slice(0, model.config.head_size):
        return ""
    return f", entries {part.start}–{part.stop - 1} of each head"


def reason(model: Transformer) -> str:
    """Why K1 holds here or does not, as certify reads it off the configuration."""
    verdict = certify(model.config.source).verdict("k")
    if verdict.status == "null":
        return f"K1 holds: {verdict.reason}."
    if verdict.status == "unknown":
        return f"certify does not understand this configuration: {verdict.reason}."
    parts = "; ".join(f"{part.status} on entries {part.first}–{part.last} of each head" for part in verdict.dims)
    because = f"K1 does not hold (hypothesis {', '.join(map(repr, verdict.broken))}): {verdict.reason}"
    return f"{because}. b_k is {parts}." if parts else f"{because}."


def norms(layer: Layer) -> dict[str, float | None]:
    """‖b_q‖, ‖b_k‖ and ‖b_v‖ of one layer."""
    return {n: None if n in layer.absent else layer.arguments[f"b_{n}"].norm().item() for n in "qkv"}


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

    def redraw(name: str, part: slice, magnitude: float) -> list[Tensor | None]:
        generator = Generator().manual_seed(seed)
        drawn: list[Tensor | None] = []
        for linear in linears[name]:
            bias = linear.weight.new_zeros(linear.weight.shape[0]).view(-1, model.config.head_size)
            bias[:, part] = measure.draw(bias[:, part], magnitude, generator)
            drawn.append(bias.flatten())
        return drawn

    base = hidden()
    found = {"size": base.abs().max().item()}
    live, null = turned(model)
    for part, key in ((live, "live"), (null, "null")):
        if part is not None:
            for magnitude in MAGNITUDES:
                with exchanged(model, "k", redraw("k", part, magnitude)):
                    found[f"k {key} {magnitude:g}"] = (hidden() - base).abs().max().item()
    for name in "qv":
        with exchanged(model, name, redraw(name, slice(None), 1.0)):
            found[name] = (hidden() - base).abs().max().item()
    with folded(model):
        found["fold"] = (hidden() - base).abs().max().item()
    return found


@contextmanager
def folded(model: Transformer) -> Iterator[None]:
    """The model with b_v moved into b_o (V2); under GQA b_v is repeated over its group. Without b_v a random one is."""
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
    effect may be at most the float32 effect times u64/u32, and a factor for the chance in both."""
    live, null = turned(model)
    shrink = FLOAT64_FACTOR * unit_roundoff(torch.float64) / unit_roundoff(torch.float32)
    floor = 2 * unit_roundoff(torch.float64) * double["size"]
    scale = f"b_q redrawn, σ = 1, changes them by {double['q']:.2g}, b_v by {double['v']:.2g}"
    for key, value in double.items():
        name, *rest = key.split()
        if name not in ("k", "fold"):
            continue
        measured = (Measurement(-1, value, shrink * single[key] + floor, value),)
        if name == "fold" and "v" in model.config.biases:
            yield Check("V2", "b_v folded into b_o: change of the last hidden states", measured)
        elif name == "k":
            part = where(model, live if rest[0] == "live" else null)
            what = f"every b_k redrawn, σ = {rest[1]}{part}: change of the last hidden states"
            yield Check("K1", what, measured, rest[0] == "null", scale)
            scale = ""
