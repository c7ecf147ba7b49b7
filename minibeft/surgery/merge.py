"""A bias adapter written into a checkpoint, and taken out again to the original bits.

In float32 b + Δ rounds; in bfloat16 or float16 a small Δ may vanish: merge counts the entries where it does. With a
residual, what rounding lost is kept in float32 beside the weights and load_model adds it back: such a bias is then held
in float32 and added after the product, as PEFT adds an adapter. merge keeps what it replaces in the subfolder merge/,
where loaders that read every safetensors file of a folder do not look; so unmerge restores every bit.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from minibeft.certificate.certify import certify
from minibeft.checkpoints.adapters import Adapter, changed, is_linear, load_adapter, load_base, names_for
from minibeft.checkpoints.convert import plainly
from minibeft.checkpoints.find import find
from minibeft.checkpoints.layouts import together, whole_name, with_siblings
from minibeft.checkpoints.rewrite import BEFORE, MERGED, RESIDUAL, Edit, rewrite_folder
from minibeft.checkpoints.save import label_keys
from minibeft.checkpoints.tensors import read_all, read_json
from minibeft.errors import BadInput
from minibeft.models.config import ModelConfig
from minibeft.show.files import new_folder
from minibeft.surgery.equivalence import Agreement
from minibeft.surgery.source import Source, fold, shapes, write_verified

RECORD = f"{MERGED}/merge.json"


@dataclass(frozen=True)
class Merged:
    """What was done to the biases.

    entries  how many the adapter changes (b + Δ ≠ b)
    lost     those whose value in the file is what it was before: rounding took all of Δ
    rounded  those whose value in the file is not exactly b + Δ
    added    tensors that the checkpoint did not have
    """

    entries: int
    lost: int
    rounded: int
    added: int
    residual: bool
    agreement: Agreement

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def merge(
    adapter: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    into_output: bool = False,
    residual: bool = False,
    text: Path | None = None,
) -> Merged:
    """Write the checkpoint `model` with the adapter merged to the folder `out`; neither input is changed.

    into_output  fold the change of b_v into the bias after W_o (V2) instead of adding it to b_v
    residual     keep what rounding loses
    BadInput, and nothing written, where the format has no place for a bias or the result does not compute the same.
    """
    with new_folder(Path(out)) as ready, plainly(find(model)) as folder:
        return write_merged(adapter, folder, ready, into_output, residual, text)


def write_merged(
    adapter: str | Path, folder: Path, ready: Path, into_output: bool, residual: bool, text: Path | None
) -> Merged:
    """The same into a folder that is there."""
    loaded = load_adapter(adapter)
    intended = load_base(folder, loaded)
    source = Source.open(folder, intended.config.task)
    exact = {name: value.double() for name, value in changed(intended, loaded).items()}
    for name, value in exact.items():
        module, _, leaf = name.rpartition(".")
        setattr(intended.get_submodule(module), leaf, nn.Parameter(value))
    if into_output:
        exact = fold_values(source, exact)
    config, keys = with_place(source, exact, adapter)
    values = rounded(source, exact, config)
    edit = make_edit(source, values, keys | head_keys(source, exact, loaded))
    extras = record(source, values, edit)
    if residual:
        rest = {name: (value - values[name].double()).float() for name, value in exact.items() if is_linear(name)}
        extras[RESIDUAL] = save({new_name(source, name): value for name, value in rest.items()})
    agreement = write_verified(source, ready, edit, intended, exact, text=text, extras=extras)
    return Merged(*count(source, exact, values), residual, agreement)


def fold_values(source: Source, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same changes with that of every b_v moved into the bias that its layer's output gets after W_o.

    That is b_o; or, where the format has none and attention and MLP stand side by side (GPT-J), the bias of the MLP's
    last map, because x + (W_o O + b_o) + (W y + b) does not tell b_o from b.
    """
    verdict = certify(source.folder).verdict("v")
    if verdict.status != "foldable":
        broken = ", ".join(verdict.broken)
        raise BadInput(f"{source.folder}: b_v cannot be folded ({verdict.theorem}: {broken}: {verdict.reason})")
    able, _ = source.switched(on=True)
    beside = able.residual == "parallel" and "mlp" in able.biases
    if "o" not in able.biases and not beside:
        raise BadInput(f"{source.folder}: b_v cannot be folded, {able.family}'s format has no bias after W_o")
    host = "attention.o" if "o" in able.biases else "mlp.down"
    values = dict(exact)
    for i in range(able.layers):
        b_v = f"blocks.{i}.attention.v.bias"
        if b_v in values:
            b_o, w_o = f"blocks.{i}.{host}.bias", source[f"blocks.{i}.attention.o.weight"]
            shift = values.pop(b_v)
            shift = shift - zero_or(source.get(b_v), shift).double()
            start = values.get(b_o, zero_or(source.get(b_o), w_o[:, 0]))
            values[b_o] = fold(start, w_o, shift, source.config)
    return values


def zero_or(value: Tensor | None, like: Tensor) -> Tensor:
    """The tensor, or zeros where there is none."""
    return torch.zeros_like(like) if value is None else value


