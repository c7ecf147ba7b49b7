"""A record's plots: over the training examples, over learning rates, the learning curves, and the paper's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import TYPE_CHECKING, Any

from minibeft.reproduce import paper
from minibeft.reproduce.report import by_regime, judged, several, sizes
from minibeft.show.plot import Plot, along_epochs, as_svg, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
# What a legend calls the rows; the row "none" trains only the head, and in a decoder nothing.
LEGEND = {"v": "b_v", "q": "b_q", "k": "b_k", "none": "no bias", "all": "all biases"}


def plots(record: Record) -> list[Plot]:
    """The score over the training examples, where there are several regimes; the held-out score over the learning rate;
    and of runs of more than one epoch the learning curves at each rate."""
    found = [over_regimes(record)] if several(record) and record["cells"] else []
    for regime in by_regime(record):
        found += [over_rates(record, regime), *over_rates_and_epochs(record, regime)]
    for regime, rate in dict.fromkeys((cell["regime"], cell["rate"]) for cell in record["cells"]):
        cells = [cell for cell in record["cells"] if (cell["regime"], cell["rate"]) == (regime, rate)]
        if len(curve(record, cells[0]["runs"][0])) > 1:
            found.append(over_epochs(record, cells))
    beside = (record["table"], record["task"]) == ("biases", paper.TASK)
    return [*found, official()] if beside else found


def over_rates(record: Record, regime: str) -> Plot:
    """The held-out score of every row at every rate."""
    searches = by_regime(record)[regime]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        rates = [rate for rate, _ in searches[0]["scores"]]
        for s in searches:
            label = named_in_full(s["row"])
            axes.plot(rates, [100 * score for _, score in s["scores"]], label=label, **below(s["row"]))
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"held-out {record['metric']} (%)")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_xticks([], minor=True)
        axes.legend()

    best = "; ".join(f"{s['row']} best at {s['best']:g}" for s in searches)
    where = several(record)
    title = "Over the learning rate" + f", {regime} regime" * where
    return Plot(
        title, as_svg(draw, "rates" + f"-{regime}" * where), f"Held-out {record['metric']} by learning rate: {best}."
    )


def over_rates_and_epochs(record: Record, regime: str) -> list[Plot]:
    """The held-out score by epoch at every rate, one panel per row; none for runs of one epoch. Mean over the seeds."""
    found = {s["row"]: judged(record, s["row"], regime) for s in by_regime(record)[regime]}
    if all(len(scores) == 1 for rates in found.values() for by_seed in rates.values() for scores in by_seed):
        return []
    styles, ends = looks(f"{rate:g}" for rates in found.values() for rate in rates), []

    def draw(figure: "Figure") -> None:
        with panels(figure, len(found), f"held-out {record['metric']} (%)", title="learning rate") as grid:
            for axes, (row, rates) in zip(grid, found.items(), strict=True):
                for rate, by_seed in rates.items():
                    middle, name = [100 * mean(at) for at in zip(*by_seed, strict=True)], f"{rate:g}"
                    axes.plot(range(1, len(middle) + 1), middle, markevery=marked(middle), label=name, **styles[name])
                    ends.append(f"{row} at {name} ends at {middle[-1]:.1f}")
                along_epochs(axes, title=named_in_full(row))

    title = f"Over the learning rate and the epochs, {regime} regime"
    return [Plot(title, as_svg(draw, f"rates-epochs-{regime}"), f"{title}: {'; '.join(ends)}.")]


def over_regimes(record: Record) -> Plot:
    """The score after the last epoch by the number of training examples, mean over the seeds with their range; a panel
    for the protocol's rate and one for each row's own."""
    rates = list(dict.fromkeys(cell["rate"] for cell in record["cells"]))
    numbers, styles, ends = [*sizes(record).values()], looks(cell["row"] for cell in record["cells"]), []

    def draw(figure: "Figure") -> None:
        with panels(figure, len(rates), f"{record['metric']} (%)") as grid:
            for axes, rate in zip(grid, rates, strict=True):
                for row, cells in by_row(record, rate).items():
                    middle, low, high = ([100 * f(cell["scores"]) for cell in cells] for f in (mean, min, max))
                    axes.plot(numbers, middle, label=legend(row), **styles[row], **below(row))
                    axes.fill_between(numbers, low, high, color=styles[row]["color"], alpha=0.1, linewidth=0)
                    ends.append(f"{row}, {named(rate)}: {', '.join(f'{value:.1f}' for value in middle)}")
                axes.set(xscale="log", xlabel="training examples", title=named(rate))
                axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
                axes.set_xticks([], minor=True)

    title = "Over the training examples"
    return Plot(title, as_svg(draw, "regimes"), f"{title}, {'; '.join(ends)}.")


def by_row(record: Record, rate: str) -> dict[str, list[Record]]:
    """Row → its cells at this rate, from the smallest regime."""
    found: dict[str, list[Record]] = {}
    for cell in record["cells"]:
        if cell["rate"] == rate:
            found.setdefault(cell["row"], []).append(cell)
    return found


def named(rate: str) -> str:
    """What a cell's rate is called."""
    return "protocol rate" if rate == "protocol" else "own rate"


