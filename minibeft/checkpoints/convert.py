"""A checkpoint converted to what everything else here reads: safetensors, and names without a wrapper's prefix."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor

from minibeft.checkpoints.find import find
from minibeft.checkpoints.rewrite import INDEX, SINGLE, copy_others
from minibeft.checkpoints.tensors import open_tensors, read_json, wrapper
from minibeft.errors import BadInput
from minibeft.show.files import new_folder

log = logging.getLogger("minibeft")


def convert(model: str | Path, out: str | Path) -> int:
    """Write pytorch_model.bin, or safetensors whose names begin with module. or the like, as one model.safetensors with
    plain names, every number as it was; returns how many tensors. Pickles are read as weights only.

    BadInput for a folder that needs none of this.
    """
    folder = find(model)
    read_json(folder / "config.json")
    if is_plain(folder):
        raise BadInput(f"{folder}: holds safetensors with plain names already; there is nothing to convert")
    with new_folder(Path(out)) as ready:
        return write_plain(folder, ready)


def is_plain(folder: Path) -> bool:
    """Whether the folder has safetensors, and no wrapper's names in them."""
    has = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return has and not wrapper(open_tensors(folder))


def write_plain(folder: Path, ready: Path) -> int:
    """The same into a folder that is there."""
    tensors = open_tensors(folder)
    lead = wrapper(tensors)
    copy_others(folder, ready)
    (ready / INDEX).unlink(missing_ok=True)
    seen, plain = set(), dict[str, Tensor]()
    for name, lazy in tensors.items():
        value = lazy()
        shared = value.untyped_storage().data_ptr() in seen or value.untyped_storage().nbytes() != value.nbytes
        seen.add(value.untyped_storage().data_ptr())
        plain[name.removeprefix(lead)] = value.clone() if shared else value.contiguous()  # tied ones share their memory
    save_file(plain, ready / SINGLE, {"format": "pt"})
    shutil.copymode(ready / "config.json", ready / SINGLE)  # safetensors writes for the owner alone
    return len(plain)


@contextmanager
def plainly(folder: Path) -> Iterator[Path]:
    """The folder, or, where it needs conversion, a converted copy that is deleted at the end of the block."""
    if (not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model.bin*"))) or is_plain(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="minibeft-") as place:
        log.warning("%s: is converted to safetensors with plain names first, as minibeft convert does", folder)
        write_plain(folder, Path(place))
        yield Path(place)
