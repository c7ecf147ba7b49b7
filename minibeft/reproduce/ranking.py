"""The paper's Fig. 2: how three measures rank the bias terms, over seeds, and what b_k's drift under Adam is worth."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from rich.console import Console

from minibeft.errors import BadInput
from minibeft.reproduce import paper
from minibeft.reproduce.plots import Plot, as_svg, style
from minibeft.reproduce.report import Grid, drift_grid, seeds, spread_of
from minibeft.reproduce.series import Series
from minibeft.reproduce.summary import key_bias, shared_settings
from minibeft.show.record import provenance
from minibeft.training.rank import Scores, drift, drifting, heat_maps, scores_of

Record = dict[str, Any]
TITLES = {"mag_angle": "Mag+Angle", "magnitude": "Magnitude", "fisher": "Fisher"}


def rank_over_seeds(series: Series, seeds: Sequence[int], *, jobs: int, console: Console) -> Record:
    """The record: for each measure the scores of every seed, {term: [layer, …]}; b_k's drift with the first seed."""
    together = [replace(series.base, terms="all", seed=seed) for seed in seeds]
    alone = drifting(replace(series.base, seed=seeds[0]))
    series.run([*together, *alone.values()], jobs=jobs, console=console)
    by_seed = [scores_of(run, series.place(run)) for run in together]
    first = series.records[together[0]]
    return {
        "table": "ranking",
        "model": series.base.model,
        "task": series.base.task,
        "seeds": list(seeds),
        "settings": shared_settings(first),
        "digests": first["digests"],
        "scores": {measure: [scores[measure] for scores in by_seed] for measure in TITLES},
        "key_bias": key_bias(series.base.model),
        "drift": {name: drift(run, series.place(run)) for name, run in alone.items()},
        "ok": True,
    } | provenance()


def ranking_grids(record: Record) -> list[Grid]:
    """The means over the layers beside the paper's, how alike the orders are, and the drift of b_k."""
    return [scores_grid(record), orders_grid(record), drift_grid(record)]


def over_layers(record: Record, measure: str, term: str) -> list[float]:
    """A term's score, the mean over the layers, of every seed."""
    return [mean(scores[term]) for scores in record["scores"][measure]]


def order_of(record: Record, measure: str) -> list[str]:
    """The terms from the most to the least important, by the mean over layers and seeds."""
    return sorted(record["scores"][measure][0], key=lambda term: -mean(over_layers(record, measure, term)))


def scores_grid(record: Record) -> Grid:
    """Each term's score in each measure, in the order of Mag+Angle."""
    paper_too = record["task"] == paper.TASK
    header, rows = ["term"], []
    for measure, title in TITLES.items():
        header += [f"{title}, paper"] * (paper_too and measure in paper.RANKING) + [f"{title}, here"]
    for term in order_of(record, "mag_angle"):
        row = [term]
        for measure in TITLES:
            if paper_too and measure in paper.RANKING:
                row.append(f"{paper.RANKING[measure][term]:.3f}")
            row.append(spread_of(over_layers(record, measure, term)))
        rows.append(tuple(row))
    note = f"mean over the layers of {record['model']}, ± standard deviation over {seeds(record)}"
    return Grid("importance: the paper and here", tuple(header), rows, note)


def orders_grid(record: Record) -> Grid:
    """The order that each measure gives, and Spearman's correlation with the paper's."""
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise BadInput("comparing orders needs scipy; run: pip install 'minibeft[train]'") from error
    rows = []
    for measure, title in TITLES.items():
        here = order_of(record, measure)
        known = [term for term in paper_order(measure) if term in here]
        rho = float(spearmanr([known.index(term) for term in here if term in known], range(len(known)))[0])  # type: ignore
        rows.append((title, " > ".join(known), " > ".join(here), f"{rho:.2f}"))
    return Grid("the order of the terms", ("measure", "paper", "here", "Spearman's ρ"), rows)


def paper_order(measure: str) -> list[str]:
    """The paper's order, most important first."""
    figures = paper.RANKING.get(measure)
    return list(paper.FISHER_ORDER) if figures is None else sorted(figures, key=lambda term: -figures[term])


def over_seeds(by_seed: Sequence[Scores]) -> Scores:
    """The mean of each term's score in each layer."""
    layers = {term: zip(*(scores[term] for scores in by_seed), strict=True) for term in by_seed[0]}
    return {term: [mean(values) for values in found] for term, found in layers.items()}


def ranking_plots(record: Record) -> list[Plot]:
    """The heat map of the means over the seeds."""
    with style():
        svg = as_svg(heat_maps({m: over_seeds(by_seed) for m, by_seed in record["scores"].items()}), "heat")
    orders = "; ".join(f"{TITLES[m]}: {' > '.join(order_of(record, m))}" for m in TITLES)
    return [Plot("Importance by layer", svg, f"Heat maps of importance by term and layer. {orders}.")]
