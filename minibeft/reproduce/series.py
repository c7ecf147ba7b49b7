"""A folder of runs that belong together: begun once, resumed as often as needed, nothing run twice."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from minibeft.reproduce.plan import name_of
from minibeft.show.files import held, write_json
from minibeft.show.progress import progress
from minibeft.training.loading import load
from minibeft.training.precision import settled
from minibeft.training.records import RECORD, read_record, read_shared, require_same
from minibeft.training.runs import begun
from minibeft.training.seeds import LOCAL, finetune_all
from minibeft.training.settings import Settings, resolve

SERIES = "series.json"
# What the runs of a series may differ in: what a table compares.
COMPARED = ("terms", "form", "regime", "learning_rate", "held_out", "seed")

Record = dict[str, Any]


class Series:
    """Runs that share the model, the data and all settings but the compared ones; each lies in folder/runs/<name>.

    base     their settings, with the protocol's learning rate and eps
    digests  of model and data, by whether examples are held out
    shared   the settings that all have in common, as the folder states them
    resolved  a run's settings with the protocol's values where none are given
    cluster  the address of the Dask scheduler on whose workers they run; None: they run here
    """

    def __init__(
        self,
        base: Settings,
        folder: Path,
        digests: dict[bool, dict[str, str]],
        shared: Record,
        resolved: Callable[[Settings], Settings],
        cluster: str | None,
    ):
        self.base, self.folder, self.digests, self.shared, self.cluster = base, folder, digests, shared, cluster
        self.resolved = resolved
        self.records: dict[Settings, Record] = {}

    def run(self, runs: Iterable[Settings], *, jobs: int) -> None:
        """Bring these runs to their end, `jobs` at a time and in this order; with one job, runs that can share their
        matrix products train together. Finished runs are only read."""
        runs = list(dict.fromkeys(runs))
        self.records |= {settings: found for settings in runs if (found := self.finished(settings))}
        left = [settings for settings in runs if settings not in self.records]
        work = [(name_of(settings), settings, self.place(settings)) for settings in left]
        sizes, before = map(self.size, left), map(self.size, (run for run in runs if run in self.records))
        how: dict[str, Any] = {"jobs": jobs, "stack": True, "cluster": self.cluster}
        with progress() as lines:
            found = finetune_all(work, lines, sizes=[*sizes], before=[*before], **how)
        self.records |= dict(zip(left, found, strict=True))

    def size(self, settings: Settings) -> int:
        """How many examples a run trains on, over all its epochs."""
        run = self.resolved(settings)
        return (run.examples or 0) * (run.epochs or 0)

    def place(self, settings: Settings) -> Path:
        """The run's folder."""
        return self.folder / "runs" / name_of(settings)

    def finished(self, settings: Settings) -> Record | None:
        """The record of a run that is complete, without loading the model; anything else is for finetune to judge."""
        file = self.place(settings) / RECORD
        record = read_record(file.parent) if file.is_file() else {}
        given = {n: value for n, value in settings.as_json().items() if value is not None and n not in LOCAL}
        same = record.get("digests") == self.digests[bool(settings.held_out)]
        same = same and all(record.get("settings", {}).get(name, value) == value for name, value in given.items())
        return record if same and record.get("complete") else None


@contextmanager
def open_series(base: Settings, folder: Path, *, held_out: int, cluster: str | None = None) -> Iterator[Series]:
    """The series in this folder, begun or continued, and closed to every other process meanwhile.

    base      the settings in the largest regime: if there are too few examples, that is noticed before the first run
    held_out  how many more examples are to judge a search; 0: there is no search
    BadInput, with nothing overwritten, for a folder that holds another series or anything else, or that is in use.
    """
    begun(folder, SERIES)  # another's folder is refused before a model is loaded
    base = settled(base, folder)
    loaded = load(base)
    digests, resolved = {False: loaded.digests}, loaded.settings
    if held_out:
        digests[True] = load(replace(base, held_out=held_out)).digests
    with held(folder):
        shared = shared_by(base, resolved)
        mine = {"settings": shared, "digests": digests[False]}
        if begun(folder, SERIES):
            require_same(folder, read_shared(folder / SERIES), mine, "reproduction")
        else:
            write_json(folder / SERIES, mine)
        protocol = replace(base, learning_rate=resolved.learning_rate, eps=resolved.eps)

        def resolved_run(run: Settings) -> Settings:
            return resolve(run, loaded.task, len(loaded.train), loaded.model.config)

        yield Series(protocol, folder, digests, shared, resolved_run, cluster)


def shared_by(base: Settings, resolved: Settings) -> Record:
    """What all runs of a series have in common, with the protocol's values where none were given; but examples and
    epochs, which depend on form and regime, stay as they were given."""
    asked = {"examples": base.examples, "epochs": base.epochs}
    return {n: value for n, value in resolved.as_json().items() if n not in (*COMPARED, *LOCAL)} | asked
