"""A checkpoint without the biases that do nothing: b_k set to zero (K1), b_v folded into b_o (V2), and then verified.

Each step needs its verdict from certify; where a hypothesis is broken the step is refused, with the hypothesis named,
but for the layers and the entries of each head where b_k is null all the same.
A format that has a bias at all wants its tensor (BERT, OPT, LLaMA with attention_bias), so b_k and b_v become zeros;
where a switch of config.json governs biases that are then all zero, they are dropped and the switch is turned off.
Nothing is written unless the old and the new model agree on sentences within rounding (equivalence.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minibeft.certificate.certify import Verdict, certify
from minibeft.checkpoints.convert import plainly
from minibeft.checkpoints.find import find
from minibeft.checkpoints.layouts import with_siblings
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.rewrite import Edit
from minibeft.errors import BadInput
from minibeft.show.files import new_folder, write_json
from minibeft.show.record import provenance
from minibeft.surgery.equivalence import Agreement
from minibeft.surgery.source import Source, fold, shapes, write_verified
from minibeft.theory.mechanisms import broken, null_dims
from minibeft.verification.probe import null_part, where

DONE = {
    "zero": "set to zero",
    "part": "set to zero in part",
    "fold": "folded into b_o",
    "refused": "stays",
    "nothing": "nothing to do",
}


@dataclass(frozen=True)
class Step:
    """What happens to one bias in every layer, and the theorem that allows or forbids it."""

    bias: str
    action: Literal["zero", "part", "fold", "refused", "nothing"]
    theorem: str
    reason: str

    def __str__(self) -> str:
        return f"b_{self.bias}: {DONE[self.action]} ({self.theorem}{': ' * bool(self.theorem)}{self.reason})"


@dataclass(frozen=True)
class Simplified:
    """What was done. Parameters and bytes are counted in the files; rounding is the largest |b_o' − fl(b_o')|."""

    steps: tuple[Step, ...]
    zeroed: int
    dropped: int
    bytes_removed: int
    rounding: float
    agreement: Agreement

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(folder: Path) -> tuple[Step, Step]:
    """What simplify does to b_k and b_v of this folder, without doing it."""
    certificate, source, unable = certify(folder), None, ""
    try:
        source = Source.open(folder)
    except BadInput as error:
        unable = f"cannot be verified, because minibeft cannot run this model: {error}"
    first, second = (step(certificate.verdict(bias), source, unable) for bias in "kv")
    return first, second


def step(verdict: Verdict, source: Source | None, unable: str) -> Step:
    """The step for b_k or b_v; `source` is None where the model cannot be run, and `unable` says why."""
    bias, theorem = verdict.bias, verdict.theorem
    if verdict.status == "unknown":
        return Step(bias, "refused", theorem, f"certify does not understand the configuration: {verdict.reason}")
    if not verdict.present:
        return Step(bias, "nothing", theorem, "the model has none")
    if source is not None and all(is_zero(source, i, bias) for i in range(source.config.layers)):
        return Step(bias, "nothing", theorem, "it is zero already")
    if verdict.broken:
        why = f"{', '.join(verdict.broken)}: {verdict.reason}"
        if bias == "k" and source is not None and (place := free_part(source, verdict.broken)):
            return Step(bias, "part", theorem, f"on {place}, where nothing turns k; elsewhere it stays, {why}")
        return Step(bias, "refused", theorem, why)
    if source is None:
        return Step(bias, "refused", theorem, unable)
    if bias == "v" and "o" not in source.config.biases:
        return Step(bias, "refused", theorem, "foldable, but this format has no bias after W_o that could hold W_o b_v")
    return Step(bias, "zero" if bias == "k" else "fold", theorem, verdict.reason)


def free_part(source: Source, hypotheses: Sequence[str]) -> str:
    """Where b_k is null, if not everywhere: layers without positions, or entries that rotary positions leave alone.

    Empty where it is null nowhere, where it is zero there already, or where the given hypotheses are not exactly those
    that the attention of the layers breaks.
    """
    specs = dict(enumerate(source.config.attention))
    if {each for spec in specs.values() for each in broken(spec, "k")} != set(hypotheses):
        return ""
    parts = {i: part for i, spec in specs.items() if (part := null_part(spec)) is not None}
    live = any(by_head(source, i)[:, part.start : part.stop].any() for i, part in parts.items())
    return where(specs, parts).removeprefix(", ") if live else ""


def by_head(source: Source, layer: int) -> Tensor:
    """One layer's b_k, (G, D)."""
    return source[f"blocks.{layer}.attention.k.bias"].view(source.config.kv_heads, -1)


