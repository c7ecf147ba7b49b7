"""`minibeft bench curves`: how time and memory grow with runs, adapters, layers, width, tokens and threads.

Each axis changes one number of the same work: an update of b_v on 8 sequences of 32 random tokens, or for adapters the
answers to 32 such sequences, each by an adapter of its own; random weights, because no cost depends on their values.
In several rounds, all points of an axis take turns with a large matrix product of the same kind on as many threads. The
limit of a point is the time that its own products would take at the speed of the large one. Memory is what autograd
keeps (memory.py), or the adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.benchmarks.cost import PRODUCT, evaluated_product, forward_operations, least_operations, product
from minibeft.benchmarks.memory import keeps
from minibeft.benchmarks.scaling import Point, line
from minibeft.benchmarks.train import CEILING_SIZE, take_turns
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import build_model
from minibeft.checkpoints.tensors import read_json
from minibeft.errors import BadInput
from minibeft.models.packed.sets import Served
from minibeft.models.transformer import Transformer
from minibeft.show.grid import Grid
from minibeft.show.page import page
from minibeft.show.plot import Plot, as_svg
from minibeft.show.record import made_by
from minibeft.theory.draws import Draws
from minibeft.training.batches import Batch, Examples
from minibeft.training.loading import Loaded, head_like
from minibeft.training.settings import Settings
from minibeft.training.stack import Stack
from minibeft.training.tasks import find_task
from minibeft.training.train import start, train_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENCES, TOKENS, SERVED = 8, 32, 32
STYLE = "\ntd { white-space: nowrap; }\nfigure { display: inline-block; width: min(100%, 29rem); }"
SETTINGS = Settings("", "sst2", device="cpu", learning_rate=4e-4, dropout=True)
Raw = dict[str, Any]
Row = dict[str, Any]


class Work(NamedTuple):
    """What is timed, the operations of its matrix products, the bytes it takes above the weights, where counted, and a
    product like those."""

    run: Callable[[], Any]
    operations: int
    memory: int | None
    like: Callable[[Tensor, Tensor], Any] = product


@dataclass(frozen=True)
class Axis:
    """What is varied, over which values, and the x over which the cost should be a straight line."""

    name: str
    x: str
    values: tuple[int, ...]
    work: Callable[[Raw, int], Work]
    scale: Callable[[int], float] = float


def batch_of(model: Transformer, sequences: int, tokens: int) -> Batch:
    """Random tokens without padding."""
    ids = Draws(0).integers(0, model.config.vocab, sequences, tokens)
    labels = torch.arange(sequences) % 2
    return Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), labels.float())


def update(raw: Raw, tokens: int = TOKENS) -> Work:
    """An update of b_v and the head."""
    run = start(SETTINGS, find_task("sst2"), build_model(raw, task="classification"))
    batch = batch_of(run.model, SEQUENCES, tokens)
    run.model.train()
    memory = sum(one.bytes for one in keeps(run.model, lambda: batch.scores(run.model)))
    return Work(lambda: train_step(run, batch), least_operations(run.model.config, [tokens] * SEQUENCES), memory)


def updates(raw: Raw, runs: int) -> Work:
    """An update of each of this many runs, in one stack."""
    model = build_model(raw, task="classification")
    batch = batch_of(model, SEQUENCES, TOKENS)
    none = Examples(*batch[:2], batch.attention_mask.sum(1), batch.labels, 0)
    loaded = Loaded(SETTINGS, find_task("sst2"), model, none, {}, {})
    heads, stack = [head_like(loaded, SETTINGS) for _ in range(runs)], Stack(model)
    for head in heads:
        stack.begin(loaded, head)
    numbers, batches = [*range(runs)], [batch] * runs
    memory = sum(one.bytes for one in keeps(model, lambda: torch.cat(stack.logits(numbers, batches))))
    operations = runs * least_operations(model.config, [TOKENS] * SEQUENCES)
    return Work(lambda: stack.update(numbers, [*batches]), operations, memory)


def answers(raw: Raw, adapters: int) -> Work:
    """The logits of a batch whose sequences name adapters at random; each is b_v, folded into b_o, and a head."""
    model = build_model(raw, task="classification").eval().requires_grad_(False)
    model.join()
    c, draws = model.config, Draws(1)

    def drawn(*shape: int) -> Float[Tensor, "..."]:
        return draws.normal(adapters, *shape, std=0.1).float()

    tables = {f"blocks.{i}.attention.o.bias": drawn(c.width) for i in range(c.layers)}
    own = {"dense.bias": drawn(c.width), "out.weight": drawn(c.labels, c.width), "out.bias": drawn(c.labels)}
    assert model.head is not None
    model.served = Served(tables, dict(model.head.named_parameters()) | own, [("no", "yes")] * adapters)
    batch, who = batch_of(model, SERVED, TOKENS), draws.integers(0, adapters, SERVED)
    memory = sum(value.nbytes for value in (*tables.values(), *own.values()))

    @torch.inference_mode()
    def run() -> Tensor:
        return model.classify(*batch[:3], adapters=who)

    return Work(run, forward_operations(c, [TOKENS] * SERVED), memory, evaluated_product)


def as_wide(raw: Raw, width: int) -> Raw:
    """The configuration with another width; the heads' size, and the MLP's width as a multiple of it, stay the same."""
    was = raw["hidden_size"]
    size, inner = was // raw["num_attention_heads"], raw["intermediate_size"] * width // was
    return raw | {"hidden_size": width, "num_attention_heads": width // size, "intermediate_size": inner}


def on_threads(raw: Raw, threads: int) -> Work:
    """An update on so many threads."""
    work, before = update(raw), torch.get_num_threads()

    def there(call: Callable[..., Any], *given: Tensor) -> None:
        torch.set_num_threads(threads)
        try:
            call(*given)
        finally:
            torch.set_num_threads(before)

    return Work(partial(there, work.run), work.operations, None, partial(there, product))


def axes(raw: Raw, threads: int) -> list[Axis]:
    """All that is varied, around this configuration."""
    width, room = raw["hidden_size"], raw["max_position_embeddings"]
    found = [
        Axis("runs in a stack", "runs", (1, 2, 4, 8), updates),
        Axis("adapters in a stream", "adapters", (1, 16, 64, 256), answers),
        Axis("layers", "layers", (2, 4, 6, 8), lambda raw, n: update(raw | {"num_hidden_layers": n})),
        Axis(
            "width",
            "width²/1000",
            tuple(width * part // 4 for part in (2, 3, 4, 6)),
            lambda raw, n: update(as_wide(raw, n)),
            lambda n: n * n / 1000,
        ),
        Axis("tokens a sequence", "tokens", tuple(n for n in (16, 32, 64, 128) if n <= room), update),
        Axis("threads", "1/threads", tuple(range(1, threads + 1)), on_threads, lambda n: 1 / n),
    ]
    return [axis for axis in found if len(axis.values) > 1]  # on one thread there is nothing to vary


def measure(axis: Axis, raw: Raw, rounds: int, size: int = CEILING_SIZE) -> Row:
    """Points, medians over the rounds, and the lines through them."""
    works = {n: axis.work(raw, n) for n in axis.values}
    a, b = torch.randn(2, size, size)
    products = {work.like: f"{PRODUCT} {n}" for n, work in works.items()}
    calls = {str(n): work.run for n, work in works.items()}
    calls |= {name: partial(like, a, b) for like, name in products.items()}
    passes = {name: lambda _, call=call: call() for name, call in calls.items()}
    take_turns(passes, 1)
    seconds = take_turns(passes, rounds)
    points = []
    for n, work in works.items():
        own, beside = seconds[str(n)], seconds[products[work.like]]
        share = work.operations / (2 * size**3)
        points.append(
            {
                axis.name: n,
                "x": axis.scale(n),
                "seconds": median(own),
                "limit": share * median(beside),
                "limit_share": median(share * one / other for one, other in zip(beside, own, strict=True)),
                "matmul_ceiling": 2 * size**3 / median(beside),
                "bytes": work.memory,
            }
        )
    return {"axis": axis.name, "x": axis.x, "points": points} | lines(points)


def lines(points: list[Row]) -> Row:
    """A straight line through the times, through the limits, and through the bytes where they are counted."""
    found = {
        what: [Point((one["x"], one[what])) for one in points if one[what] is not None]
        for what in ("seconds", "limit", "bytes")
    }
    untold = {"r_squared": None} if len(points) < 3 else {}  # two points always lie on a line
    return {"lines": {what: line(some) | untold for what, some in found.items() if some}}


def bench(model: str, rounds: int, say: Callable[[str], None]) -> Row:
    """Every axis."""
    raw, threads, found = raw_of(model), torch.get_num_threads(), []
    for axis in axes(raw, threads):
        say(axis.name)
        found.append(measure(axis, raw, rounds))
    return {"model": model, "threads": threads, "rounds": rounds, "axes": found}


def raw_of(model: str) -> Raw:
    """The configuration of a BERT; BadInput for another family."""
    raw = read_json(find(model) / "config.json")
    if raw.get("model_type") != "bert":
        raise BadInput(f"{model}: bench curves varies a BERT; give a folder of that family, or minilm")
    return raw


def steps_of(model: str) -> int:
    """How many steps bench announces."""
    return len(axes(raw_of(model), torch.get_num_threads()))


def of_line(found: Row, factor: float, unit: str) -> tuple[str, str]:
    """What one more costs, and the cost at zero; how much of the variance the line explains."""
    r, each, none = found["r_squared"], factor * found["slope"], factor * found["at_zero"]
    cost = f"{each:.3g} {unit} each\n{'+' if none >= 0 else '−'} {abs(none):.3g} {unit}"
    return cost, "" if r is None else f"{r:.4f}"


def render(record: Row) -> Grid:
    """One row per axis."""
    cells = []
    for one in record["axes"]:
        points, fitted = one["points"], one["lines"]
        memory = of_line(fitted["bytes"], 2**-20, "MiB") if "bytes" in fitted else ("", "")
        ends = f"{one['axis']}: {points[0][one['axis']]} to {points[-1][one['axis']]}"
        x = "" if one["x"] == one["axis"].split()[0] else f"\nby {one['x']}"
        limit, _ = of_line(fitted["limit"], 1000, "ms")
        cells.append(
            (ends + x, *of_line(fitted["seconds"], 1000, "ms"), limit, f"{points[-1]['limit_share']:.0%}", *memory)
        )
    note = (
        f"Time of an update of b_v on {SEQUENCES} sequences of {TOKENS} tokens (of each run; adapters: of the answers "
        f"to {SERVED}), the median of {record['rounds']} rounds in which all points take turns; threads: "
        f"{record['threads']}. Limit: its matrix products alone, at the speed of a large one of their kind in the "
        "same rounds; "
        "reached: by the last point. Memory: what autograd keeps, or the adapters themselves."
    )
    header = ("", "time", "R²", "limit", "reached", "memory above the weights", "R²")
    return Grid("what one more costs", header, cells, note)


def draw(figure: "Figure", one: Row, what: str, factor: float, unit: str) -> None:
    """Points, their line, and below them the limit."""
    axes = figure.subplots()
    for name, points, label in ((what, "o", "measured"), ("limit", "s", "matrix products alone"))[
        : 2 - (what == "bytes")
    ]:
        fitted, x = one["lines"][name], [point["x"] for point in one["points"]]
        (drawn,) = axes.plot(x, [factor * point[name] for point in one["points"]], points, label=label)
        ends = [0, max(x)]
        y = [factor * (fitted["at_zero"] + fitted["slope"] * end) for end in ends]
        axes.plot(ends, y, marker="", color=drawn.get_color())
    axes.set(xlabel=one["x"], ylabel=unit)
    axes.set_ylim(bottom=0)
    if what != "bytes":
        axes.legend()


def html(record: Row) -> str:
    """One page: the table, and a plot of time and one of memory for each axis."""
    kinds = {"seconds": ("time", 1000, "ms"), "bytes": ("memory", 2**-20, "MiB")}
    plots = []
    for one in record["axes"]:
        for what, (title, factor, unit) in kinds.items():
            if what not in one["lines"]:
                continue
            svg = as_svg(
                lambda figure, o=one, w=what, f=factor, u=unit: draw(figure, o, w, f, u),
                f"{what}-{one['axis'].replace(' ', '-')}",
                (4.6, 2.8),
            )
            alt = f"{title} against {one['x']}: points and the straight line through them"
            plots.append(Plot(f"{title}: {one['axis']}", svg, alt))
    return page("Cost curves", [render(record)], plots, made_by(record), style=STYLE)
