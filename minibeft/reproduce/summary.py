"""The record of a table: every run's metrics by epoch, the cells, the verdicts; all that its pages are drawn from."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from minibeft.certificate.certify import certify
from minibeft.checkpoints.find import find
from minibeft.checkpoints.tensors import read_json
from minibeft.reproduce.measures import drift, importance_of
from minibeft.reproduce.plan import Row, Search, Table, at, cells_of, name_of
from minibeft.reproduce.same import Same, metrics_of
from minibeft.reproduce.series import LOCAL, Series
from minibeft.reproduce.statistics import least_p, paired
from minibeft.show.record import provenance
from minibeft.training.pretrain import PRETRAINING
from minibeft.training.settings import Settings

Record = dict[str, Any]


# What the runs of a table may differ in.
VARIED = ("terms", "form", "regime", "learning_rate", "held_out", "seed", "examples", "epochs")


def summarise(
    table: Table, series: Series, seeds: Sequence[int], searches: Sequence[Search], same: Sequence[Same]
) -> Record:
    """The table's record from its finished runs."""
    cells = [cell_of(series, *planned) for planned in cells_of(series.base, table, searches, seeds)]
    first = next(iter(series.records.values()))
    return heading(table.name, series, seeds) | {
        "metric": metric_of(first["epochs"][-1])[1],
        "cells": cells,
        "searches": [{"row": s.row.name, "regime": s.regime, "best": s.best, "scores": s.scores} for s in searches],
        "importance": importance(table, series, seeds),
        "verdicts": verdicts(table, cells),
        "least_p": least_p(len(seeds)),
        "drift": drifts(table, series, seeds),
        "same": [one._asdict() | {"ok": one.ok} for one in same],
        "ok": all(one.ok for one in same),
        "runs": dict(sorted((name_of(settings), compact(run)) for settings, run in series.records.items())),
    }


def heading(table: str, series: Series, seeds: Sequence[int]) -> Record:
    """What every record says first: what was run on what, and by what."""
    first = next(iter(series.records.values()))
    return {
        "table": table,
        "model": series.base.model,
        "task": series.base.task,
        "seeds": list(seeds),
        "settings": shared_settings(first),
        "digests": first["digests"],
        "key_bias": key_bias(series.base.model),
        **origin(series.base.model),
        **provenance(),
    }


def drifts(table: Table, series: Series, seeds: Sequence[int]) -> Record:
    """How far b_k moved, and what that does, for bias-free models: they have no head whose values could be compared."""
    if table.name != "bias-free":
        return {}
    runs = {f"seed {seed}": at(series.base, Row("k", "k"), seed=seed) for seed in seeds}
    return {name: drift(run, series.place(run)) for name, run in runs.items()}


def importance(table: Table, series: Series, seeds: Sequence[int]) -> Record:
    """Regime → measure → term → its score for every seed, the mean over the layers, from training all biases."""
    found: Record = {}
    for regime in table.regimes_of(series.base) if table.ranked else ():
        runs = [at(series.base, Row("all", "all"), regime=regime, seed=seed) for seed in seeds]
        by_seed = importance_of([(run, series.place(run)) for run in runs])
        found[regime] = {
            measure: {row.terms: [mean(scores[measure][row.terms]) for scores in by_seed] for row in table.ranked}
            for measure in by_seed[0]
        }
    return found


def key_bias(model: str) -> Record:
    """What b_k can do in this model: where it is null, K3 holds and is enforced."""
    verdict = certify(model).verdict("k")
    return {"status": verdict.status, "theorem": verdict.theorem, "reason": verdict.reason}


def origin(model: str) -> Record:
    """How the checkpoint came to be, where it is one of training/pretrain.py."""
    file = find(model) / PRETRAINING
    return {"pretraining": read_json(file)} if file.is_file() else {}


def shared_settings(run: Record) -> Record:
    """What all runs of a table have in common, but for where the data lie and the machine."""
    return {name: value for name, value in run["settings"].items() if name not in (*VARIED, *LOCAL)}


def cell_of(series: Series, row: Row, rate: str, runs: Sequence[Settings]) -> Record:
    """A cell: the last epoch's metric over the seeds. rate: "protocol", or the row's "own"."""
    records = [series.records[run] for run in runs]
    return {
        "row": row.name,
        "regime": runs[0].regime,
        "rate": rate,
        "learning_rate": runs[0].learning_rate,
        "numbers": records[0]["trained"]["count"],
        "scores": [last_score(record) for record in records],
        "runs": [name_of(run) for run in runs],
    }


def last_score(record: Record) -> float:
    """The task's first metric on the first split that was evaluated, after the last epoch."""
    split, metric = metric_of(record["epochs"][-1])
    return record["epochs"][-1][split][metric]


def metric_of(epoch: Record) -> tuple[str, str]:
    """(split, metric) that a table reports."""
    split, metrics = next(iter(metrics_of(epoch).items()))
    return split, next(iter(metrics))


def verdicts(table: Table, cells: Sequence[Record]) -> list[Record]:
    """For each regime and rate, how each pair of rows that the paper orders stands here."""
    found = []
    for regime, rate in dict.fromkeys((cell["regime"], cell["rate"]) for cell in cells):
        scores = {c["row"]: c["scores"] for c in cells if (c["regime"], c["rate"]) == (regime, rate)}
        for first, second in table.ordered:
            test = paired(scores[first], scores[second]) if {first, second} <= scores.keys() else None
            if test is not None:
                found.append({"first": first, "second": second, "regime": regime, "rate": rate} | asdict(test))
    return found


def compact(record: Record) -> Record:
    """A run in a few lines: what is the same in every epoch is said once, the rest as columns over the epochs."""
    epochs = record["epochs"]
    columns: Record = {"loss": [float(f"{epoch['loss']:.6g}") for epoch in epochs]}
    for split, metrics in metrics_of(epochs[0]).items():
        columns[split] = {metric: [float(f"{e[split][metric]:.6g}") for e in epochs] for metric in metrics}
    varied = {name: record["settings"][name] for name in VARIED}
    return varied | {"seconds": round(sum(epoch["seconds"] for epoch in epochs))} | columns
