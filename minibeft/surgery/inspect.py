"""Every bias of a checkpoint: where it is, how large, what it can do (certify), and what simplify would do with it.

Read from the files of any Hugging Face folder, tensor by tensor; the model need not be one that minibeft can run.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minibeft.certificate.certify import Certificate, certify
from minibeft.checkpoints.find import find
from minibeft.checkpoints.layouts import apart
from minibeft.checkpoints.tensors import Lazy, is_buffer, open_tensors, read_json
from minibeft.errors import BadInput
from minibeft.families import BODIES, read_config
from minibeft.models.biases import BIAS_TERMS
from minibeft.surgery.simplify import Step, plan


@dataclass(frozen=True)
class Biases:
    """The biases of one name in all layers.

    name        the name in the files, {i} for the layer
    term        q, k, v, m1, m2, m3, ln1 or ln2 where the family is known, else empty
    norms       ‖b‖₂, first layer first
    parameters  in all layers together
    share       of the checkpoint's parameters
    """

    name: str
    term: str
    shape: tuple[int, ...]
    norms: tuple[float, ...]
    parameters: int
    share: float


@dataclass(frozen=True)
class Inspection:
    """What the checkpoint holds, and what may be done about it."""

    model: str
    parameters: int
    biases: tuple[Biases, ...]
    certificate: Certificate
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "certificate": self.certificate.as_json()}


def inspect(model: str | Path) -> Inspection:
    """All bias tensors of a folder, hub id or "minilm", grouped over layers."""
    folder = find(model)
    raw = read_json(folder / "config.json")
    tensors = tensors_of(folder, raw)
    kind, again = raw.get("model_type", ""), copies(raw, tensors)
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    total = 0
    for name, lazy in sorted(tensors.items(), key=lambda item: numbers(item[0])):
        value = lazy()
        if is_buffer(name, value.ndim) or name in again:
            continue
        total += value.numel() if value.is_floating_point() else 0
        if name.endswith((".bias", ".beta")) and value.is_floating_point() and value.ndim == 1:
            groups.setdefault((template(name), tuple(value.shape)), []).append(value.double().norm().item())
    biases = tuple(
        Biases(name, term_of(name, kind), shape, tuple(norms), len(norms) * shape[0], len(norms) * shape[0] / total)
        for (name, shape), norms in groups.items()
    )
    order = (*BIAS_TERMS, "")
    ordered = tuple(sorted(biases, key=lambda b: (order.index(b.term), b.name)))
    return Inspection(str(model), total, ordered, certify(model), plan(folder))


def copies(raw: Mapping[str, Any], tensors: Collection[str]) -> set[str]:
    """The second names of tied tensors, which a file may hold under both."""
    kind = raw.get("model_type")
    body = BODIES.get(kind) if isinstance(kind, str) else None
    if body is None or not (body.fixed["tied"] if (tied := raw.get("tie_word_embeddings")) is None else tied):
        return set()
    firsts = {theirs: body.their_name(ours, "lm", body.prefix) for theirs, ours in body.copies.items()}
    return {theirs for theirs, first in firsts.items() if first in tensors}


def tensors_of(folder: Path, raw: dict[str, Any]) -> dict[str, Lazy]:
    """The tensors of the folder; fused q, k and v are split into three where the configuration says how."""
    tensors = open_tensors(folder)
    if raw.get("model_type") not in BODIES:
        return tensors
    try:
        return apart(tensors, read_config(raw, "hidden", str(folder / "config.json")), folder)
    except BadInput:
        return tensors


def numbers(name: str) -> list[int]:
    """The numbers in a name: layer 10 comes after layer 9."""
    return [int(part) for part in re.findall(r"\d+", name)]


def template(name: str) -> str:
    """The name with {i} for each number that stands alone."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name)


def term_of(name: str, kind: str) -> str:
    """The bias term that a name in the files stands for in this family."""
    if kind not in BODIES:
        return ""
    body = BODIES[kind]
    theirs = {body.names.get(f"blocks.{{i}}.{module}"): term for term, module in BIAS_TERMS.items()}
    return theirs.get(name.removeprefix(body.prefix).rpartition(".")[0], "")
