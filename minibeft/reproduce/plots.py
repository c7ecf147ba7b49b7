"""A record's plots as SVG that takes the colour of the text around it, so that it reads on light and on dark pages."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean
from typing import Any, NamedTuple

from minibeft.errors import BadInput
from minibeft.reproduce import paper

Record = dict[str, Any]
# Stands for the text's colour until the SVG is written; matplotlib knows no currentColor.
INK = "#010203"
# Okabe and Ito's colours, told apart by colour-blind readers, in middle tones; with markers, for print.
STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"))


class Plot(NamedTuple):
    """A picture and what it shows, in words."""

    title: str
    svg: str
    alt: str


def plots(record: Record) -> list[Plot]:
    """Accuracy over the learning rate, and the learning curves at each rate."""
    with style():
        found = [over_rates(record)] if record["searches"] else []
        for regime, rate in dict.fromkeys((cell["regime"], cell["rate"]) for cell in record["cells"]):
            found.append(over_epochs(record, regime, rate))
        beside = (record["table"], record["task"]) == ("biases", paper.TASK)
        return [*found, official()] if beside else found


def over_rates(record: Record) -> Plot:
    """The held-out score of every row at every rate."""
    figure = new_figure()
    axes = figure.subplots()
    rates = [rate for rate, _ in record["searches"][0]["scores"]]
    for (colour, marker), s in zip(STYLES, record["searches"], strict=False):
        scores = [100 * score for _, score in s["scores"]]
        axes.plot(rates, scores, color=colour, marker=marker, label=s["row"], **below(s["row"]))
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"held-out {record['metric']} (%)")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.legend()
    best = "; ".join(f"{s['row']} best at {s['best']:g}" for s in record["searches"])
    return Plot(
        "Over the learning rate", as_svg(figure, "rates"), f"Held-out {record['metric']} by learning rate: {best}."
    )


def over_epochs(record: Record, regime: str, rate: str) -> Plot:
    """The validation score by epoch, mean over the seeds with their range, a panel a form."""
    figure = new_figure()
    cells = [cell for cell in record["cells"] if (cell["regime"], cell["rate"]) == (regime, rate)]
    panels = list(dict.fromkeys(form_of(cell["row"]) for cell in cells))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    last = []
    for axes, panel in zip(grid, panels, strict=True):
        shown = [cell for cell in cells if form_of(cell["row"]) == panel]
        for (colour, marker), cell in zip(STYLES, shown, strict=False):
            curves = [curve(record, run) for run in cell["runs"]]
            middle, low, high = ([100 * f(at) for at in zip(*curves, strict=True)] for f in (mean, min, max))
            epochs = range(1, len(middle) + 1)
            term, row = cell["row"].split()[0], cell["row"]
            axes.plot(epochs, middle, color=colour, marker=marker, markevery=0.2, label=term, **below(row))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            last.append(f"{row} ends at {middle[-1]:.1f}")
        axes.set(xlabel="epoch", title=panel)
    grid[0].set(ylabel=f"{record['metric']} (%)")
    handles, terms = grid[0].get_legend_handles_labels()
    figure.legend(handles, terms, loc="outside upper center", ncols=len(terms))
    title = f"Over the epochs, {regime} regime, {'protocol rate' if rate == 'protocol' else 'own rate'}"
    return Plot(title, as_svg(figure, f"{regime}-{rate}"), f"{title}: {'; '.join(last)}.")


def below(row: str) -> dict[str, Any]:
    """How to draw the run without biases: broad and underneath, so that one shows that coincides with it (K3)."""
    return {"linewidth": 5, "markersize": 10, "alpha": 0.5, "zorder": 1} if row == "none" else {}


def official() -> Plot:
    """The paper's own learning curves."""
    figure = new_figure()
    axes = figure.subplots()
    for (colour, marker), (term, scores) in zip(STYLES, paper.CURVES.items(), strict=False):
        axes.plot(range(1, len(scores) + 1), [100 * x for x in scores], color=colour, marker=marker, label=term)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.legend()
    last = "; ".join(f"{term} ends at {100 * scores[-1]:.1f}" for term, scores in paper.CURVES.items())
    title = "The paper's own run over the epochs: BERT-base-cased, seed 0"
    return Plot(title, as_svg(figure, "paper"), f"{title}: {last}.")


def form_of(row: str) -> str:
    """What comes after the term in a row's name: panels hold the rows of one form."""
    return row.partition(" ")[2]


def curve(record: Record, run: str) -> list[float]:
    """A run's metric by epoch, on the first split that was evaluated."""
    split = next(value for value in record["runs"][run].values() if isinstance(value, dict))
    return next(iter(split.values()))


def new_figure() -> Any:
    """Of one size for all; matplotlib is imported here because it takes a second."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8, 4), layout="constrained")


@contextmanager
def style() -> Iterator[None]:
    """Transparent, in the ink's colour, text as text."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise BadInput("drawing plots needs matplotlib; run: pip install 'minibeft[train]'") from error
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    clear = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none")
    look = {"svg.fonttype": "none", "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
    settings: dict[Any, Any] = dict.fromkeys(inked, INK) | clear | look
    with rc_context(settings):
        yield


def as_svg(figure: Any, name: str) -> str:
    """The figure as an inline SVG element in the page's font and colour, without links; its ids begin with `name`."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<image[^>]*?) id="[^"]*"', r"\1", svg)  # equal pictures get equal ids
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| width="[\d.]+pt" height="[\d.]+pt"', "", svg)
    svg = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").strip()