def is_zero(source: Source, layer: int, module: str) -> bool:
    """Whether one layer's bias is zero."""
    return not source[f"blocks.{layer}.attention.{module}.bias"].any()


def simplify(model: str | Path, out: str | Path, *, text: Path | None = None) -> Simplified:
    """Write the simplified checkpoint to the folder `out`; the input is left as it is.

    text  sentences to verify on, one per line (default: sentences.py)
    BadInput, and nothing written, when no step is allowed or the two models do not agree.
    """
    folder = find(model)
    with new_folder(Path(out)) as ready, plainly(folder) as source:
        done = write_simplified(source, ready, text)
        (ready / "simplify").mkdir(exist_ok=True)
        write_json(ready / "simplify" / "simplify.json", provenance() | done.as_json())
        return done


def write_simplified(folder: Path, ready: Path, text: Path | None) -> Simplified:
    """The same into a folder that is there."""
    steps = plan(folder)
    actions = {step.bias: step.action for step in steps}
    nothing = f"{folder}: nothing to simplify, nothing was written; " + "; ".join(map(str, steps))
    if "refused" in actions.values() and not {"zero", "part", "fold"} & set(actions.values()):
        raise BadInput(nothing)
    source = Source.open(folder)
    exact = changes(source, actions)
    before = {name: source[name] for name in exact}
    edit = Edit({source.name(name): source[name] for name in with_siblings(exact, source.config)})
    edit.tensors |= {source.name(name): value.to(before[name].dtype) for name, value in exact.items()}
    gone = drop_zeros(source, edit)
    if not edit.tensors and not gone:
        raise BadInput(nothing)
    kept = {name: value for name, value in exact.items() if name not in gone}
    intended = load_model(folder, task=source.config.task)
    agreement = write_verified(source, ready, edit, intended, kept, text=text)
    rounding = [(value - edit.tensors[source.name(name)].double()).abs().max().item() for name, value in kept.items()]
    return Simplified(
        steps,
        sum(int(((value == 0) & (before[name] != 0)).sum()) for name, value in kept.items()),
        sum(source[name].numel() for name in gone),
        weight_bytes(folder) - weight_bytes(ready),
        max(rounding, default=0.0),
        agreement,
    )


def changes(source: Source, actions: dict[str, str]) -> dict[str, Tensor]:
    """By our names, the new values in float64."""
    values: dict[str, Tensor] = {}
    for i in range(source.config.layers):
        b_k, b_v, b_o = (f"blocks.{i}.attention.{module}.bias" for module in "kvo")
        if actions["k"] == "zero":
            values[b_k] = torch.zeros_like(source[b_k], dtype=torch.float64)
        if actions["k"] == "part":
            kept = by_head(source, i).double().clone()
            kept[:, list(null_dims(source.config.attention[i]))] = 0.0
            values[b_k] = kept.flatten()
        if actions["v"] == "fold":
            values[b_v] = torch.zeros_like(source[b_v], dtype=torch.float64)
            values[b_o] = fold(source[b_o], source[f"blocks.{i}.attention.o.weight"], source[b_v], source.config)
    return values


def drop_zeros(source: Source, edit: Edit) -> set[str]:
    """Where all the biases that a switch of config.json governs are zero after the edit: drop them, turn it off.

    Returns their names, ours.
    """
    without, switch = source.switched(on=False)
    governed = shapes(source.config).keys() - shapes(without).keys()
    names = {ours: source.name(ours) for ours in governed}
    if any(edit.tensors.get(theirs, source[ours]).any() for ours, theirs in names.items()):
        return set()
    edit.drop.update(names.values())
    edit.config.update(switch if governed else {})
    return governed


def weight_bytes(folder: Path) -> int:
    """The size of the folder's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
