"""A folder's tensors by name, read lazily and memory-mapped: one file, shards with an index, or a pickle of weights."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minibeft.checkpoints.door import checked
from minibeft.errors import BadInput

Lazy = Callable[[], Tensor]
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias)$")
MASKS = re.compile(r"(^|\.)(attn|attention)\.bias$")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or BadInput that names the file."""
    if not file.exists():
        raise BadInput(f"{file}: missing; a model folder holds config.json beside its weights")
    checked(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def open_tensors(folder: Path, *, keep: bool = True) -> dict[str, Lazy]:
    """Every tensor of the folder, by the file's own names. Nothing is read before it is asked for.

    keep  the tensors stay what they are, views of one memory map. Otherwise each is read once, to be converted, and
          its part of the map is released with it, so that the file and its copy are never both in memory.
    """
    for stem, reader in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickle)):
        if (folder / stem).is_file():
            return reader(folder / stem, keep)
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return read_shards(index, reader, keep)
    raise BadInput(f"{folder}: has no weights; model.safetensors (or its shards) or pytorch_model.bin must be there")


def wrapper(names: Iterable[str]) -> str:
    """What wrappers put before the names of all tensors: "module." of data parallelism, "_orig_mod." of torch.compile,
    "base_model.model." of PEFT; empty where not all have it, and then it is no wrapper's."""
    lead, names = "", list(names)
    while names and (found := next((w for w in WRAPPERS if all(n.startswith(lead + w) for n in names)), None)):
        lead += found
    return lead


def is_buffer(name: str, dims: int = 1) -> bool:
    """Whether a tensor is one that the model computes itself: position ids, rotary frequencies, or a causal mask.

    The mask has more than one dimension; GPT-2 and its kin call it attn.bias.
    """
    return BUFFERS.search(name) is not None or (dims > 1 and MASKS.search(name) is not None)


def read_shards(index: Path, reader: Callable[[Path, bool], dict[str, Lazy]], keep: bool) -> dict[str, Lazy]:
    """The union of the shards that the index names; each tensor must be where the index says."""
    where = weight_map(index)
    shards = {shard: reader(index.parent / shard, keep) for shard in sorted(set(where.values()))}
    for name, shard in where.items():
        if name not in shards[shard]:
            raise BadInput(
                f"{index.parent / shard}: lacks {name}, which {index.name} says it holds; download both again"
            )
    return {name: shards[shard][name] for name, shard in where.items()}


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name → the shard that holds it, as an index says. A shard is a file of the index's own folder: any other
    name would let a stranger's index choose what is read, and what a copy of the folder writes."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise BadInput(f"{index}: has no weight_map from tensors to files; download it again")
    for shard in sorted(set(where.values())):
        if not shard or "\0" in shard or Path(shard).name != shard or not (index.parent / shard).is_file():
            raise BadInput(f"{index}: names the shard {shard}, which is not in the folder; download it again")
    return where


def read_safetensors(file: Path, keep: bool = True) -> dict[str, Lazy]:
    """Memory-mapped: the pages are read when the tensor is used."""
    checked(file, None)
    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: is truncated or corrupt ({error}); download it again") from error

    def read(name: str) -> Tensor:
        try:
            # A second opening maps the file anew, for this tensor alone.
            return (opened if keep else safe_open(file, framework="pt")).get_tensor(name)
        except (SafetensorError, OSError, AttributeError, TypeError, ValueError) as error:
            raise BadInput(f"{file}: {name} cannot be read ({error})") from error

    return {name: partial(read, name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def read_all(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    return {name: lazy() for name, lazy in read_safetensors(file).items()}


def read_pickle(file: Path, keep: bool = True) -> dict[str, Lazy]:
    """The tensors of a pickle, read with weights_only: a pickle that would run code is refused.

    Memory-mapped, unless they are to be converted or the file has torch's old format, which cannot be mapped.
    """
    checked(file, None)
    try:
        old = not zipfile.is_zipfile(file)
        if not old and (size := unpacked(file)) > file.stat().st_size:
            raise BadInput(f"{file}: unpacks to {size:,} bytes, more than it has; ask for a safetensors file")
        with warnings.catch_warnings(action="ignore"):  # about pickles that it goes on to refuse
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=keep and not old)
    except pickle.UnpicklingError as error:
        raise BadInput(f"{file}: is not plain weights and was not run; ask for a safetensors file") from error
    except BadInput:
        raise
    except Exception as error:  # unpickling damaged data can raise anything
        raise BadInput(f"{file}: is truncated or corrupt ({type(error).__name__}); download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{file}: must hold a dictionary of tensors, as state_dict() gives it")
    if odd := next((name for name, value in state.items() if not is_whole(value)), None):
        raise BadInput(f"{file}: {odd} does not hold its own numbers one by one; ask for a safetensors file")
    return {str(name): partial(state.__getitem__ if keep else state.pop, name) for name in list(state)}


def unpacked(file: Path) -> int:
    """Bytes of all entries of an archive. torch does not compress them: more bytes than the file has mean a bomb."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def is_whole(value: Tensor) -> bool:
    """Whether a tensor has as many numbers in memory as it shows: no sparse, nested, expanded or meta tensor."""
    dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    return dense and value.nbytes <= value.untyped_storage().nbytes()
