"""A folder's tensors by name, read lazily and memory-mapped: one file, shards with an index, or a pickle of weights."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minibeft.errors import BadInput

Lazy = Callable[[], Tensor]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or BadInput that names the file."""
    if not file.is_file():
        raise BadInput(f"{file}: missing; a model folder holds config.json beside its weights")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{file}: is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def open_tensors(folder: Path) -> dict[str, Lazy]:
    """Every tensor of the folder, by the file's own names. Nothing is read before it is asked for."""
    for stem, reader in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickle)):
        if (folder / stem).is_file():
            return reader(folder / stem)
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return read_shards(index, reader)
    raise BadInput(f"{folder}: has no weights; model.safetensors (or its shards) or pytorch_model.bin must be there")


def read_shards(index: Path, reader: Callable[[Path], Mapping[str, Lazy]]) -> dict[str, Lazy]:
    """The union of the shards that the index names; each tensor must be where the index says."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise BadInput(f"{index}: has no weight_map; download it again")
    shards: dict[str, Mapping[str, Lazy]] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise BadInput(f"{index}: names the shard {shard}, which is not in the folder; download it again")
        shards[shard] = reader(index.parent / shard)
    for name, shard in where.items():
        if name not in shards[shard]:
            raise BadInput(f"{index.parent / shard}: lacks {name}, which {index.name} says it holds")
    return {name: shards[shard][name] for name, shard in where.items()}


def read_safetensors(file: Path) -> dict[str, Lazy]:
    """Memory-mapped: the pages are read when the tensor is used."""
    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: is truncated or corrupt ({error}); download it again") from error
    return {name: lambda name=name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def read_pickle(file: Path) -> dict[str, Lazy]:
    """weights_only: a pickle that would run code is refused. Memory-mapped unless it has torch's old file format."""
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(f"{file}: is not plain weights and was not run; ask for a safetensors file") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BadInput(f"{file}: is truncated or corrupt; download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{file}: must hold a dictionary of tensors")
    return {name: lambda name=name: state[name] for name in state}
