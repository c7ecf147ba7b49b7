"""Progress on standard error: a line for each thing under way, with how far it is and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from minibeft.errors import one_line
from minibeft.show.console import err, out


class Lines:
    """The lines on the screen, by name."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.lines: dict[str, TaskID] = {}

    def show(self, name: str, done: float, total: float, text: str = "") -> None:
        """Bring a line up to date; a new name gets a line."""
        if name not in self.lines:
            self.lines[name] = self.bar.add_task(one_line(name), total=total, text="")
        self.bar.update(self.lines[name], completed=done, total=total, text=text)

    def end(self, name: str) -> None:
        """Take a line away."""
        if name in self.lines:
            self.bar.remove_task(self.lines.pop(name))


@contextmanager
def progress() -> Iterator[Lines]:
    """The display, as long as the block lasts; a file or a pipe gets none, nor who asked for quiet."""
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
