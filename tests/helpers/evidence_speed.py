"""The tables of speed and memory, from records/bench-train.json, bench-memory.json and kernel-binaries.json."""

from typing import Any

from kernel_binaries import spills

from minibeft.benchmarks.report import IS, TAKES, ceilings

Row = dict[str, Any]


def times(row: Row) -> str:
    """The median ratio, and its range over the rounds."""
    found = row["minibeft_is_times_as_fast"]
    return f"{found['median']:.2f} × ({found['min']:.2f}–{found['max']:.2f})"


def speed(found: Row) -> list[str]:
    """How many times as fast minibeft is as each contestant, and its memory as a multiple of theirs."""
    header = ("", "", "examples/s", "minibeft is", "of the limit", "memory above weights", "minibeft takes")
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for one in found["by_dtype"]:
        memory = {
            row["side"]: row.get("peak_bytes_above_weights", 0) for row in one["rows"] if row["what"] == "training"
        }
        for row in one["rows"]:
            cells = [f"{row['what']}, {one['dtype']}", row["side"], f"{row['rate']['median']:.0f}", times(row)]
            cells.append(f"{row['share_of_matmul_ceiling']:.0%}")
            if row["what"] == "training":
                peak = memory[row["side"]]
                cells += [f"{peak / 2**20:.0f} MiB", f"{memory['minibeft'] / peak:.2f} ×"]
            rows.append(f"| {' | '.join(cells + [''] * (len(header) - len(cells)))} |")
    for row in found["load"]:
        rows.append(f"| loading | {row['side']} | {row['rate']['median']:.0f} times/s | {times(row)} | | | |")
    limits = "; ".join(f"in {one['dtype']} {ceilings(one)}" for one in found["by_dtype"])
    lines = [f"- cost by {what}: {straight(found['scaling'][what])}" for what in ("examples", "layers")]
    return [
        *rows,
        "",
        f"- {IS}",
        f"- {TAKES}",
        f"- {found['threads']} threads; limit: only the matrix products that cannot be avoided, at the speed of a "
        f"large product of the same kind in the same rounds: {limits}",
        *lines,
    ]


def straight(line: Row) -> str:
    """The least-squares line."""
    return (
        f"{1000 * line['seconds_each']:.1f} ms each and {1000 * line['seconds_at_zero']:.0f} ms at zero, "
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


def binaries(found: Row) -> list[str]:
    """One row per launch of the kernels, one cell per chip."""
    chips = found["chips"]
    rows = [f"| kernel | case | {' | '.join(f'sm_{chip}' for chip in chips)} |", "|---" * (len(chips) + 2) + "|"]
    launches: dict[str, dict[str, list[str]]] = {}
    for chip, binaries in chips.items():
        for one in binaries:
            cells = launches.setdefault(launch_of(one), {})
            cells.setdefault(chip, []).append(binary(one))
    for launch, cells in launches.items():
        rows.append(f"| {launch} | {' | '.join('<br>'.join(cells.get(chip, [])) for chip in chips)} |")
    every = [one for binaries in chips.values() for one in binaries]
    spilled = sum(map(spills, every))
    note = (
        "Tile, warps (w) and pipeline stages (s), registers per thread, shared memory per block, and the instruction "
        f"that multiplies. Registers spill in {spilled} of the {len(every)}."
    )
    return [*rows, "", note]


def launch_of(one: Row) -> str:
    """The kernel; type, size of a head, and what else the launch does."""
    turn = f"turns {one['turned']}{' neighbours' if one['interleaved'] else ''}" if one["turned"] else ""
    bits = {127: "8 bits", 7: "4 bits"}.get(one["levels"], "")
    parts = [
        one["operand"].removeprefix("torch."),
        f"D = {one['head_size']}",
        turn,
        "sets" if one["sets"] else "",
        "sums" if one["sums"] else "",
        bits,
    ]
    return f"{one['kernel'].removesuffix('_kernel')} | {', '.join(filter(None, parts))}"


def binary(one: Row) -> str:
    """Of one chip."""
    stages = f" {one['stages']}s" if one["stages"] else ""
    used = [
        f"{one['reg']} registers",
        f"{one['shared'] / 1024:.0f} KiB" if one["shared"] else "",
        *one["tensor_core"],
        *one["descriptors"],
    ]
    loop = {(True, False): " flat", (True, True): " flat, specialized"}.get((one["flatten"], one["specialize"]), "")
    return f"{one['tile']} {one['warps']}w{stages}{loop}: {', '.join(filter(None, used))}"
