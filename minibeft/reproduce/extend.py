"""A table's record with more seeds than it had: on another machine, or where the folder of its runs is gone.

The seeds that it has are taken from it, not run again, and each row's own rate is the one that was found there. Rows
are compared seed by seed (statistics.py), so both sides of a comparison come from one machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minibeft.checkpoints.tensors import read_json
from minibeft.errors import BadInput
from minibeft.reproduce.plan import Search, Table, cells_of
from minibeft.reproduce.plots import plots
from minibeft.reproduce.report import by_regime, grids
from minibeft.reproduce.series import Series
from minibeft.reproduce.statistics import least_p
from minibeft.reproduce.summary import VARIED, verdicts
from minibeft.show.record import MADE, made_by
from minibeft.training.records import require_same

Record = dict[str, Any]
# What runs of a cell must share besides the settings of the whole table.
SHARED = ("learning_rate", "examples", "epochs")
# What a cell has of each seed.
JOINED = ("scores", "runs")


class Earlier:
    """A record in a file, to which these seeds are to be added; BadInput if it is another table's, or has one of them.

    searches  its searches for each row's own rate
    shared    of each cell, what its runs share
    """

    def __init__(self, file: Path, table: Table, seeds: Sequence[int]):
        self.file, self.table, self.seeds, self.record = file, table, seeds, read_json(file)
        if not table.rows or table.name == "ranking":
            raise BadInput(f"--extend {file}: goes with tables whose rows are compared, not with {table.name}")
        if self.record.get("table") != table.name:
            raise BadInput(f"{file}: holds no record of {table.name}; give the one that reproduce wrote")
        try:
            self.shared, self.searches = self.try_all(), self.searched()
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise BadInput(f"{file}: is damaged, or another version's; run the table again without --extend") from error
        if twice := sorted({*self.record["seeds"]} & {*seeds}):
            raise BadInput(f"{file}: has seed {twice[0]} already; give --seeds that it does not have")

    def try_all(self) -> dict[tuple[str, str, str], list[Any]]:
        """What each cell's runs share, after a trial of all that is needed later, so that none fails after hours."""
        cells, seeds = self.record["cells"], self.record["seeds"]
        counted = all(len(cell[part]) == len(seeds) for cell in cells for part in JOINED)
        if not counted or not all(type(seed) is int for seed in seeds):
            raise ValueError("each cell has a score and a run for each seed")
        as_many = [cell | {"scores": [0.0 for _ in self.seeds], "runs": []} for cell in cells]
        measured = {cell["regime"]: self.record["importance"][cell["regime"]] for cell in cells if self.table.ranked}
        made_by(self.with_more(self.record | {"seeds": [*self.seeds], "cells": as_many, "importance": measured}))
        grids(self.record)
        plots(self.record)
        runs = self.record["runs"]
        return {key_of(cell): [runs[cell["runs"][0]][name] for name in SHARED] for cell in cells}

    def searched(self) -> list[Search]:
        """The record's searches, as of this table's rows."""
        rows = {row.name: row for row in self.table.rows}
        return [
            Search(rows[one["row"]], regime, tuple((rate, score) for rate, score in one["scores"]))
            for regime, searches in by_regime(self.record).items()
            for one in searches
        ]

    def require_fits(self, series: Series) -> None:
        """BadInput unless model, data, settings and cells are those of the record."""
        model = "model"  # its path may be another here; its digest says which it is
        mine = {name: value for name, value in series.shared.items() if name not in (*VARIED, model)}
        require_same(self.file, self.record, {"settings": mine, "digests": series.digests[False]}, "reproduction")
        expected = {}
        for row, rate, runs in cells_of(series.base, self.table, self.searches, self.seeds):
            run = series.resolved(runs[0])
            expected[row.name, run.regime, rate] = [getattr(run, name) for name in SHARED]
        for where in {**expected, **self.shared}:
            if expected.get(where) != self.shared.get(where):
                was, now, names = self.shared.get(where), expected.get(where), ", ".join(SHARED)
                raise BadInput(f"{self.file}: {' '.join(where)} rate: {names} are {was} there, {now} here")

    def with_more(self, more: Record) -> Record:
        """The record joined with that of further seeds; what depends on all seeds is computed again."""
        old, cells = self.record, {key_of(cell): cell for cell in self.record["cells"]}
        seeds, same = old["seeds"] + more["seeds"], [*old["same"], *more["same"]]
        joined = [cell | {part: cells[key_of(cell)][part] + cell[part] for part in JOINED} for cell in more["cells"]]
        importance = {
            regime: {
                measure: {term: old["importance"][regime][measure][term] + scores for term, scores in terms.items()}
                for measure, terms in measures.items()
            }
            for regime, measures in more["importance"].items()
        }
        return more | {
            "seeds": seeds,
            "cells": joined,
            "importance": importance,
            "verdicts": verdicts(self.table, joined),
            "least_p": least_p(len(seeds)),
            "drift": old.get("drift", {}) | more.get("drift", {}),
            "same": same,
            "ok": all(one["ok"] for one in same),
            "runs": dict(sorted((old["runs"] | more["runs"]).items())),
            "extends": {name: old[name] for name in ("seeds", *MADE, "extends") if name in old},
        }


def key_of(cell: Record) -> tuple[str, str, str]:
    """What tells a cell from the others."""
    return cell["row"], cell["regime"], cell["rate"]
