"""Read what runs have written: each part of a record is checked, and the weights must be those that the run wrote.

BadInput names the file and the part that is wrong, and nothing is changed. run.json is the record of one run,
seeds.json that of several seeds, series.json that of a reproduction.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import Tensor

from minibeft.checkpoints.tensors import read_all, read_json
from minibeft.errors import BadInput
from minibeft.show.record import MADE
from minibeft.training.settings import Settings

RECORD, TRAINED = "run.json", "trained.safetensors"


def read_record(folder: Path) -> dict[str, Any]:
    """A run's record. Parts that older versions did not write may be missing."""
    file = folder / RECORD
    record = read_json(file)
    ours = {"settings": {}, "digests": {}, "labels": [], "trained": {}, "epochs": [], "complete": False}
    ours |= {"written": None} | record
    require(file, ours, SCHEMA)
    ended = bool(ours["epochs"]) and len(ours["epochs"]) == ours["settings"].get("epochs", len(ours["epochs"]))
    if record.get("complete") and not (ended and record.keys() >= {*MADE}):
        raise BadInput(f"{file}: is damaged: complete, and without results; delete the file to begin this run again")
    return record


def read_shared(file: Path) -> dict[str, Any]:
    """What several runs have in common: seeds.json or series.json."""
    record = read_json(file)
    require(
        file, {"last": []} | record, {name: SCHEMA[name] for name in ("settings", "digests")} | {"last": are_epochs}
    )
    return record


def require(file: Path, record: Mapping[str, Any], schema: Mapping[str, Callable[[Any], bool]]) -> None:
    """BadInput unless each part of the record is what it must be."""
    for name, holds in schema.items():
        if name not in record or not holds(record[name]):
            raise BadInput(f"{file}: {name} is damaged, or another version's; delete the file to begin anew")


def read_trained(folder: Path) -> dict[str, Tensor]:
    """What a finished run trained, by the names of its checkpoint, bit for bit as the run wrote it."""
    file, written = folder / TRAINED, read_record(folder).get("written")
    if not file.is_file() or (written is not None and digest([file]) != written):
        raise BadInput(f"{file}: is missing or not what the run wrote; delete {RECORD} to run it again")
    return read_all(file)


def digest(files: list[Path]) -> str:
    """SHA-256 over the contents of these files, in this order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def are_settings(found: Any) -> bool:
    """Whether each entry is a setting that this version has, with a value of the right type."""
    kinds = get_type_hints(Settings)

    def fits(value: Any, hint: Any) -> bool:
        every = get_args(hint) or (hint,)
        return type(value) in every or value in every or (float in every and type(value) is int)

    return isinstance(found, dict) and all(name in kinds and fits(value, kinds[name]) for name, value in found.items())


def are_texts(found: Any) -> bool:
    """Whether this is a list of texts."""
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def are_epochs(found: Any) -> bool:
    """Whether these are epochs as fit() returns them: each has its number, loss and seconds, and the metrics of each
    split, the same metrics in every epoch."""

    def are_numbers(values: Any, deep: int) -> bool:
        if deep and isinstance(values, dict):
            return all(are_numbers(value, deep - 1) for value in values.values())
        return type(values) in (int, float)

    def is_epoch(one: Any) -> bool:
        return isinstance(one, dict) and are_numbers(one, 2) and {"epoch", "loss", "seconds"} <= one.keys()

    return isinstance(found, list) and all(map(is_epoch, found)) and len({measured(one) for one in found}) < 2


def measured(epoch: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The split and the metric of each score of an epoch."""
    return frozenset((split, name) for split, scores in epoch.items() if isinstance(scores, dict) for name in scores)


# What each part must be.
SCHEMA: dict[str, Callable[[Any], bool]] = {
    "settings": are_settings,
    "digests": lambda found: isinstance(found, dict) and are_texts(list(found.values())),
    "labels": are_texts,
    "trained": lambda found: (
        found == {} or (isinstance(found, dict) and are_texts(found.get("tensors")) and type(found.get("count")) is int)
    ),
    "epochs": are_epochs,
    "complete": lambda found: isinstance(found, bool),
    "written": lambda found: found is None or isinstance(found, str),
}


def require_same(place: Path, there: Mapping[str, Any], mine: Mapping[str, Any], what: str) -> None:
    """BadInput where the run or series in this folder or file has other settings or digests: it names them. A setting
    that an older record lacks counts as its default."""
    defaults = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
    wrong = [
        f"{name} is {found!r} there, {value!r} here"
        for part in ("settings", "digests")
        for name, value in mine[part].items()
        if (found := (defaults | there.get(part, {})).get(name)) != value
    ]
    if wrong:
        other = "choose another file" if place.is_file() else "choose another folder, nothing was written"
        raise BadInput(f"{place}: holds another {what} ({', '.join(wrong)}); {other}")
