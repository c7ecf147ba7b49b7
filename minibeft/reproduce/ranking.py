"""The paper's Fig. 2: how three measures rank the bias terms, over seeds, and what b_k's drift under Adam is worth."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from minibeft.reproduce import paper
from minibeft.reproduce.measures import Scores, drift, drifting, importance_of
from minibeft.reproduce.report import TITLES, drift_grid, seeds, spread_of
from minibeft.reproduce.series import Series
from minibeft.reproduce.statistics import correlations
from minibeft.reproduce.summary import heading
from minibeft.show.grid import Grid
from minibeft.show.plot import Plot, as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]


def rank_over_seeds(series: Series, seeds: Sequence[int], *, jobs: int) -> Record:
    """The record: for each measure the scores of every seed, {term: [layer, …]}; b_k's drift with the first seed."""
    together = [replace(series.base, terms="all", seed=seed) for seed in seeds]
    alone = drifting(replace(series.base, seed=seeds[0]))
    series.run([*together, *alone.values()], jobs=jobs)
    by_seed = importance_of([(run, series.place(run)) for run in together])
    return heading("ranking", series, seeds) | {
        "scores": {measure: [scores[measure] for scores in by_seed] for measure in TITLES},
        "drift": {name: drift(run, series.place(run)) for name, run in alone.items()},
        "ok": True,
    }


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
    rows = []
    for measure, title in TITLES.items():
        here = order_of(record, measure)
        known = [term for term in paper_order(measure) if term in here]
        places = [[float(known.index(term))] for term in here if term in known]
        (rho,) = correlations(places, [[float(place)] for place in range(len(known))])
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
    """The heat maps of the means over the seeds."""
    scores = {measure: over_seeds(by_seed) for measure, by_seed in record["scores"].items()}
    layers = len(next(iter(scores["fisher"].values())))
    size = 1.5 + 0.55 * layers, 3.2 * len(scores)
    svg = as_svg(lambda figure: heat_maps(figure, scores, layers), "heat", size)
    orders = "; ".join(f"{TITLES[m]}: {' > '.join(order_of(record, m))}" for m in TITLES)
    return [Plot("Importance by layer", svg, f"Heat maps of importance by term and layer. {orders}.")]


def heat_maps(figure: "Figure", scores: dict[str, Scores], layers: int) -> None:
    """One panel per measure: terms from most to least important, one column per layer and one for the mean."""
    for axes, (measure, by_term) in zip(figure.subplots(len(scores), 1), scores.items(), strict=True):
        terms = sorted(by_term, key=lambda term: -mean(by_term[term]))
        rows = [[*by_term[term], mean(by_term[term])] for term in terms]
        image = axes.imshow(rows, cmap="Blues", aspect="auto")
        axes.set(title=TITLES[measure], yticks=range(len(terms)), yticklabels=terms, xticks=range(layers + 1))
        axes.set_xticklabels([*map(str, range(1, layers + 1)), "mean"])
        for row, values in enumerate(rows):
            axes.text(layers + 0.6, row, f"{values[-1]:.3g}", va="center", fontsize=8)
        figure.colorbar(image, ax=axes, pad=0.12)
