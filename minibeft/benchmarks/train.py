"""`minibeft bench train`: fine-tuning b_v with minibeft, with transformers + PEFT, and in the official way, in one run.

The contestants take turns over the same examples in several rounds; a ratio compares rates of the same round, so that a
machine that slows down slows both. Texts are tokenised before: only model, gradients and optimiser are timed.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from minibeft.benchmarks import scaling
from minibeft.benchmarks.agreement import require_same_losses
from minibeft.benchmarks.cost import PRODUCT, evaluated_product, forward_operations, least_operations, product
from minibeft.benchmarks.peers import (
    OURS,
    PEFT,
    SAME_ORDER,
    SIDES,
    Ours,
    Side,
    batches,
    from_pretrained,
    make,
    require_peers,
)
from minibeft.benchmarks.resident import peak_in_process
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.tensors import read_json
from minibeft.checkpoints.tokenizer import room
from minibeft.errors import BadInput
from minibeft.families import read_config
from minibeft.training.precision import settled
from minibeft.training.settings import AUTO, DTYPES, MAX_LENGTH, Settings

CEILING_SIZE, CEILING_TIMES = 1024, 10
Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured: examples per pass, rounds in which each contestant makes one pass, types."""

    settings: Settings
    rounds: int = 5
    dtypes: Sequence[str] = tuple(DTYPES)


def plan(model: str, data: str | None, *, examples: int, rounds: int, dtypes: Sequence[str]) -> Plan:
    """The plan, after checks for errors that would otherwise come only after the measurement."""
    if (wrong := sorted(set(dtypes) - DTYPES.keys())) and dtypes != [AUTO]:
        raise BadInput(f"--dtype {','.join(wrong)}: must be some of {','.join(DTYPES)}, or {AUTO}")
    require_peers()
    file = find(model) / "config.json"
    longest = min(MAX_LENGTH, room(read_config(read_json(file), None, str(file))) or MAX_LENGTH)
    settings = Settings(
        model, "sst2", data=data, examples=examples, evaluated=examples, max_length=longest, device="cpu"
    )
    if dtypes == [AUTO]:
        dtypes = [settled(replace(settings, dtype=AUTO)).dtype]
    return Plan(settings, rounds, dtypes)


def steps_of(plan: Plan) -> int:
    """How many steps bench announces."""
    return 5 * len(plan.dtypes) + 2


def take_turns(passes: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant's pass in each round; the order turns, so that none is always first."""
    names, seconds = list(passes), {name: [] for name in passes}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            begun = time.perf_counter()
            passes[name](number)
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def median_and_range(values: Sequence[float]) -> Row:
    """What is reported of several rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rows_of(what: str, seconds: dict[str, list[float]], amount: int) -> list[Row]:
    """One row per contestant: its rate, `amount` over a pass's seconds, and how many times as fast minibeft is."""
    ours = seconds[OURS]
    return [
        {
            "what": what,
            "side": name,
            "rate": median_and_range([amount / s for s in found]),
            "minibeft_is_times_as_fast": median_and_range([s / o for s, o in zip(found, ours, strict=True)]),
        }
        for name, found in seconds.items()
    ]


def beside_products(
    what: str, passes: dict[str, Callable[[int], Any]], rounds: int, amount: int, operations: int, large: Callable
) -> tuple[list[Row], float]:
    """rows_of the passes, which take turns with large products of the same kind; and the speed of these products, in
    operations per second.

    Each row also says how fast it did the least operations of a pass, as a share of the products' speed in that round.
    """

    def multiply(_: int) -> None:
        for _ in range(CEILING_TIMES):
            large()

    seconds = take_turns(passes | {PRODUCT: multiply}, rounds)
    speeds = [CEILING_TIMES * 2 * CEILING_SIZE**3 / s for s in seconds.pop(PRODUCT)]
    rows = rows_of(what, seconds, amount)
    for row in rows:
        pairs = zip(seconds[row["side"]], speeds, strict=True)
        row["share_of_matmul_ceiling"] = statistics.median(operations / s / speed for s, speed in pairs)
    return rows, statistics.median(speeds)


def one_pass(side: Side) -> Callable[[int], None]:
    """Train on every example once, dropout as the settings say."""

    def run(number: int) -> None:
        side.set_dropout(side.settings.dropout)
        for indices in batches(side, number):
            side.step(indices)

    return run


def seconds_to_start(side: Side) -> float:
    """The seconds of two updates and an evaluation, in which libraries are loaded."""
    begun = time.perf_counter()
    side.set_dropout(side.settings.dropout)
    for indices in batches(side, 0)[:2]:
        side.step(indices)
    side.evaluate()
    return time.perf_counter() - begun


def compare(plan: Plan, dtype: str, say: Say) -> Row:
    """Agreement, training, evaluation and peak memory in one type."""
    settings = replace(plan.settings, dtype=dtype)
    say(f"{dtype}: the first updates")
    starts = {name: seconds_to_start(make(name, settings)) for name in SIDES}
    say(f"{dtype}: do all compute the same?")
    agreement = require_same_losses({name: make(name, settings) for name in SIDES}, settings)
    sides = {name: make(name, settings) for name in SIDES}
    for side in sides.values():
        seconds_to_start(side)
    first = sides[OURS]
    assert isinstance(first, Ours)
    c, train, valid = first.run.model.config, first.train.lengths.tolist(), first.valid.lengths.tolist()
    square = torch.randn(CEILING_SIZE, CEILING_SIZE).to(DTYPES[dtype])
    say(f"{dtype}: training")
    passes, large = {name: one_pass(side) for name, side in sides.items()}, partial(product, square, square)
    needed = least_operations(c, train)
    rows, training = beside_products("training", passes, plan.rounds, len(train), needed, large)
    say(f"{dtype}: peak memory")
    for row in rows:
        row["peak_bytes_above_weights"] = peak_in_process(row["side"], settings)
        row["seconds_to_start"] = starts[row["side"]]
    say(f"{dtype}: evaluation")
    passes = {name: lambda _, side=side: side.evaluate() for name, side in sides.items() if name != SAME_ORDER}
    needed, large = forward_operations(c, valid), partial(evaluated_product, square, square)
    found, evaluation = beside_products("evaluation", passes, plan.rounds, len(valid), needed, large)
    ceilings = {"training": training, "evaluation": evaluation}
    return {"dtype": dtype, "matmul_ceiling": ceilings, "loss_errors": agreement, "rows": rows + found}


def load_times(settings: Settings, rounds: int) -> list[Row]:
    """load_model against from_pretrained, both with a classification head, libraries imported and files read before."""
    folder = find(settings.model)

    def ours(_: int) -> None:
        with head_to_come():
            load_model(folder, task="classification")

    passes = {OURS: ours, PEFT: lambda _: from_pretrained(folder, "sdpa")}
    take_turns(passes, 1)
    return rows_of("load", take_turns(passes, rounds), 1)


def bench(plan: Plan, say: Say) -> Row:
    """Everything, as the record that is written. BadInput when the contestants do not compute the same."""
    compared = [compare(plan, dtype, say) for dtype in plan.dtypes]
    say("loading")
    loading = load_times(plan.settings, 2 * plan.rounds)
    say("cost by examples and by layers")
    return {
        "settings": plan.settings.as_json(),
        "threads": torch.get_num_threads(),
        "rounds": plan.rounds,
        "by_dtype": compared,
        "load": loading,
        "scaling": scaling.measure(plan.settings, plan.rounds),
    }
