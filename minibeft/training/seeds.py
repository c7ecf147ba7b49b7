"""Several runs, one after the other or in parallel processes, with one progress line each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from minibeft.errors import BadInput
from minibeft.models.biases import count
from minibeft.training.parallel import Notify, finetune_in_processes
from minibeft.training.runs import as_bytes, describe, finetune, write
from minibeft.training.settings import Settings
from minibeft.training.train import Run, Step

SEEDS = "seeds.json"


def read_seeds(text: str) -> list[int]:
    """[0, 1, 2, 7] from "0-2,7"; BadInput for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise BadInput(f"--seeds {text}: give numbers and ranges, such as 0-4 or 0,3")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadInput(f"--seeds {text}: must name at least one seed, each once")
    return seeds


def finetune_all(
    runs: list[tuple[Settings, Path]], *, jobs: int, notify: Notify, announce: Callable[[Run], None]
) -> list[dict[str, Any]]:
    """The records of all runs, in order. With jobs > 1 each runs in a process of its own, cores shared out evenly.

    notify gets the run's number and where it is. announce gets the first run before it begins, where jobs is 1.
    """
    if jobs > 1:
        records = dict(finetune_in_processes(runs, jobs=jobs, notify=notify))
        return [records[number] for number in range(len(runs))]
    return [
        finetune(settings, folder, progress=lambda step, i=i: notify(i, step), announce=announce if i == 0 else skip)
        for i, (settings, folder) in enumerate(runs)
    ]


def skip(run: Run) -> None:
    """Announce nothing."""


@contextmanager
def lines(console: Console, names: list[str]) -> Iterator[Notify]:
    """A progress line a run: epoch, loss, accuracy, examples/s, time left."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        rows = [bar.add_task(name, total=None, text="") for name in names]

        def notify(number: int, s: Step) -> None:
            accuracy = "" if s.accuracy is None else f"  accuracy {s.accuracy:.3f}"
            text = f"epoch {s.epoch + 1}/{s.epochs}  loss {s.loss:.4f}{accuracy}  {s.rate:.0f} examples/s"
            bar.update(rows[number], total=s.epochs * s.total, completed=s.epoch * s.total + s.done, text=text)

        yield notify


def trainable(run: Run) -> Table:
    """What trains, by name, and how many numbers."""
    table = Table("trains", "shape", "numbers", box=None)
    for name, shape, size in describe(run.trained):
        table.add_row(name, shape, f"{size:,}")
    table.add_row("in all", "", f"{count(run.trained):,}")
    return table


def summary(records: list[dict[str, Any]]) -> Table:
    """The last epoch's metrics, a row a seed, and mean ± standard deviation over several."""
    last = [record["epochs"][-1] for record in records]
    keys = [(split, metric) for split, value in last[0].items() if isinstance(value, dict) for metric in value]
    table = Table("seed", *(f"{split} {metric}" for split, metric in keys), box=None)
    for record, epoch in zip(records, last, strict=True):
        table.add_row(str(record["settings"]["seed"]), *(f"{epoch[split][metric]:.4f}" for split, metric in keys))
    if len(last) > 1:
        columns = [[epoch[split][metric] for epoch in last] for split, metric in keys]
        table.add_row("mean ± std", *(f"{mean(column):.4f} ± {stdev(column):.4f}" for column in columns))
    return table


def save_seeds(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write seeds.json: what the runs share, each seed's last epoch, and what made the last run, read again or not."""
    shared = {name: value for name, value in records[0]["settings"].items() if name != "seed"}
    last = [{"seed": record["settings"]["seed"]} | record["epochs"][-1] for record in records]
    made = {name: records[-1][name] for name in ("command", "date", "versions", "machine")}
    write(folder / SEEDS, as_bytes({"settings": shared, "digests": records[0]["digests"], "last": last} | made))
