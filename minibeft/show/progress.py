"""Progress on standard error: a line for each thing under way, with how far it is and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from minibeft.errors import one_line
from minibeft.show.console import err, out

# After this many seconds of work the time left is printed, if it is at least this many seconds.
WATCHED, WORTH_SAYING = 5.0, 60.0


class Lines:
    """The lines on the screen, by name; and once, also in a file or a pipe, how long the rest takes."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.lines: dict[str, TaskID] = {}
        self.first: tuple[float, float] | None = None  # when all the work was first seen, and how much of it was done
        self.estimated = False

    def show(
        self, name: str, done: float, total: float, text: str = "", *, part: bool = False, found: float = 0.0
    ) -> None:
        """Bring a line up to date; a new name gets a line.

        part   this line is a part of the work; another line shows all of it
        found  how much of what is done was done before this start, and does not count for the speed
        """
        if name not in self.lines:
            self.lines[name] = self.bar.add_task(one_line(name), total=total, text="")
        self.bar.update(self.lines[name], completed=done, total=total, text=text)
        if not part and not self.estimated:
            self.estimate(done - found, total - done)

    def estimate(self, worked: float, left: float) -> None:
        """Say once how long the rest takes at the speed so far."""
        now = monotonic()
        self.first = self.first or (now, worked)
        begun, before = self.first
        if now - begun >= WATCHED and worked > before:
            self.estimated = True
            seconds = (now - begun) * left / (worked - before)
            if seconds >= WORTH_SAYING and not out.quiet:
                err.print(f"about {duration(seconds)} to go")

    def end(self, name: str) -> None:
        """Take a line away."""
        if name in self.lines:
            self.bar.remove_task(self.lines.pop(name))


def duration(seconds: float) -> str:
    """Minutes up to two hours, then hours."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


@contextmanager
def progress() -> Iterator[Lines]:
    """The display while the block runs; there is none in a file or a pipe, or with --quiet."""
    name, text = (TextColumn(f"{{task.{part}}}", markup=False) for part in ("description", "fields[text]"))
    columns = name, BarColumn(16), text, TimeRemainingColumn()
    with Progress(*columns, console=err, speed_estimate_period=600, disable=out.quiet or not err.is_terminal) as bar:
        yield Lines(bar)


@contextmanager
def steps(name: str, total: int) -> Iterator[Callable[[str], None]]:
    """One line for a job of so many steps; call what it gives with the name of each step as it begins."""
    with progress() as lines:
        numbers = count()
        yield lambda step: lines.show(name, next(numbers), total, step)
        lines.show(name, total, total, "done")
