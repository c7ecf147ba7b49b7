"""Sound checkpoints to damage, and what must come of it."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import digests
from tiny import reference, typical
from typecheck import unchecked

from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput

Damage = Callable[[Path], Any]
WEIGHTS = "model.safetensors"


@cache
def sound(family: str) -> dict[str, bytes]:
    """The files of a sound checkpoint of this family."""
    with tempfile.TemporaryDirectory() as folder:
        reference(typical(family, "hidden" if family == "opt" else "lm"), 1).save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in ("config.json", WEIGHTS)}


def lay(folder: Path, family: str) -> Path:
    """Put a sound checkpoint into the folder."""
    for name, content in sound(family).items():
        (folder / name).write_bytes(content)
    return folder


def refusal(folder: Path, **options: Any) -> str:
    """The text of the one error that may come, a single line that names what was given; nothing in the folder moved."""
    before = digests(folder) if folder.is_dir() else {}
    with pytest.raises(BadInput) as caught, unchecked():
        load_model(folder, **options)
    assert before == (digests(folder) if folder.is_dir() else {})
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def outcome(folder: Path) -> str:
    """The refusal, or the folder's name when it loads; any other error goes up."""
    try:
        load_model(folder)
    except BadInput as error:
        return str(error)
    return str(folder)


def config(**changes: Any) -> Damage:
    """Exchange keys of config.json."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(raw))

    return damage
