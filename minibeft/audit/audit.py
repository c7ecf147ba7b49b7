"""Audit a model: every attention layer that transformers runs, by intervention; no table of families, no names.

Raises BadInput where transformers is missing, the model cannot be run, or nothing in it is attention.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from minibeft.audit.measure import Audit, Finding
from minibeft.audit.roles import Layer, Part, layers
from minibeft.audit.subject import Subject, loaded, quietly, small
from minibeft.certificate.model_files import load_config
from minibeft.checkpoints.find import find
from minibeft.errors import BadInput, needs
from minibeft.theory.draws import Draws

Begin = Callable[[str, int, int], None]


@dataclass
class LayerReport:
    """One attention layer.

    name    of its key projection's parameter
    found   "q", "k", "v" → what that bias can do
    biases  "q", "k", "v" → the bias parameters that it has, with how many entries are there, are zero, and their norm
    """

    name: str
    found: dict[str, Finding]
    biases: dict[str, dict[str, Any]]


@dataclass
class Report:
    """An audited model.

    kind    transformers' class of it
    config  its configuration, as it was run
    """

    model: str
    model_type: str
    random: bool
    layers: list[LayerReport]
    kind: Any
    config: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        plain = {key: value for key, value in vars(self).items() if key not in ("layers", "kind")}
        return {**plain, "class": self.kind.__name__, "layers": [asdict(layer) for layer in self.layers]}


def audit(model: str, *, random: bool = False, seed: int = 0, progress: Begin = lambda *_: None) -> Report:
    """The audit of a folder, a hub id or "minilm"; random: of config.json alone, made small and drawn from the seed."""
    with needs("transformers", "audit", "audit"):
        import transformers  # noqa: F401
    if random:
        raw = load_config(model).config
        return first(model, str(raw.get("model_type")), small(raw, seed, failed := []), failed, seed, progress, random)
    folder = find(model)
    kind = str(load_config(str(folder)).config.get("model_type"))
    return first(model, kind, loaded(folder, seed, failed := []), failed, seed, progress, random)


def audit_config(raw: dict[str, Any], seed: int = 0) -> Report:
    """The audit of a configuration's contents, made small and random."""
    return first("config", raw["model_type"], small(raw, seed, failed := []), failed, seed, lambda *_: None, True)


def first(
    name: str, kind: str, subjects: Iterator[Subject], failed: list[str], seed: int, progress: Begin, random: bool
) -> Report:
    """The report on the first subject in which attention is found."""
    subject, layers = audited(name, subjects, failed, seed, progress)
    config = json.loads(subject.model.config.to_json_string(use_diff=False))
    return Report(name, kind, random, [report for _, report in layers], type(subject.model), config)


def audited(
    name: str, subjects: Iterator[Subject], failed: list[str], seed: int, progress: Begin
) -> tuple[Subject, list[tuple[Audit, LayerReport]]]:
    """The first subject in which attention is found, and its layers."""
    for subject in built(subjects, failed):
        try:
            found = list(measured(subject, Draws(seed), progress))
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:160])
            continue
        if found:
            return subject, found
        failed.append("no softmax in it has queries and keys")
    raise BadInput(f"{name}: cannot be audited: {failed[-1] if failed else 'transformers has no model for it'}")


def built(subjects: Iterator[Subject], failed: list[str]) -> Iterator[Subject]:
    """The subjects, as far as transformers can build them.

    On a value of the wrong type its classes may raise any exception, which is then noted in `failed`.
    """
    try:
        yield from subjects
    except BadInput:
        raise
    except Exception as error:
        failed.append(f"{type(error).__name__}: {error}"[:160])


def measured(subject: Subject, draws: Draws, progress: Begin) -> Iterator[tuple[Audit, LayerReport]]:
    """The report on each attention layer of a model, with the Audit that measured it."""
    with quietly():
        cut = subject.cut(subject.given)
        found = list(layers(cut, subject.cut(subject.other), draws))
        plain = subject.run({})
        parameters = dict(subject.model.named_parameters())
        for number, layer in enumerate(found):
            progress(layer_name(layer), number, len(found))
            here = Audit(layer, plain, subject.run, draws)
            queries = here.queries()
            verdicts = {"q": queries, "k": here.keys(), "v": here.values()}
            parts = {"q": layer.queries, "k": layer.keys, "v": layer.values}
            biases = {letter: bias_numbers(part, parameters) for letter, part in parts.items()}
            yield here, LayerReport(layer_name(layer), verdicts, biases)


def layer_name(layer: Layer) -> str:
    """The key projection's name, without what says that it is a weight."""
    return re.sub(r"\.?(weight|in_proj_weight)$", "", layer.keys[-1].product.name[0])


def bias_numbers(parts: list[Part], parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The biases of these coordinates: their names, how many entries, which share of
    the tensors that is, how many are zero, and their norm."""
    names, values, whole = [], [], 0
    for part in parts:
        bias = parameters.get(part.product.bias or "")
        if bias is not None and bias.numel() == part.chosen.numel():
            names.append(part.product.bias)
            whole += bias.numel()
            values.append(bias.detach().flatten()[part.chosen])
    if not values:
        return {}
    every = torch.cat(values)
    share = len(every) / whole
    return {
        "names": names,
        "entries": len(every),
        "share": share,
        "zero": int((every == 0).sum()),
        "norm": every.norm().item(),
    }
