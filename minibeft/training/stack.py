"""Many runs in one: runs of one frozen classifier train at the same time and share every matrix product.

Their tokens stand in one packed batch, run below run, and each row adds the biases of its own run
(models/packed/sets.py). All else is each run's own: head, order, random numbers, optimiser, clipping, folder. So each
run ends where it would end alone, up to rounding, which depends on a product's number of rows, and may be resumed alone
or in another stack. If it is resumed beside the same runs at the same epoch, even the bits are the same. Under torchrun
each process computes its share of every run's batch (sharded.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.packed.packing import Packing, Packings
from minibeft.models.packed.sets import in_sets
from minibeft.models.transformer import Transformer
from minibeft.show import files
from minibeft.training import runs, sharded
from minibeft.training.batches import Batch, Scorable
from minibeft.training.loading import Loaded, family_of, head_like, load, load_like
from minibeft.training.runs import Announce
from minibeft.training.settings import Settings
from minibeft.training.train import Lessons, Result, Run, Step, autocast, deterministic, drive, lessons, start, update

# With more, a batch's rows outgrow the processor's caches.
MOST = 8


class Stack:
    """Several runs over one model; while a run works by itself, the model holds the parameters of that run."""

    def __init__(self, model: Transformer):
        self.model, self.runs = model, list[Run]()
        self.biases = {n: p for n, p in model.named_parameters() if n.endswith(".bias") and not n.startswith("head.")}
        self.own: list[dict[str, nn.Parameter]] = []  # every bias of each run
        self.heads: list[nn.Module] = []

    def begin(self, loaded: Loaded, head: nn.Module) -> Run:
        """One more run, begun as it is alone (train.start) on copies of the biases and a head of its own."""
        own = {name: nn.Parameter(value.detach().clone()) for name, value in self.biases.items()}
        self.put(own, head)
        run = start(loaded.settings, loaded.task, self.model)
        stream = torch.Generator(run.settings.device).manual_seed(sharded.own_seed(run.settings.seed))
        self.runs.append(replace(run, stream=stream))
        self.own.append(own)
        self.heads.append(head)
        return self.runs[-1]

    def put(self, biases: dict[str, nn.Parameter], head: nn.Module) -> None:
        """Make these the model's own."""
        for name, value in biases.items():
            self.model.get_submodule(name.removesuffix(".bias")).bias = value
        self.model.head = head  # type: ignore[assignment]

    @contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """Inside the block the model holds the parameters of this run."""
        names = self.trained()
        self.put({name: value for name, value in self.own[number].items() if name in names}, self.heads[number])
        yield

    def trained(self) -> list[str]:
        """The biases that some run trains."""
        return [name for name in self.biases if any(name in run.trained for run in self.runs)]

    def update(self, numbers: list[int], batches: list[Scorable]) -> list[Result]:
        """One update of each of these runs on its batch."""
        return update([self.runs[i] for i in numbers], batches, self.logits(numbers, batches))

    def logits(self, numbers: list[int], batches: Sequence[Scorable]) -> list[Float[Tensor, "_ K"]]:
        """Each run's logits on its own batch, in float32 at least; all runs share the matrix products."""
        settings, found = self.runs[0].settings, []
        for module in (self.model, *(self.heads[i] for i in numbers)):
            module.train(settings.dropout)
        own = [sharded.share(batch) for batch in batches if isinstance(batch, Batch)]
        parts = zip(own, numbers, strict=True)
        packings = Packings([Packing(b.attention_mask, self.model.config.heads, self.runs[i].stream) for b, i in parts])
        tables = {name: table_of([self.own[i][name] for i in numbers]) for name in self.trained()}
        with autocast(settings), in_sets(self.model, tables, packings.rows):
            first = self.model.first_states(*together(own, self.model.config.pad or 0), packings)
        for i, states, batch in zip(numbers, first.split(packings.sequences), batches, strict=True):
            with autocast(settings), drawing_from(self.runs[i].stream):
                logits = self.heads[i](states[:, None], self.model.token_vectors)
            logits = sharded.gathered(logits, len(batch.labels))
            found.append(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return found


def table_of(biases: Sequence[nn.Parameter]) -> Float[Tensor, "R n"]:
    """One row per run, in the widest type among them: a bias that trains is float32, a frozen one may be bfloat16."""
    widest = max((bias.dtype for bias in biases), key=lambda kind: kind.itemsize)
    return torch.stack([bias.to(widest) for bias in biases])


def together(batches: Sequence[Batch], fill: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """The batches one below the other, padded on the right to the longest of all; padding costs no computation."""
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def joined(parts: Sequence[Tensor], value: int) -> Int[Tensor, "B T"]:
        return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=value) for part in parts])

    ids, masks, types, _ = zip(*batches, strict=True)
    return joined(ids, fill), joined(masks, 0), joined(types, 0)


