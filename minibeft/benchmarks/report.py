"""What `minibeft bench train` prints: rates, ratios with their ranges, shares of the ceiling, memory.

times: minibeft is n × as fast as the row's contestant (range over the rounds).
ours is: its peak of memory above the weights is n × the contestant's.
ceiling: the share of a large matrix product's speed that the operations without which no update can do would reach.
start: two updates and an evaluation before the first round.
"""

from typing import Any

from rich.table import Table

from minibeft.benchmarks.peers import OURS

Row = dict[str, Any]


def table_of(title: str, unit: str, rows: list[Row]) -> Table:
    """One kind of measurement; columns for what its rows have."""
    memory = "peak_bytes_above_weights" in rows[0]
    heads = ["", f"{unit}/s", "times"] + ["ceiling", "memory", "ours is", "start"] * memory
    table = Table(title=title, box=None, padding=(0, 0, 0, 1))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    ours = next(row for row in rows if row["side"] == OURS)
    for row in rows:
        rate, times = row["rate"]["median"], row["minibeft_is_times_as_fast"]
        span = f"({times['min']:.1f}–{times['max']:.1f})"
        cells = [row["side"], f"{rate:.1f}", f"{times['median']:.2f} × {span}"]
        if memory:
            peak = row["peak_bytes_above_weights"]
            cells += [f"{row['share_of_matmul_ceiling']:.0%}", f"{peak / 2**20:.0f} MiB"]
            cells.append(f"{ours['peak_bytes_above_weights'] / peak:.2f} ×")
            cells.append(f"{row['seconds_to_start']:.0f} s")
        table.add_row(*cells)
    return table


def tables(record: Row) -> list[Table | str]:
    """Everything that the record says, in the order in which it was measured."""
    parts: list[Table | str] = []
    for one in record["by_dtype"]:
        for what in ("training", "evaluation"):
            rows = [row for row in one["rows"] if row["what"] == what]
            parts.append(table_of(f"{what}, {one['dtype']}", "examples", rows))
        parts.append(f"a matrix product in {one['dtype']}: {one['matmul_ceiling'] / 1e9:.0f} GFLOP/s")
    parts.append(table_of("loading", "times", record["load"]))
    for what in ("examples", "layers"):
        line = record["scaling"][what]
        parts.append(
            f"cost by {what}: {line['seconds_each']:.3g} s each + {line['seconds_at_zero']:.3g} s, "
            f"R² = {line['r_squared']:.4f}"
        )
    return parts
