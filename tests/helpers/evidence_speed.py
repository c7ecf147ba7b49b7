"""The README's tables of speed and memory, from records/bench-train.json and records/bench-memory.json."""

from typing import Any

Row = dict[str, Any]


def times(row: Row) -> str:
    """The median ratio, and its range over the rounds."""
    found = row["minibeft_is_times_as_fast"]
    return f"{found['median']:.2f} × ({found['min']:.2f}–{found['max']:.2f})"


def speed(found: Row) -> list[str]:
    """How many times as fast minibeft is as each contestant, and its memory as a multiple of theirs."""
    rows = ["| | | examples/s | minibeft is | memory above weights | of theirs |", "|---|---|---|---|---|---|"]
    for one in found["by_dtype"]:
        memory = {
            row["side"]: row.get("peak_bytes_above_weights", 0) for row in one["rows"] if row["what"] == "training"
        }
        for row in one["rows"]:
            cells = [f"{row['what']}, {one['dtype']}", row["side"], f"{row['rate']['median']:.0f}", times(row)]
            if row["what"] == "training":
                peak = memory[row["side"]]
                cells += [f"{peak / 2**20:.0f} MiB", f"{memory['minibeft'] / peak:.2f} ×"]
            rows.append(f"| {' | '.join(cells + [''] * (6 - len(cells)))} |")
    for row in found["load"]:
        rows.append(f"| loading | {row['side']} | {row['rate']['median']:.0f} times/s | {times(row)} | | |")
    ceilings = ", ".join(f"{one['matmul_ceiling'] / 1e9:.0f} GFLOP/s in {one['dtype']}" for one in found["by_dtype"])
    start = {row["side"]: row["seconds_to_start"] for row in found["by_dtype"][0]["rows"] if row["what"] == "training"}
    lines = [f"- cost by {what}: {straight(found['scaling'][what])}" for what in ("examples", "layers")]
    return [
        *rows,
        "",
        f"- {found['threads']} threads; a large matrix product: {ceilings}",
        f"- before the first round, two updates and an evaluation: {start['minibeft, compiled']:.0f} s with "
        f"torch.compile, {start['minibeft']:.0f} s without",
        *lines,
    ]


def straight(line: Row) -> str:
    """The least-squares line."""
    return (
        f"{1000 * line['seconds_each']:.1f} ms each and {1000 * line['seconds_at_zero']:.0f} ms at none, "
        f"R² = {line['r_squared']:.3f}"
    )


def kept(found: Row) -> list[str]:
    """MiB that autograd keeps, by the kind of module."""
    kinds = list(found["rows"][0]["by_kind"])
    rows = [f"| | trained | {' | '.join(kinds)} | all |", "|---" * (len(kinds) + 3) + "|"]
    for row in found["rows"]:
        sizes = [f"{size / 2**20:.1f}" for size in (*row["by_kind"].values(), row["bytes"])]
        rows.append(f"| {row['way']} | {row['trainable']:,} | {' | '.join(sizes)} |")
    return [*rows, "", f"MiB of {found['batch']} sequences of {found['tokens']} tokens in float32"]
