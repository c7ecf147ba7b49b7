"""A bar chart of a benchmark: each contestant's time as a multiple of the fused kernel's."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def directions(record: dict[str, Any]) -> list[str]:
    """What was measured: forward, backward, column sum."""
    return list(dict.fromkeys(row["direction"] for row in record["rows"]))


def draw(figure: "Figure", record: dict[str, Any]) -> None:
    """One panel per direction; bars above 1 are slower than the fused kernel."""
    panels = directions(record)
    for axes, direction in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        rows = [row for row in record["rows"] if row["direction"] == direction]
        groups = list(dict.fromkeys(f"{row['shape']}\n{row['dtype']}" for row in rows))
        names = list(dict.fromkeys(row["contestant"] for row in rows))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            bars = {f"{row['shape']}\n{row['dtype']}": row["times_fused"] for row in rows if row["contestant"] == name}
            at = [groups.index(group) + (i - (len(names) - 1) / 2) * width for group in bars]
            axes.bar(at, list(bars.values()), width, label=name)
        axes.axhline(1.0, color="black", linewidth=0.8, marker="")
        axes.set_xticks(range(len(groups)), groups, fontsize=6)
        axes.set_ylabel("time (fused = 1)")
        axes.set_title(direction)
        axes.legend(fontsize=7)
    figure.suptitle(record["gpu"] or "interpreter on the CPU: a trial run")
