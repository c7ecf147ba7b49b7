"""The chart of `minibeft bench train`: how many times as fast minibeft is, and the two lines of its cost."""

from pathlib import Path
from typing import Any

from minibeft.benchmarks.peers import OFFICIAL, PEFT


def draw(record: dict[str, Any], path: Path) -> None:
    """Bars with their range over the rounds; points with their least-squares line."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(13, 4), layout="constrained")
    ratios, *lines = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    rows = [(one["dtype"], row) for one in record["by_dtype"] for row in one["rows"]]
    rows += [("", row) for row in record["load"]]
    bars = [(kind, row) for kind, row in rows if row["side"] in (PEFT, OFFICIAL)]
    for at, (_, row) in enumerate(bars):
        found = row["minibeft_is_times_as_fast"]
        middle = found["median"]
        ratios.barh(at, middle, xerr=[[middle - found["min"]], [found["max"] - middle]], color="C0", capsize=2)
    names = [f"{' '.join((row['what'], kind)).strip()}, {row['side']}" for kind, row in bars]
    ratios.set_yticks(range(len(bars)), names, fontsize=7)
    ratios.invert_yaxis()
    ratios.axvline(1.0, color="black", linewidth=0.8)
    ratios.set_xlabel("minibeft is × as fast")
    for axes, what in zip(lines, ("examples", "layers"), strict=True):
        line = record["scaling"][what]
        x, y = zip(*line["points"], strict=True)
        axes.plot(x, y, "o")
        axes.plot([0, max(x)], [line["seconds_at_zero"] + n * line["seconds_each"] for n in (0, max(x))])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(what if what == "examples" else "top layers that train b_v")
        axes.set_ylabel("seconds a pass")
    figure.savefig(path, dpi=150)
