"""A file or folder is written beside its place and then renamed, so that a kill leaves the old one or the new; its
place is checked, and locked, before the work."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minibeft.errors import BadInput


def write(file: Path, content: bytes) -> None:
    """Replace the file in one step; BadInput when it cannot be written, and then the old one is still there."""
    new = beside(file)
    try:
        with new.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        why = error.strerror or str(error)
        raise BadInput(
            f"{file}: cannot be written ({why}); make room or choose another place, then run the command again"
        ) from error


def beside(file: Path) -> Path:
    """Where a file is written before it takes its place."""
    return file.with_name(f".{file.name}.new")


STDOUT = "-"  # instead of a file's name


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Replace the file by this object, a list of numbers on one line so that long records can still be read; or print
    it, where the name is "-"."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r'\[\n[^][{}"]*\]', lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    if str(file) == STDOUT:
        print(text)
    else:
        write(file, f"{text}\n".encode())


# Stands near the start of every file, other than JSON, that a command writes where an option says.
MARK = "written by minibeft"


def require_place(option: str, file: Path, command: str) -> None:
    """BadInput if the file that this option names cannot be written, or exists and is not from this command; called
    before the work whose result it is to hold."""
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"{option} {file}: cannot be written; name a file in a folder that exists")
    if os.path.lexists(file) and not wrote(command, file):
        raise BadInput(f"{option} {file}: is there, and not from this command; name another file, or delete that one")


def wrote(command: str, file: Path) -> bool:
    """Whether a command like this one made the file: a record begins with its command, another file with the mark."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(4096).decode("utf-8", "replace")
    record = re.match(r'\{\s*"command": "((?:[^"\\]|\\.)*)"', start)
    return verb(record[1]) == verb(command) if record else MARK in start and not start.startswith("{")


def verb(command: str) -> str:
    """The command's own name, without the program's and without arguments."""
    found = re.search(r"minibeft\S* (bench \w+|\w+)", command)
    return found[1] if found else ""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder, made if it is missing, for this process; the system unlocks it however the process ends.

    Folders that were made and are still empty at the end are removed. BadInput when another process holds the folder,
    or when it cannot be made. Of the processes that torchrun started, the first holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if handle is not None:
            os.close(handle)
        used = isinstance(error, BlockingIOError)
        why = "another minibeft is at work there" if used else f"cannot be written ({error.strerror})"
        raise BadInput(f"{folder}: {why}; {'wait for it or ' * used}choose another folder") from error
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty: something was written
                path.rmdir()
        os.close(handle)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside `folder`: it becomes `folder` if the block ends without an error, or is removed.

    So an interruption, even SIGKILL, leaves either the whole folder or none of that name (SIGKILL also the hidden
    neighbour, which nothing reads and the next run takes over). BadInput when the folder is there and not empty.
    """
    folder = folder.absolute()
    require_free(folder)
    with held(beside(folder)):
        require_free(folder)  # another may have been at work till now
        ready = beside(folder) / "ready"
        try:
            shutil.rmtree(ready, ignore_errors=True)
            ready.mkdir()
            yield ready
            os.replace(ready, folder)
        except OSError as error:
            raise BadInput(f"{folder}: cannot be written ({error}); nothing was left there") from error
        finally:
            shutil.rmtree(ready.parent, ignore_errors=True)


def require_free(folder: Path) -> None:
    """BadInput where a new folder would replace something."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: exists and is not empty; choose another folder, nothing was written")
