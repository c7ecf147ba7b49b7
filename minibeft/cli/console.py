"""What the command line's modules share: the two streams, common arguments, and the record of a run."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from minibeft.errors import BadInput

# Of several processes that torchrun started, the first one speaks.
_quiet = os.environ.get("RANK", "0") != "0"
out = Console(quiet=_quiet)
err = Console(stderr=True, quiet=_quiet)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a Hugging Face folder, a hub id, or minilm")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every number to this file")]


def write_json(file: Path | None, value: dict[str, Any]) -> None:
    """Write the record, with the command and the versions that made it; None writes nothing."""
    if file is not None:
        from minibeft.show.record import provenance

        file.write_text(json.dumps(provenance() | value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        out.print(f"wrote {file}")


def run(command: Callable[[], None]) -> None:
    """Run a command line; input that minibeft refuses, or a file that fails, ends in one line and exit status 2."""
    logging.basicConfig(format="minibeft: %(message)s")
    try:
        command()
    except (BadInput, OSError) as error:
        err.print(f"minibeft: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
