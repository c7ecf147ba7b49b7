"""Several runs, one after the other or in parallel processes, and what came of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from minibeft.errors import BadInput
from minibeft.models.biases import count
from minibeft.show.console import err
from minibeft.show.files import held
from minibeft.show.grid import Grid
from minibeft.show.plot import as_png, can_draw
from minibeft.show.progress import Lines
from minibeft.training.cluster import finetune_on_cluster
from minibeft.training.curves import draw_curves
from minibeft.training.parallel import finetune_in_processes
from minibeft.training.records import RECORD, read_record, read_shared, require_same
from minibeft.training.runs import ADAPTER, Announce, describe, finetune, silent, write, write_json
from minibeft.training.settings import Settings
from minibeft.training.stack import finetune_stack, stacks
from minibeft.training.train import Run, Step

SEEDS, CURVES = "seeds.json", "curves.png"
# Settings that depend on the machine: the path of the data, and the device. Digests say whether the data are the same.
LOCAL = ("data", "device")
MOST_SEEDS = 1000


def read_seeds(text: str) -> list[int]:
    """[0, 1, 2, 7] from "0-2,7"; BadInput for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part.strip())
        if not ends:
            raise BadInput(f"--seeds {text}: give numbers and ranges, such as 0-4 or 0,3")
        found = range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        if len(seeds) + len(found) > MOST_SEEDS:
            raise BadInput(f"--seeds {text}: are more than {MOST_SEEDS}; run them in parts, with an --out each")
        seeds += found
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadInput(f"--seeds {text}: must name at least one seed, each once")
    return seeds


def finetune_all(
    runs: Sequence[tuple[str, Settings, Path]],
    lines: Lines,
    *,
    jobs: int,
    before: Sequence[int] = (),
    sizes: Sequence[int] | None = None,
    announce: Announce = silent,
    stack: bool = False,
    cluster: str | None = None,
) -> list[dict[str, Any]]:
    """The records of all runs, each with its name and folder, in order.

    cluster   the address of a Dask scheduler, on whose workers they run; None: they run on this machine
    jobs      above 1: each run has a process of its own, this many at a time, with equal shares of the threads
    lines     show the progress of each run, and of all runs together, those done before included
    sizes     how much work each run is, in any unit; None: all are equal. before: the same of the runs done before
    announce  is called with the first run before it begins, if jobs is 1
    stack     runs that can train together do so, if jobs is 1 (stack.py)
    """
    sizes = [1] * len(runs) if sizes is None else sizes
    shares, earlier, number_of_all = [0.0] * len(runs), sum(before), len(before) + len(runs)
    total = earlier + sum(sizes)
    resumed: dict[int, float] = {}  # run → how much of it was done when it was first seen

    def notify(number: int, step: Step) -> None:
        shares[number] = step.share
        resumed.setdefault(number, step.share * sizes[number])
        lines.show(runs[number][0], step.share, 1.0, str(step), part=True)
        done = earlier + sum(share * size for share, size in zip(shares, sizes, strict=True))
        finished = len(before) + sum(share == 1 for share in shares)
        lines.show("runs", done, total, f"{finished} of {number_of_all}", found=sum(resumed.values()))
        if step.share == 1:
            lines.end(runs[number][0])

    places, records = [(settings, folder) for _, settings, folder in runs], dict[int, dict[str, Any]]()
    if cluster is not None and runs:
        for number, record in finetune_on_cluster(places, address=cluster, notify=notify):
            if not records:
                err.print(cost_of(record, len(runs) - 1))
            records[number] = record
    elif jobs > 1 and runs:
        records = dict(finetune_in_processes(places, jobs=jobs, notify=notify))
    else:
        for group in stacks([settings for settings, _ in places]) if stack else [[i] for i in range(len(runs))]:
            tell = silent if records else announce
            if len(group) == 1:
                found = [finetune(*places[group[0]], progress=lambda step, i=group[0]: notify(i, step), announce=tell)]
            else:
                work = [places[i] for i in group]
                found = finetune_stack(work, notify=lambda i, step, g=group: notify(g[i], step), announce=tell)
            records |= zip(group, found, strict=True)
    return [records[number] for number in range(len(runs))]


def cost_of(record: dict[str, Any], left: int) -> str:
    """What the first run took, and what the others will take, if they are like it."""
    seconds = sum(epoch["seconds"] for epoch in record["epochs"])
    return f"the first run took {seconds:.3g} s; the {left} others will take {left * seconds / 3600:.2g} worker hours"


