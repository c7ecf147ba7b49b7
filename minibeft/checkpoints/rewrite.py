"""A checkpoint folder with some tensors changed, every other byte as it was: streamed, never a whole model in memory.

A safetensors file is a header of names, types and offsets before the tensors' bytes. So a copy with other tensors is
those bytes copied through a small buffer, with the new ones in their places: what is not named keeps its bits.
"""

import json
import logging
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minibeft.checkpoints.door import checked, stays_inside
from minibeft.checkpoints.tensors import read_json, weight_map
from minibeft.errors import BadInput
from minibeft.show.files import write_json

log = logging.getLogger("minibeft")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The subfolder where merge keeps what unmerge needs, and what rounding lost; another edit makes it out of date.
MERGED = "merge"
BEFORE, RESIDUAL = f"{MERGED}/before.safetensors", f"{MERGED}/residual.safetensors"
# The same weights in another format would no longer be the same model, so only files known to hold no weights are
# copied. They are known by the ends of their names, because there are too many formats for weights to list.
CARRIED = ".json .jsonl .txt .md .model .jinja .yaml .yml .csv .tsv .png .jpg .svg .pdf .py .bib .cff .license".split()
NAMES = ("license", "notice", "readme", "citation")
LONGEST_HEADER = 100_000_000  # the most that the safetensors library reads
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass
class Edit:
    """What to change in a checkpoint, by the names in its files.

    rename   the name that a tensor gets; `tensors` and `drop` use the new names
    tensors  values in the type that they are to have; a name that is not there yet is added
    drop     names that are to go
    beside   for a name that is added: a name in whose shard it goes (default: the last shard)
    config   keys of config.json that change; None takes the key out
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    drop: set[str] = field(default_factory=set)
    beside: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rename: Callable[[str], str] = str


def shards(folder: Path) -> dict[str, str]:
    """Tensor name → file name, for a folder of safetensors; BadInput for one that has only another format."""
    if (folder / SINGLE).is_file():
        return {name: SINGLE for name in read_header(folder / SINGLE)[0] if name != "__metadata__"}
    if (folder / INDEX).is_file():
        return weight_map(folder / INDEX)
    raise BadInput(f"{folder}: has no safetensors; minibeft convert writes them")


def rewrite_folder(source: Path, target: Path, edit: Edit) -> None:
    """Copy the folder into `target`, which exists and is empty, with the edit made. Shard by shard, index included."""
    copy_others(source, target)
    where = {edit.rename(name): shard for name, shard in shards(source).items()}
    files = sorted(set(where.values()))
    homes = {name: where.get(name) or where.get(edit.beside.get(name, "")) or files[-1] for name in edit.tensors}
    for file in files:
        tensors = {name: value for name, value in edit.tensors.items() if homes[name] == file}
        rewrite_file(source / file, target / file, tensors, edit.drop, edit.rename)
    if edit.config:
        config = read_json(source / "config.json") | edit.config
        config = {key: value for key, value in config.items() if value is not None or key not in edit.config}
        write_json(target / "config.json", config)
    if (target / INDEX).is_file():
        write_index(target, {n: f for n, f in (where | homes).items() if n not in edit.drop})


def copy_others(source: Path, target: Path) -> None:
    """Copy what holds no weights: tokenizer, model card, subfolders. Contents alone, so a read-only folder will do.

    What is left out is said in the log: weights in other formats, which would be those of the old model, and links
    that lead out of the folder.
    """
    left = []
    for file in sorted(source.rglob("*")):
        inside = file.relative_to(source)
        stale = inside.parts[0] == MERGED or any(part.startswith(".") for part in inside.parts)
        if stale or not file.is_file() or file.name in (SINGLE, INDEX) or is_shard(file):
            continue
        if carried(file) and stays_inside(file, source):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / inside)
        else:
            left.append(str(inside))
    if (source / INDEX).is_file():
        shutil.copyfile(checked(source / INDEX), target / INDEX)
    if left:
        log.warning("left out, because they may hold the old weights or lie elsewhere: %s", ", ".join(left))


def is_shard(file: Path) -> bool:
    """Weights that rewrite_folder writes itself."""
    return file.suffix == ".safetensors" and re.search(r"-\d+-of-\d+$", file.stem) is not None


def carried(file: Path) -> bool:
    """Whether a file is known to hold no weights."""
    named = not file.suffix and file.name.lower().startswith(NAMES)
    return named or (file.suffix.lower() in CARRIED and not file.name.endswith(".bin.index.json"))


def write_index(folder: Path, where: Mapping[str, str]) -> None:
    """The index of shards, with the sizes that it states counted anew."""
    index = read_json(folder / INDEX)
    metadata = dict(given) if isinstance(given := index.get("metadata"), dict) else {}
    entries = [e for file in set(where.values()) for n, e in read_header(folder / file)[0].items() if n in where]
    metadata["total_size"] = sum(e["data_offsets"][1] - e["data_offsets"][0] for e in entries)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(torch.Size(e["shape"]).numel() for e in entries)
    write_json(folder / INDEX, index | {"metadata": metadata, "weight_map": dict(sorted(where.items()))})


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header as it stands in the file, and where the tensors' bytes begin."""
    try:
        with checked(file, None).open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < min(file.stat().st_size, LONGEST_HEADER) else None
    except (struct.error, ValueError) as error:
        raise BadInput(f"{file}: is truncated or corrupt ({error}); download it again") from error
    if not isinstance(header, dict):
        raise BadInput(f"{file}: is truncated or corrupt; download it again")
    return header, 8 + length


def rewrite_file(
    source: Path, target: Path, tensors: Mapping[str, Tensor], drop: set[str], rename: Callable[[str], str] = str
) -> None:
    """Copy one safetensors file with these tensors in place of, or beside, the ones it has."""
    old, start = read_header(source)
    entries = {rename(name): entry for name, entry in old.items() if name != "__metadata__"}
    offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
    for name, value in tensors.items():
        entries[name] = {"dtype": TYPES[value.dtype], "shape": list(value.shape)}
    sizes = {n: v.nbytes for n, v in tensors.items()} | {n: b - a for n, (a, b) in offsets.items() if n not in tensors}
    # Wide types first, as safetensors itself lays them out, so that each tensor stays aligned to its type.
    order = sorted((n for n in entries if n not in drop), key=lambda n: -bits(entries[n]["dtype"]))
    header: dict[str, Any] = {"__metadata__": old["__metadata__"]} if "__metadata__" in old else {}
    position = 0
    for name in order:
        header[name] = {**entries[name], "data_offsets": [position, position + sizes[name]]}
        position += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            if name in tensors:
                writer.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                reader.seek(start + offsets[name][0])
                copy_bytes(reader, writer, sizes[name], source)


def bits(dtype: str) -> int:
    """Bits of an entry: 16 for BF16, 8 for F8_E4M3 and BOOL."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def copy_bytes(reader: BinaryIO, writer: BinaryIO, count: int, source: Path, chunk: int = 1 << 20) -> None:
    """Copy so many bytes through a buffer of 1 MiB."""
    while count:
        data = reader.read(min(chunk, count))
        if not data:
            raise BadInput(f"{source}: is shorter than its header says; download it again")
        writer.write(data)
        count -= len(data)