def over_epochs(record: Record, cells: Sequence[Record]) -> Plot:
    """The validation score by epoch, the seeds' mean and range, one panel per form, of one regime and rate."""
    regime, rate = cells[0]["regime"], cells[0]["rate"]
    forms = list(dict.fromkeys(form_of(cell["row"]) for cell in cells))
    last = []

    def draw(figure: "Figure") -> None:
        with panels(figure, len(forms), f"{record['metric']} (%)") as grid:
            for axes, form in zip(grid, forms, strict=True):
                for cell in (cell for cell in cells if form_of(cell["row"]) == form):
                    curves = [curve(record, run) for run in cell["runs"]]
                    middle, low, high = ([100 * f(at) for at in zip(*curves, strict=True)] for f in (mean, min, max))
                    epochs, row = range(1, len(middle) + 1), cell["row"]
                    (line,) = axes.plot(epochs, middle, markevery=marked(middle), label=legend(row), **below(row))
                    axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
                    last.append(f"{row} ends at {middle[-1]:.1f}")
                along_epochs(axes, title=form)

    title = f"Over the epochs, {regime} regime, {named(rate)}"
    svg = as_svg(draw, f"{regime}-{rate}")
    return Plot(title, svg, f"{title}: {'; '.join(last)}.")


@contextmanager
def panels(figure: "Figure", number: int, ylabel: str, title: str | None = None) -> Iterator[Sequence[Any]]:
    """Panels side by side that share the y axis, below one legend, which names the lines of the first panel."""
    grid = figure.subplots(1, number, sharey=True, squeeze=False)[0]
    yield grid
    grid[0].set(ylabel=ylabel)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, title=title, loc="outside upper center", ncols=min(5, len(names)))


def marked(values: Sequence[float]) -> int:
    """The n such that every n-th point of a line gets a marker, and at most six do."""
    return -(-len(values) // 6)


def below(row: str) -> dict[str, Any]:
    """How to draw the run without biases: broad and underneath, so that a line that coincides with it shows (K3)."""
    return {"linewidth": 5, "markersize": 10, "alpha": 0.5, "zorder": 1} if row == "none" else {}


def legend(row: str) -> str:
    """The name of a row's line: only its term, because each form has a panel of its own."""
    term = row.split()[0]
    return LEGEND.get(term, f"b of {term}")


def named_in_full(row: str) -> str:
    """The name of a row with its form, where several forms share a plot."""
    return f"{legend(row)} {form_of(row)}".strip()


def official() -> Plot:
    """The paper's own learning curves."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for term, scores in paper.CURVES.items():
            axes.plot(range(1, len(scores) + 1), [100 * x for x in scores], label=legend(term))
        along_epochs(axes, ylabel="accuracy (%)")
        axes.legend()

    last = "; ".join(f"{term} ends at {100 * scores[-1]:.1f}" for term, scores in paper.CURVES.items())
    title = "The paper's own run over the epochs: BERT-base-cased, seed 0"
    return Plot(title, as_svg(draw, "paper"), f"{title}: {last}.")


def form_of(row: str) -> str:
    """What comes after the term in a row's name: panels hold the rows of one form."""
    return row.partition(" ")[2]


def curve(record: Record, run: str) -> list[float]:
    """A run's metric by epoch, on the first split that was evaluated."""
    split = next(value for value in record["runs"][run].values() if isinstance(value, dict))
    return next(iter(split.values()))
