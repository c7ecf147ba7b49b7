"""A file is written beside its place and then renamed, so that a kill at any moment leaves the old one or the new."""

import json
import os
import re
from collections.abc import Mapping
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


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Replace the file by this object, a list of numbers on one line so that long records can still be read."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = re.sub(r'\[\n[^][{}"]*\]', lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    write(file, f"{text}\n".encode())


def require_place(files: Mapping[str, Path | None]) -> None:
    """BadInput for a file, given by the option before it, that cannot be written: before the work whose result it is to
    hold."""
    for option, file in files.items():
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise BadInput(f"{option} {file}: cannot be written; name a file in a folder that exists")
