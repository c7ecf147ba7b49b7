"""`minibeft bench stack`: R runs of b_v as one packed batch, against the same R runs one after the other.

Both take the same batches and draw the same random numbers, so their losses agree; they take turns, several rounds.
Run as `python -m minibeft.benchmarks.stack RUNS THREADS` with the settings as JSON on standard input it prints the peak
memory of one pass, in bytes above the loaded model.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from minibeft.benchmarks.resident import RESET, held
from minibeft.benchmarks.train import median_and_range, take_turns
from minibeft.errors import BadInput
from minibeft.show.grid import Grid
from minibeft.training.batches import shuffled
from minibeft.training.loading import head_like, load, load_like
from minibeft.training.settings import Settings
from minibeft.training.stack import Stack
from minibeft.training.train import start, train_step

ALONE, STACK = "one after the other", "as one"
# (runs, examples per batch): the main case first, then one of the two changed at a time.
SHAPES = ((8, 16), (2, 16), (8, 64))
CPU = torch.device("cpu")
Row = dict[str, Any]


def passes(settings: Settings, runs: int) -> tuple[Callable[[int], list[float]], Callable[[int], list[float]]]:
    """Two ways to make a pass of every run over its examples: one by one, and as one stack; both return all losses."""
    first = load(settings)
    stack, data = Stack(first.model), first.train
    each = [load_like(first, replace(settings, seed=seed)) for seed in range(runs)]
    for one in each:
        stack.begin(one, head_like(first, one.settings))
    orders = [shuffled(data.lengths, settings.batch or 16, seed=s, epoch=0, bucketed=True) for s in range(runs)]
    singles = [load(one.settings) for one in each[: 1 + (runs > 1)]]
    begun = [start(one.settings, one.task, one.model) for one in singles]

    def alone(_: int) -> list[float]:
        found = []
        for number, order in enumerate(orders):
            run = begun[min(number, len(begun) - 1)]  # the others take as long: they differ in their seed
            run.model.train()
            if number < len(begun):
                torch.manual_seed(number)
            found += [train_step(run, data.gather(batch, None, CPU))[0].item() for batch in order]
        return found

    def together(_: int) -> list[float]:
        updates = [
            stack.update([*range(runs)], [data.gather(batch, None, CPU) for batch in batches])
            for batches in zip(*orders, strict=True)
        ]
        return [updates[step][number][0].item() for number in range(runs) for step in range(len(updates))]

    return alone, together


def compare(settings: Settings, runs: int, rounds: int) -> Row:
    """Rates in examples per second, and how many times as fast the stack is, round by round."""
    alone, together = passes(settings, runs)
    one, other = (torch.tensor(side(0)).view(runs, -1) for side in (alone, together))
    seconds = take_turns({ALONE: alone, STACK: together}, rounds)
    amount = runs * (settings.examples or 0)
    rates = {name: median_and_range([amount / s for s in found]) for name, found in seconds.items()}
    return {
        "runs": runs,
        "batch": settings.batch,
        "rates": rates,
        "stack_is_times_as_fast": median_and_range([a / b for a, b in zip(*seconds.values(), strict=True)]),
        "largest_loss_difference": (one - other)[: min(runs, 2)].abs().max().item(),
    }


def peak(settings: Settings, runs: int) -> int:
    """Bytes above the loaded model at the highest point of a pass, in this process; 1: of a run alone."""
    side = passes(settings, runs)[runs > 1]
    before = held("VmRSS")
    RESET.write_text("5")  # the highest point is counted from here
    side(0)
    return held("VmHWM") - before


def peak_in_process(settings: Settings, runs: int) -> int:
    """The same in a fresh process."""
    if not RESET.exists():
        raise BadInput("peak memory is read from /proc, which this system has not; run the benchmark on Linux")
    command = [sys.executable, "-P", "-m", "minibeft.benchmarks.stack", str(runs), str(torch.get_num_threads())]
    done = subprocess.run(command, input=json.dumps(settings.as_json()), capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"a pass in a process of its own failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def bench(settings: Settings, rounds: int, say: Callable[[str], None]) -> Row:
    """Every shape, and the peak memory of the first beside that of one run."""
    rows = []
    for runs, batch in SHAPES:
        say(f"{runs} runs, batches of {batch}")
        rows.append(compare(replace(settings, batch=batch), runs, rounds))
    say("peak memory")
    runs, batch = SHAPES[0]
    one, many = (peak_in_process(replace(settings, batch=batch), number) for number in (1, runs))
    memory = {"runs": runs, "one_run": one, "stack": many, "stack_is_times_one_run": many / one}
    return {"settings": settings.as_json(), "threads": torch.get_num_threads(), "rounds": rounds} | {
        "rows": rows,
        "peak_bytes_above_weights": memory,
    }


def render(record: Row) -> list[Grid | str]:
    """What the record says."""
    cells = []
    for row in record["rows"]:
        times = row["stack_is_times_as_fast"]
        rates = [f"{row['rates'][name]['median']:.0f}" for name in (ALONE, STACK)]
        span = f"{times['median']:.2f} × ({times['min']:.2f}–{times['max']:.2f})"
        cells.append((str(row["runs"]), str(row["batch"]), *rates, span, f"{row['largest_loss_difference']:.0e}"))
    memory = record["peak_bytes_above_weights"]
    note = (
        f"memory above the weights: {memory['stack'] / 2**20:.0f} MiB for {memory['runs']} runs, "
        f"{memory['one_run'] / 2**20:.0f} MiB for one, {memory['stack_is_times_one_run']:.1f} ×"
    )
    header = ("runs", "batch", f"{ALONE}, examples/s", f"{STACK}, examples/s", "stack is", "losses differ")
    return [Grid("R runs of b_v as one packed batch", header, cells, note)]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(peak(Settings(**json.load(sys.stdin)), int(sys.argv[1])))
