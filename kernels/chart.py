"""A bar chart of a benchmark: how many times as long as the fused kernel each contestant takes."""

from pathlib import Path
from typing import Any

from minibeft.errors import BadInput


def require_matplotlib() -> None:
    """Before the measurement, so that a missing package costs nothing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as missing:
        raise BadInput(
            "the bar chart needs the package matplotlib: pip install 'minibeft[bench]', or no --png"
        ) from missing


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel a direction; bars above 1 are slower than the fused kernel."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    directions = list(dict.fromkeys(row["direction"] for row in record["rows"]))
    figure = Figure(figsize=(11, 3.4 * len(directions)), layout="constrained")
    for axes, direction in zip(figure.subplots(len(directions), squeeze=False)[:, 0], directions, strict=True):
        rows = [row for row in record["rows"] if row["direction"] == direction]
        groups = list(dict.fromkeys(f"{row['shape']}\n{row['dtype']}" for row in rows))
        names = list(dict.fromkeys(row["contestant"] for row in rows))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            bars = {f"{row['shape']}\n{row['dtype']}": row["times_fused"] for row in rows if row["contestant"] == name}
            at = [groups.index(group) + (i - (len(names) - 1) / 2) * width for group in bars]
            axes.bar(at, list(bars.values()), width, label=name)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), groups, fontsize=6)
        axes.set_ylabel("time (fused = 1)")
        axes.set_title(direction)
        axes.legend(fontsize=7)
    figure.suptitle(record["gpu"] or "interpreter on the CPU: a trial run")
    figure.savefig(path, dpi=150)