def require_cluster(address: str | None, **others: bool) -> None:
    """BadInput where an option that says how runs share this machine is given beside --cluster."""
    if address is not None and (given := [f"--{name}" for name, value in others.items() if value]):
        raise BadInput(
            f"--cluster {address}: goes with no {given[0]}, which is of runs on this machine; give one of the two"
        )


def are_complete(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold a complete run."""
    return [folder for folder in folders if (folder / RECORD).is_file() and read_record(folder).get("complete")]


def trainable(run: Run) -> Grid:
    """What trains, by name, and how many parameters; where a run was interrupted, after which epoch it goes on."""
    rows = [(name, shape, f"{size:,}") for name, shape, size in describe(run.trained)]
    resumed = f"resumed after epoch {len(run.epochs)}" if run.epochs else ""
    return Grid("", ("trains", "shape", "parameters"), [*rows, ("in all", "", f"{count(run.trained):,}")], resumed)


def summary(records: Sequence[dict[str, Any]], title: str = "") -> Grid:
    """The last epoch's metrics, one row per seed, and mean ± standard deviation over several."""
    last = [record["epochs"][-1] for record in records]
    columns = {
        f"{split} {metric}": [epoch[split][metric] for epoch in last]
        for split, metrics in last[0].items()
        if isinstance(metrics, dict)
        for metric in metrics
    }
    seeds = [str(record["settings"]["seed"]) for record in records]
    rows = [(seed, *(f"{score:.4f}" for score in row)) for seed, *row in zip(seeds, *columns.values(), strict=True)]
    if len(last) > 1:
        rows.append(("mean ± std", *(f"{mean(scores):.4f} ± {stdev(scores):.4f}" for scores in columns.values())))
    return Grid(title, ("seed", *columns), rows)


def gain(records: Sequence[dict[str, Any]], without: Sequence[dict[str, Any]]) -> str:
    """What the bias terms bring over training without one: the means of the last epoch's first metric."""
    last = records[0]["epochs"][-1]
    split = next(name for name, value in last.items() if isinstance(value, dict))
    metric = next(iter(last[split]))
    with_it, bare = (mean(each["epochs"][-1][split][metric] for each in side) for side in (records, without))
    terms = records[0]["settings"]["terms"]
    return f"{split} {metric} with {terms}: {with_it:.4f}; with no bias term: {bare:.4f}"


def ending(folder: Path, model: str, complete: Sequence[Path]) -> str:
    """The last line of a command: where everything is, what was complete before, and what one does next."""
    parts = [f"wrote {folder}"]
    if complete:
        parts.append(f"{', '.join(path.name for path in complete)} was complete before, and is as it was")
    if found := sorted(folder.glob(f"seed-*/{ADAPTER}")):
        parts.append(f"the adapter is in {found[0]}: minibeft merge {found[0]} {model} OUT merges it")
    return "; ".join(parts)


@contextmanager
def seeds_in(folder: Path, settings: Settings) -> Iterator[None]:
    """Hold the folder of these settings' seeds for this process; BadInput when its seeds.json has other settings."""
    with held(folder):
        given = {n: value for n, value in settings.as_json().items() if value is not None and n not in ("seed", *LOCAL)}
        require_seeds(folder, {"settings": given, "digests": {}})
        yield


def require_seeds(folder: Path, mine: dict[str, Any]) -> None:
    """BadInput when the folder's seeds.json is of other settings or digests than these."""
    if (folder / SEEDS).is_file():
        require_same(folder, read_shared(folder / SEEDS), mine, "run")


def save_seeds(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write seeds.json: what the runs share, each seed's last epoch, and the command and machine of the last run, even
    if that run was complete before; and the curves, if matplotlib is installed."""
    shared = {name: value for name, value in records[0]["settings"].items() if name != "seed"}
    last = [{"seed": record["settings"]["seed"]} | record["epochs"][-1] for record in records]
    made = {name: records[-1][name] for name in ("command", "date", "versions", "machine")}
    mine = {"settings": shared, "digests": records[0]["digests"]}
    require_seeds(folder, mine)
    write_json(folder / SEEDS, mine | {"last": last} | made)
    if can_draw():
        curves = [record["epochs"] for record in records]
        write(folder / CURVES, as_png(lambda figure: draw_curves(figure, curves), size=(8, 3)))
