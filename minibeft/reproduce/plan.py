"""Which runs a table needs: its rows, its regimes, and the settings of every cell and seed.

A row's own learning rate is searched on one grid for all rows, judged on held-out training examples, never on dev.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from minibeft.errors import BadInput
from minibeft.models.biases import BIAS_TERMS
from minibeft.training.settings import Settings


@dataclass(frozen=True)
class Row:
    """A row of a table: what trains."""

    name: str
    terms: str
    form: str = "plain"


@dataclass(frozen=True)
class Table:
    """A table of the paper: a run for each row, regime and seed.

    rows     what is run at the protocol's learning rate; empty: the table is only a search over learning rates
    regimes  the regimes that it compares; empty: only the one that the settings name
    tuned    rows whose own learning rates are searched; unless `rows` is empty, they are run at these rates as well
    ordered  pairs of rows, the first of which does better according to the paper
    same     rows whose runs theorem K3 says are the same, where b_k has no effect
    ranked   rows whose order by score the measures of importance are to predict
    """

    name: str
    rows: tuple[Row, ...]
    regimes: tuple[str, ...] = ()
    tuned: tuple[Row, ...] = ()
    ordered: tuple[tuple[str, str], ...] = ()
    same: tuple[str, ...] = ()
    ranked: tuple[Row, ...] = ()

    def of_decoder(self) -> "Table":
        """The table for a decoder: only the rows that train one of b_q, b_k and b_v, or nothing."""
        rows = tuple(row for row in self.rows if row.terms in (*TERMS, "none"))
        ordered = tuple(pair for pair in self.ordered if {*pair} <= {row.name for row in rows})
        return replace(self, rows=rows, ordered=ordered, ranked=(), tuned=tuple(r for r in self.tuned if r in rows))

    def regimes_of(self, base: Settings) -> tuple[str, ...]:
        """Its regimes, from the smallest."""
        return self.regimes or (base.regime,)


TERMS = ("v", "q", "k")
FORMS = ("plain", "lora", "vera", "vera1d", "dora")
PLAIN = tuple(Row(terms, terms) for terms in (*TERMS, "none", "all"))
ALONE = tuple(Row(term, term) for term in BIAS_TERMS)
ORDER = (("v", "q"), ("q", "k"), ("v", "k"))
TABLES = {
    table.name: table
    for table in (
        Table("biases", PLAIN, tuned=PLAIN, ordered=(*ORDER, ("all", "v")), same=("none", "k")),
        Table(
            "reparam",
            tuple(Row(f"{term} {form}", term, form) for form in FORMS for term in TERMS),
            ordered=tuple((f"{a} {form}", f"{b} {form}") for form in FORMS for a, b in ORDER),
            same=("k lora", "k vera", "k vera1d", "k dora"),
        ),
        Table("bias-free", PLAIN[:4], ordered=ORDER, same=("none", "k")),
        Table(
            "regimes",
            tuple(dict.fromkeys((*PLAIN, *ALONE))),
            ("low", "medium", "high"),
            tuned=tuple(row for row in PLAIN if row.name != "k"),  # b_k at its own rate stands in biases
            ordered=(*ORDER, ("all", "v")),
            same=("none", "k"),
            ranked=ALONE,
        ),
        Table(
            "rates",
            (),
            ("low", "medium", "high"),
            tuned=(*(row for row in PLAIN if row.name != "k"), Row("v lora", "v", "lora")),
        ),
        Table("ranking", (Row("all", "all"),)),
    )
}


def find_table(name: str) -> Table:
    """The table of this name, or BadInput with the names there are."""
    if name not in TABLES:
        raise BadInput(f"{name}: is no table; choose among {', '.join(TABLES)}")
    return TABLES[name]


def at(base: Settings, row: Row, **changes: Any) -> Settings:
    """The settings of one run of a row."""
    return replace(base, **({"terms": row.terms, "form": row.form} | changes))


def protocol_runs(base: Settings, table: Table, seeds: Iterable[int]) -> list[Settings]:
    """Every row at the protocol's rate, seed by seed, so that runs finished before an interruption can be compared."""
    regimes = table.regimes_of(base)
    return [at(base, row, regime=regime, seed=seed) for regime in regimes for seed in seeds for row in table.rows]


def search_runs(
    base: Settings, row: Row, regime: str, rates: Iterable[float], *, seeds: Sequence[int], held_out: int
) -> list[Settings]:
    """One row at every rate, judged on training examples that are held out: never on the validation split."""
    changes = {"regime": regime, "held_out": held_out}
    return [at(base, row, learning_rate=rate, seed=seed, **changes) for rate in rates for seed in seeds]


@dataclass(frozen=True)
class Search:
    """The search for a row's own rate. scores: learning rates, each with the task's first metric on the held-out
    examples, the mean over the seeds."""

    row: Row
    regime: str
    scores: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float:
        """The rate of the highest score; of equal ones the lowest."""
        return max(self.scores, key=lambda pair: (pair[1], -pair[0]))[0]


def searched(row: Row, regime: str, runs: Iterable[Settings], records: Mapping[Settings, dict[str, Any]]) -> Search:
    """The search of one row from its finished runs: the scores after the last epoch."""
    scores: dict[float, list[float]] = {}
    for run in runs:
        held_out = records[run]["epochs"][-1]["held_out"]
        scores.setdefault(run.learning_rate or 0.0, []).append(next(iter(held_out.values())))
    return Search(row, regime, tuple((rate, mean(found)) for rate, found in scores.items()))


def own_runs(base: Settings, search: Search, seeds: Iterable[int]) -> list[Settings]:
    """A row at the rate that was found for it."""
    return [at(base, search.row, regime=search.regime, learning_rate=search.best, seed=seed) for seed in seeds]


def cells_of(
    base: Settings, table: Table, searches: Iterable[Search], seeds: Sequence[int]
) -> Iterator[tuple[Row, str, list[Settings]]]:
    """(row, "protocol" or "own", its runs) of every cell: each regime at the protocol's rate, then at each own one."""
    for regime in table.regimes_of(base):
        for row in table.rows:
            yield row, "protocol", [at(base, row, regime=regime, seed=seed) for seed in seeds]
    for search in searches if table.rows else ():
        yield search.row, "own", own_runs(base, search, seeds)


def read_rates(text: str) -> list[float]:
    """[0.0001, 0.004] from "1e-4,4e-3", [] from "none"; BadInput for anything else."""
    if text == "none":
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or len(set(rates)) < len(rates) or not all(0 < rate < 1 for rate in rates):
        raise BadInput(f"--rates {text}: give numbers between 0 and 1, each once, such as 1e-4,4e-3; or none")
    return rates


def name_of(settings: Settings) -> str:
    """A run's folder, from all that differs between the runs of one reproduction."""
    parts = [settings.terms, settings.form, settings.regime, f"{settings.learning_rate:g}"]
    parts += ["held-out"] * bool(settings.held_out)
    parts += [f"eps-{settings.eps:g}"] * (settings.eps != Settings.eps)
    parts += [settings.dtype] * (settings.dtype != Settings.dtype)
    return "-".join([*parts, f"seed-{settings.seed}"])
