"""What `minibeft bench train` and `bench memory` print, and the chart."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minibeft.benchmarks.peers import OFFICIAL, OURS, PEFT
from minibeft.show.grid import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
# What the columns say.
IS = "minibeft is: so many times as fast as the row's way, the median and the range over the rounds"
LIMIT = "of the limit: speed of the products that cannot be avoided, as a share of a large product's in the same rounds"
TAKES = "memory: the peak above the weights; minibeft takes: its own peak as a multiple of the row's"
START = "start: the time of two updates and an evaluation before the first round"


def render(record: Row) -> Iterator[Grid | str]:
    """Everything that the record of bench train says, in the order in which it was measured."""
    for one in record["by_dtype"]:
        for what in ("training", "evaluation"):
            yield rates(f"{what}, {one['dtype']}", "examples", [row for row in one["rows"] if row["what"] == what])
        yield f"a large matrix product in {one['dtype']}: {ceilings(one)}"
    yield rates("loading", "times", record["load"])
    for what, line in record["scaling"].items():
        if what != "side":
            cost = f"{line['seconds_each']:.3g} s each + {line['seconds_at_zero']:.3g} s"
            yield f"cost by {what}: {cost}, R² = {line['r_squared']:.4f}"


def ceilings(one: Row) -> str:
    """How fast large products of both kinds were."""
    return ", ".join(f"{speed / 1e9:.0f} GFLOP/s as {what} multiplies" for what, speed in one["matmul_ceiling"].items())


def rates(title: str, unit: str, rows: list[Row]) -> Grid:
    """One kind of measurement; columns for what its rows have."""
    memory, share = ("peak_bytes_above_weights" in rows[0], "share_of_matmul_ceiling" in rows[0])
    header = [
        "",
        f"{unit}/s",
        "minibeft is",
        *["of the limit"] * share,
        *["memory", "minibeft takes", "start"] * memory,
    ]
    ours, cells = next(row for row in rows if row["side"] == OURS), []
    for row in rows:
        times = row["minibeft_is_times_as_fast"]
        span = f"({times['min']:.1f}–{times['max']:.1f})"
        cells.append([row["side"], f"{row['rate']['median']:.1f}", f"{times['median']:.2f} × {span}"])
        if share:
            cells[-1].append(f"{row['share_of_matmul_ceiling']:.0%}")
        if memory:
            peak = row["peak_bytes_above_weights"]
            takes = f"{ours['peak_bytes_above_weights'] / peak:.2f} ×"
            cells[-1] += [f"{peak / 2**20:.0f} MiB", takes, f"{row['seconds_to_start']:.0f} s"]
    return Grid(title, header, cells, "; ".join([IS, *[LIMIT] * share, *[TAKES, START] * memory]))


def memory_grid(record: Row) -> Grid:
    """MiB that autograd keeps, by kind of module."""
    rows, most = record["rows"], max(row["bytes"] for row in record["rows"])
    kinds = list(rows[0]["by_kind"])
    cells = [
        (
            row["way"],
            *(f"{row['by_kind'][kind] / 2**20:.1f}" for kind in kinds),
            f"{row['bytes'] / 2**20:.1f}",
            f"{row['bytes'] / most:.0%}",
        )
        for row in rows
    ]
    title = f"kept for the backward pass, {record['batch']} sequences of {record['tokens']} tokens, float32, MiB"
    return Grid(title, ("", *kinds, "all", "of full"), cells)


def chart(figure: "Figure", record: Row) -> None:
    """Bars with their range over the rounds: how many times as fast minibeft is; its cost as points with their line."""
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
    ratios.axvline(1.0, color="black", linewidth=0.8, marker="")
    ratios.set_xlabel("minibeft is × as fast")
    for axes, what in zip(lines, ("examples", "layers"), strict=True):
        line = record["scaling"][what]
        x, y = zip(*line["points"], strict=True)
        axes.plot(x, y, "o")
        axes.plot([0, max(x)], [line["seconds_at_zero"] + n * line["seconds_each"] for n in (0, max(x))], marker="")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(what if what == "examples" else "top layers that train b_v")
        axes.set_ylabel("seconds per pass")