def with_place(source: Source, exact: Mapping[str, Tensor], adapter: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The configuration whose format has a tensor for every change, and the keys of config.json that make it so."""
    attention, mlp = (source.switched(on=True, mlp=mlp)[1] for mlp in (False, True))
    config, keys = source.config, dict[str, bool]()
    for config, keys in map(source.with_keys, ({}, attention, mlp, attention | mlp)):
        if exact.keys() <= shapes(config).keys():
            return config, keys
    homeless = sorted(source.name(name) for name in exact.keys() - shapes(config).keys())
    folding = any("attention.v." in name for name in exact) and config.residual == "parallel"
    raise BadInput(
        f"{source.folder}: the format of {config.family} has no place for {homeless[0]}; load the adapter beside "
        f"the model instead: PeftModel.from_pretrained(model, {str(adapter)!r}), or load_adapted here"
        + "; a change of b_v can be folded (--fold)"
        * folding
    )


def rounded(source: Source, exact: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """By our names, every tensor that is to be written, in the type that it has in the file: the changes, and zeros for
    the other biases that the format now has. BadInput when the model would lack a tensor."""
    had, values = shapes(source.config), {}
    beside_changes = with_siblings(exact, source.config)
    for name, shape in shapes(config).items():
        old = source.get(name)
        if name in exact:
            beside = source.get(f"{name.rpartition('.')[0]}.weight") if old is None else old
            values[name] = exact[name].to((source["blocks.0.attention.o.weight"] if beside is None else beside).dtype)
        elif name not in had:
            values[name] = torch.zeros(shape, dtype=source[f"{name.rpartition('.')[0]}.weight"].dtype)
        elif name in beside_changes:
            values[name] = source[name]
        elif old is None and name.startswith("head."):
            raise BadInput(f"{source.folder}: has no {source.name(name)}, and the adapter does not bring it")
    return values


def new_prefix(source: Source) -> str:
    """What the backbone's names gain: a model with a head has its family's prefix, one without may lack it."""
    return "" if source.prefix or source.config.task == "hidden" else source.body.prefix


def new_name(source: Source, ours: str) -> str:
    """A tensor's name in the merged checkpoint."""
    return source.body.their_name(ours, source.config.task, source.prefix + new_prefix(source))


def make_edit(source: Source, values: Mapping[str, Tensor], keys: dict[str, Any]) -> Edit:
    """The edit of the files."""
    prefix = new_prefix(source)
    heads = {source.name(name) for name in shapes(source.config) if source.name(name) == new_name(source, name)}
    return Edit(
        tensors={new_name(source, name): value for name, value in values.items()},
        beside={new_name(source, n): new_name(source, f"{n.rpartition('.')[0]}.weight") for n in values},
        config=keys,
        rename=lambda name: name if name in heads else prefix + name,
    )


def head_keys(source: Source, exact: Mapping[str, Tensor], loaded: Adapter) -> dict[str, Any]:
    """config.json's keys for the head that the adapter brings, if it brings one."""
    classes = {task: name for name, task in source.body.architectures.items()}
    if not any(name.startswith("head.") for name in exact):
        return {}
    keys: dict[str, Any] = {"architectures": [classes[source.config.task]]}
    labels = len(exact["head.out.weight"]) if "head.out.weight" in exact else source.config.labels
    if labels != source.config.labels or loaded.labels:
        keys |= {"num_labels": None} | label_keys(names_for(loaded, labels))
    return keys


def record(source: Source, values: Mapping[str, Tensor], edit: Edit) -> dict[str, bytes]:
    """What unmerge needs: the tensors and config.json as they were, and what had not been there."""
    before = {source.name(name): source.get(name) for name in values}
    notes = {
        "added": sorted({whole_name(name, source.body) for name, value in before.items() if value is None}),
        "prefix": new_prefix(source),
        "config": (source.folder / "config.json").read_text(encoding="utf-8"),
    }
    kept = {name: value for name, value in before.items() if value is not None}
    old = {name: value.contiguous() for name, value in together(kept, source.config).items()}
    return {RECORD: json.dumps(notes, indent=2, ensure_ascii=False).encode(), BEFORE: save(old)}


def count(source: Source, exact: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """entries, lost, rounded and added of Merged."""
    entries = lost = inexact = 0
    for name in filter(is_linear, exact):
        old, wanted, found = zero_or(source.get(name), exact[name]).double(), exact[name], values[name].double()
        moved = wanted != old
        entries += int(moved.sum())
        lost += int((moved & (found == old)).sum())
        inexact += int((moved & (found != wanted)).sum())
    return entries, lost, inexact, sum(source.get(name) is None for name in values)


def unmerge(model: str | Path, out: str | Path) -> None:
    """Write the checkpoint as it was before the merge to the folder `out`: every tensor and config.json to the bit."""
    folder = find(model)
    if not (folder / RECORD).is_file():
        raise BadInput(f"{folder / RECORD}: missing; only a folder that minibeft merged can be unmerged")
    notes = read_json(folder / RECORD)
    edit = Edit(read_all(folder / BEFORE), set(notes["added"]), rename=lambda name: name.removeprefix(notes["prefix"]))
    with new_folder(Path(out)) as ready:
        rewrite_folder(folder, ready, edit)
        (ready / "config.json").write_text(notes["config"], encoding="utf-8")
