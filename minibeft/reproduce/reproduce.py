"""Run a table of the paper: first at the protocol's rate, then at each row's own, found on held-out examples."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minibeft.reproduce.plan import at, find_table, protocol_runs, search_runs
from minibeft.reproduce.series import Series, open_series
from minibeft.reproduce.tuning import best_rate
from minibeft.training.settings import Settings


def reproduce(
    table: str,
    base: Settings,
    folder: Path,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    held_out: int,
    jobs: int,
    console: Console,
) -> Series:
    """Bring every run of the table to its end in this folder, from where it stands."""
    plan = find_table(table)
    with open_series(base, folder) as series:
        protocol = protocol_runs(base, plan, seeds)
        searched = {
            row: search_runs(base, row, rates if plan.tuned else (), seed=seeds[0], held_out=held_out)
            for row in plan.rows
        }
        series.run([*protocol, *(run for runs in searched.values() for run in runs)], jobs=jobs, console=console)
        if plan.tuned and rates:
            best = {row: best_rate(runs, series.records) for row, runs in searched.items()}
            tuned = [at(base, row, learning_rate=best[row], seed=seed) for seed in seeds for row in plan.rows]
            series.run(tuned, jobs=jobs, console=console)
        return series