@contextmanager
def drawing_from(stream: torch.Generator | None) -> Iterator[None]:
    """Inside the block torch draws its random numbers from this stream."""
    assert stream is not None
    cuda = stream.device.type == "cuda"
    get, put = (
        (torch.cuda.get_rng_state, torch.cuda.set_rng_state) if cuda else (torch.get_rng_state, torch.set_rng_state)
    )
    before = get()
    put(stream.get_state())
    try:
        yield
    finally:
        stream.set_state(get())
        put(before)


def hindrance(settings: Settings) -> str | None:
    """The setting or model that keeps a run from sharing matrix products with others; None if it can share them."""
    family = family_of(settings.model)
    found = {
        f"--terms {settings.terms}": settings.terms == "full",
        f"--form {settings.form}": settings.form != "plain",
        f"--backend {settings.backend}": settings.backend == "plain",
        f"a {family} model, which is a decoder": BODIES[family].decodes,
        f"--data {settings.data}, which are no texts": settings.reads_files,
    }
    return next((name for name, wrong in found.items() if wrong), None)


def require_stackable(settings: Settings, jobs: int) -> None:
    """BadInput for a run that cannot share, or for runs that are to have processes of their own."""
    settings.check()
    if (why := f"--jobs {jobs}" if jobs > 1 else hindrance(settings)) is not None:
        raise BadInput(f"--stack: does not go with {why}; run without it")


def stacks(work: Sequence[Settings]) -> list[list[int]]:
    """The groups of runs that train together, as the runs' numbers, by each group's first run; at most MOST in a group.

    The runs of a group differ only in seed, rate and the choice among b_q, b_k and b_v. The gradient of another bias
    may end in a higher or a lower layer, and in a group all rows would go as low as the lowest.
    """
    groups: dict[Settings | int, list[int]] = {}
    for number, settings in enumerate(work):
        terms = "q,k,v" if set(settings.terms.split(",")) <= set("qkv") else settings.terms
        alike = replace(settings, terms=terms, seed=0, learning_rate=None)
        groups.setdefault(number if hindrance(settings) else alike, []).append(number)
    return [group[i : i + MOST] for group in groups.values() for i in range(0, len(group), MOST)]


def finetune_stack(
    work: Sequence[tuple[Settings, Path]], *, notify: Callable[[int, Step], None], announce: Announce
) -> list[dict[str, Any]]:
    """Bring these runs to their ends together, each in its own folder; their records, in order.

    They differ in terms, seed and learning rate alone. A run that fails leaves the others as they are: they come to
    their ends, and then BadInput names it.
    """
    sharded.join()
    with ExitStack() as stack:
        for _, folder in work:
            stack.enter_context(files.held(folder))
        return finetune_held(work, notify, announce)


def finetune_held(
    work: Sequence[tuple[Settings, Path]], notify: Callable[[int, Step], None], announce: Announce
) -> list[dict[str, Any]]:
    """The same in folders that no other process has."""
    if sharded.rank():
        notify = announce = runs.silent
    first = load(work[0][0])
    stack, left = Stack(first.model), list[tuple[int, Lessons]]()
    found: list[Any] = [None] * len(work)
    heads = [head_like(first, settings) for settings, _ in work]  # before the first run's head replaces the model's own
    for number, (settings, folder) in enumerate(work):
        loaded = load_like(first, settings)
        record = runs.record_of(loaded)
        if (done := runs.finished(folder, record, runs.scored(loaded))) is not None:
            found[number] = done
            continue
        sharded.wait()  # until all have seen the folder, before one writes there
        run = stack.begin(loaded, heads[number])
        record |= runs.opened(run, folder, record)
        if not left:
            announce(run)
        progress = lambda step, number=number: notify(number, step)  # noqa: E731
        left.append((number, session(run, loaded, folder, record, progress)))
    with deterministic(first.settings.device):
        ends = drive([each for _, each in left], stack.update, stack.inside)
    for (number, _), end in zip(left, ends, strict=True):
        found[number] = end
    failed = [f"{work[i][1].name}: {end}" for i, end in enumerate(found) if isinstance(end, BadInput)]
    if failed:
        raise BadInput("; ".join(failed))
    return found


def session(
    run: Run, loaded: Loaded, folder: Path, record: dict[str, Any], progress: Callable[[Step], None]
) -> Lessons:
    """A run from where it stands to its finished folder; returns its record."""
    yield from lessons(run, loaded.train, loaded.valid, progress, lambda: runs.save_state(run, folder, record))
    return runs.finish(run, folder, record)
