"""What the command line's modules share: common arguments, the record of a run, and how a command ends."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from minibeft.errors import BadInput, one_line, shortened
from minibeft.show.console import err, out, shown
from minibeft.show.files import STDOUT, require_place, write, write_json
from minibeft.show.grid import Grid
from minibeft.show.record import provenance

if TYPE_CHECKING:
    from minibeft.show.plot import Draw


class Command(TyperCommand):
    """A command whose first argument is MODEL: it also takes it as --model, which other commands have as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((param.name for param in self.params if param.param_type_name == "argument"), "")
        given = [word.partition("=") for word in args]
        at = next((n for n, (name, _, _) in enumerate(given) if name == "--model"), None)
        if first == "model" and at is not None:
            after = 1 if given[at][1] else 2
            value = [given[at][2]] if given[at][1] else args[at + 1 : at + 2]
            args = [*value, *args[:at], *args[at + after :]]
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """Commands of that kind."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **more)


def place(context: typer.Context, option: typer.CallbackParam, file: Path | None) -> Path | None:
    """The file that an option names, checked before the work whose result it is to hold."""
    if file is not None and str(file) == STDOUT:
        out.quiet = True  # no tables: standard output holds only what a program reads
    elif file is not None:
        require_place(option.opts[0], file, provenance()["command"])
        if file in context.params.values():
            raise BadInput(f"{option.opts[0]} {file}: is named twice; each result needs a file of its own")
    return file


def picture(context: typer.Context, option: typer.CallbackParam, file: Path | None) -> Path | None:
    """The same, for a plot."""
    if file is not None:
        from minibeft.show.plot import require_matplotlib

        require_matplotlib()
    return place(context, option, file)


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="a Hugging Face folder, a hub id, or minilm; or: --model MODEL")
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="write every number to this file; -: to standard output", callback=place
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="sentences, one per line; for images an image or .npy, for speech .npy; default: built in, or random",
    ),
]
Png = Annotated[
    Path | None, typer.Option("--png", metavar="FILE", help="write a picture to this file", callback=picture)
]
# The groups of commands that the help shows.
LOOK, ASK, CHANGE, TRAIN = "See and measure", "Prove", "Change a checkpoint", "Train and use"


def tell(*parts: Grid | str) -> None:
    """Print tables, and lines between them."""
    for part in parts:
        part = shown(part) if isinstance(part, str) else part
        out.print(part, markup=False, highlight=False, emoji=False)


def save(file: Path | None, value: dict[str, Any]) -> None:
    """Write the record, with the command and the versions that made it; None writes nothing."""
    if file is not None:
        write_json(file, provenance() | value)
        tell(f"wrote {file}")


def plot(file: Path | None, draw: "Draw", size: tuple[float, float]) -> None:
    """Draw a picture into a PNG; None draws nothing."""
    if file is not None:
        from minibeft.show.plot import as_png

        write(file, as_png(draw, size))
        tell(f"wrote {file}")


# Exit statuses besides 0 and 1 (a theorem is violated): refused input, a defect of minibeft, and Ctrl-C, as in shells.
REFUSED, DEFECT, INTERRUPTED = 2, 70, 130


class Interrupt(BaseException):
    """Ctrl-C. No KeyboardInterrupt, because click turns that into exit status 1."""


# What a wrong option or argument raises; typer has it from click, or from a copy of click, and does not export it.
Misuse: Any = typer.BadParameter.__bases__[0]


class OneLine(logging.Formatter):
    """Warnings are lines like any other."""

    def format(self, record: logging.LogRecord) -> str:
        return f"minibeft: {shortened(one_line(record.getMessage()))}"


def run(command: Callable[[], None]) -> None:
    """Run a command line; whatever stops it ends in one line and an exit status of its own. With --debug the traceback
    of a defect is shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler])
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        command()
        sys.stdout.flush()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except Misuse as error:
        stop(f"{error.format_message().rstrip('.')}; minibeft --help, and --help after a command, say more", REFUSED)
    except Interrupt:
        stop("interrupted; what was written stays, and the same command goes on from there", INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # rich, which prints the help, turns the first into the second
        stop("the reader of the output has gone", DEFECT)
    except BadInput as error:
        stop(str(error), REFUSED)
    except OSError as error:
        stop(f"{error.filename or 'output'}: {error.strerror or error}; check that place and its rights", REFUSED)
    except BaseException as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        stop(f"defect: {what}; please report it with the traceback that --debug shows", DEFECT)


def execute(app: typer.Typer) -> None:
    """Run the command line that was typed. Not in click's own way, which ends a closed pipe with status 1 and draws a
    box around the error for a wrong option."""
    command = typer.main.get_command(app)
    name_no_type_of_switches(command)
    with command.make_context("minibeft", sys.argv[1:]) as context:
        command.invoke(context)


def name_no_type_of_switches(command: Any) -> None:
    """Show no type for switches in the help: they take no value."""
    context = command.context_class(command, info_name="minibeft", **command.context_settings)
    for option in command.get_params(context):
        if getattr(option, "is_bool_flag", False):
            option.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        inner.context_settings = command.context_settings
        name_no_type_of_switches(inner)


def interrupt(*_: Any) -> None:
    """What Ctrl-C does."""
    raise Interrupt


def stop(text: str, status: int) -> None:
    """Say why in one line, and end; the interpreter's last flush of a stream that nobody reads must not fail."""
    line = f"minibeft: {shortened(one_line(text))}"
    with suppress(OSError):
        err.print(line, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
