"""Run a table of the paper to its end, from where it stands, and write it as a record, as Markdown and as a page."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.reproduce.extend import Earlier
from minibeft.reproduce.plan import Table, at, find_table, own_runs, protocol_runs, search_runs, searched
from minibeft.reproduce.plots import plots
from minibeft.reproduce.ranking import rank_over_seeds, ranking_grids, ranking_plots
from minibeft.reproduce.report import grids
from minibeft.reproduce.same import Same, compare
from minibeft.reproduce.series import Series, open_series
from minibeft.reproduce.summary import key_bias, summarise
from minibeft.show.files import write, write_json
from minibeft.show.grid import Grid
from minibeft.show.page import markdown, page
from minibeft.show.plot import Plot
from minibeft.show.record import made_by
from minibeft.training.loading import family_of
from minibeft.training.settings import Settings

Record = dict[str, Any]


def reproduce(
    table: str,
    base: Settings,
    folder: Path,
    *,
    seeds: Sequence[int],
    rates: Sequence[float] = (),
    held_out: int = 0,
    jobs: int = 1,
    cluster: str | None = None,
    extend: Path | None = None,
) -> tuple[Record, list[Grid]]:
    """Run what the table needs in this folder; returns its record, and the tables to print.

    rates   to search for each row's own rate, judged on `held_out` training examples; empty: only the protocol's rate
    extend  a record of the table, to which these seeds are added; each row's own rate is the one found there
    Writes <table>.json, .md and .html. The record's "ok" is false if two runs that K3 says are the same differ.
    """
    plan = find_table(table)
    if plan.ranked and BODIES[family_of(base.model)].decodes:
        plan = plan.of_decoder()
    earlier = Earlier(extend, plan, seeds) if extend else None
    if earlier or not plan.tuned:
        rates = ()
    if not (plan.rows or rates):
        raise BadInput(f"{table}: is a search over learning rates; give --rates some")
    base = replace(base, regime=plan.regimes_of(base)[-1])
    with open_series(base, folder, held_out=held_out if rates else 0, cluster=cluster) as series:
        if table == "ranking":
            record = rank_over_seeds(series, seeds, jobs=jobs)
        else:
            record = run_rows(plan, series, seeds, rates, held_out, earlier, jobs=jobs)
        tables, pictures = shown(record)
        title, note = f"{table}: {base.model} on {base.task}", made_by(record)
        write_json(folder / f"{table}.json", record)
        write(folder / f"{table}.md", markdown(title, tables, note).encode())
        write(folder / f"{table}.html", page(title, tables, pictures, note).encode())
        return record, tables


def shown(record: Record) -> tuple[list[Grid], list[Plot]]:
    """A record's tables and plots."""
    if record["table"] == "ranking":
        return ranking_grids(record), ranking_plots(record)
    return grids(record), plots(record)


def run_rows(
    plan: Table,
    series: Series,
    seeds: Sequence[int],
    rates: Sequence[float],
    held_out: int,
    earlier: Earlier | None,
    *,
    jobs: int,
) -> Record:
    """Every row at the protocol's rate, then at its own, searched on held-out examples with the first seed or taken
    from the earlier record; for a table without rows only the search, with every seed."""
    if earlier:
        earlier.require_fits(series)
    protocol = protocol_runs(series.base, plan, seeds)
    searching = seeds[:1] if plan.rows else seeds
    grid = {
        (row, regime): search_runs(series.base, row, regime, rates, seeds=searching, held_out=held_out)
        for regime in plan.regimes_of(series.base)
        for row in (plan.tuned if rates else ())
    }
    series.run([*protocol, *(run for runs in grid.values() for run in runs)], jobs=jobs)
    searches = earlier.searches if earlier else [searched(*where, runs, series.records) for where, runs in grid.items()]
    if plan.rows:
        series.run([run for search in searches for run in own_runs(series.base, search, seeds)], jobs=jobs)
    null = key_bias(series.base.model)["status"] == "null"
    record = summarise(plan, series, seeds, searches, list(compared(plan, series)) if null and plan.same else [])
    return earlier.with_more(record) if earlier else record


def compared(plan: Table, series: Series) -> Iterator[Same]:
    """Every two finished runs that K3 says are one: all settings the same but for the row, both rows in plan.same."""
    rows = {row.name: row for row in plan.rows}
    first, *others = (rows[name] for name in plan.same)
    for run in [run for run in series.records if (run.terms, run.form) == (first.terms, first.form)]:
        for other in others:
            twin = at(run, other)
            if twin in series.records:
                names, records = (first.name, other.name), (series.records[run], series.records[twin])
                yield compare(names, records, (series.place(run), series.place(twin)))
