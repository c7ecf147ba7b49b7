"""What the command line's modules share: common arguments, the record of a run, and how a command ends."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from minibeft.errors import BadInput, one_line, shortened
from minibeft.show.console import err, out
from minibeft.show.files import write_json
from minibeft.show.grid import Grid
from minibeft.show.record import provenance

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a Hugging Face folder, a hub id, or minilm")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every number to this file")]


def tell(*parts: Grid | str) -> None:
    """Print tables, and lines between them."""
    for part in parts:
        out.print(part, markup=False, highlight=False, emoji=False)


def save(file: Path | None, value: dict[str, Any]) -> None:
    """Write the record, with the command and the versions that made it; None writes nothing."""
    if file is not None:
        write_json(file, provenance() | value)
        tell(f"wrote {file}")


# Beside 0 and 1, a theorem that is violated: input that is refused, a defect of minibeft, and Ctrl-C, as shells say.
REFUSED, DEFECT, INTERRUPTED = 2, 70, 130


class Interrupt(BaseException):
    """Ctrl-C. No KeyboardInterrupt, because click turns that into exit status 1."""


def run(command: Callable[[], None]) -> None:
    """Run a command line; whatever stops it ends in one line and an exit status of its own. With --debug the traceback
    of a defect is shown."""
    logging.basicConfig(format="minibeft: %(message)s")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        command()
        sys.stdout.flush()
    except SystemExit:
        raise
    except Interrupt:
        stop("interrupted; what was written stays, and the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; the last flush must not fail
        stop("the reader of the output has gone", DEFECT)
    except (BadInput, OSError) as error:
        stop(str(error), REFUSED)
    except BaseException as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        stop(f"defect: {what}; please report it with the traceback that --debug shows", DEFECT)


def interrupt(*_: Any) -> None:
    """What Ctrl-C does."""
    raise Interrupt


def stop(text: str, status: int) -> None:
    """Say why in one line, and end."""
    err.print(
        f"minibeft: {shortened(one_line(text))}",
        style="red",
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )
    sys.exit(status)
