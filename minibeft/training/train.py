"""Train the chosen biases, with the classification head if there is one, and nothing else; deterministic, resumable.

Frozen weights have no gradient, and autograd goes no lower than the lowest trainable bias. All randomness comes from
the seed: the head and the start of a form have generators of their own, the order of the data follows from seed and
epoch, and dropout uses torch's stream, which is seeded after the model is built. So runs that differ only in their bias
terms draw the same random numbers, which is theorem K3's hypothesis "same-randomness".
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minibeft.checkpoints.save import with_labels
from minibeft.errors import BadInput
from minibeft.models.biases import add_missing, freeze_except
from minibeft.models.transformer import Transformer
from minibeft.training import sharded
from minibeft.training.batches import Data, Scorable, by_length, shuffled
from minibeft.training.metrics import score
from minibeft.training.prompts import is_prompted
from minibeft.training.reparam import reparametrise
from minibeft.training.settings import Settings, is_zero_shot
from minibeft.training.tasks import Task

EVALUATION_BATCH = 64


class Step(NamedTuple):
    """Where a run is: epoch of epochs, in it `done` examples of `total`. accuracy is None for a regression; rate is in
    examples per second."""

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float
    accuracy: float | None
    rate: float

    @property
    def share(self) -> float:
        """How much of the run is done."""
        return (self.epoch * self.total + self.done) / (self.epochs * self.total)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"  training accuracy {self.accuracy:.3f}"
        return f"epoch {self.epoch + 1}/{self.epochs}  loss {self.loss:.4f}{accuracy}  {self.rate:.0f} examples/s"


# A batch's loss, and its logits before the update; the batches of a stack may differ in size.
Result = tuple[Float[Tensor, ""], Float[Tensor, "_ K"]]
# A run as a generator: it yields a batch to update on, is sent the result, and yields the next batch, to its end.
Lessons = Generator[Scorable, Result, Any]


@dataclass
class Run:
    """A model being trained. epochs holds one record for each epoch that is complete.

    stream  the generator of its random numbers; None: torch's own, which then no other run uses
    """

    settings: Settings
    task: Task
    model: Transformer
    trained: dict[str, nn.Parameter]
    before: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    epochs: list[dict[str, Any]]
    stream: torch.Generator | None = None


def start(settings: Settings, task: Task, model: Transformer) -> Run:
    """Freeze all but what the settings name, move the model to its device, and make the optimiser."""
    trained = choose(settings, task, model)
    before = {name: value.detach().clone() for name, value in trained.items()}
    if settings.form != "plain":
        biases = [name for name in trained if not name.startswith("head.")]
        made = reparametrise(model, biases, settings.form, rank=settings.rank, scale=settings.scale, seed=settings.seed)
        trained = made | {name: value for name, value in trained.items() if name not in biases}
    if not is_zero_shot(settings, model.config):
        require_exactly(model, trained)
    if settings.dtype == "bfloat16":
        hold_in_bfloat16(model)
    sharded.place(model, trained.values(), settings.device)
    optimizer = adamw(settings, trained.values(), fused=True)
    torch.manual_seed(sharded.own_seed(settings.seed))
    return Run(settings, task, model, trained, before, optimizer, [])


def adamw(settings: Settings, trained: Iterable[nn.Parameter], *, fused: bool) -> torch.optim.AdamW:
    """The protocol's optimiser."""
    assert settings.learning_rate is not None
    group = {"params": list(trained)}  # as a group, for then it may be empty
    rates = {"lr": settings.learning_rate, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    return torch.optim.AdamW([group], **rates, weight_decay=settings.weight_decay, fused=fused)


def choose(settings: Settings, task: Task, model: Transformer) -> dict[str, nn.Parameter]:
    """What trains, with all else frozen: the terms, which are added to a decoder that lacks them, and a fresh head; in
    a prompted decoder only the terms, and in a zero-shot run nothing."""
    if not is_prompted(task.name, model.config.family):
        if model.config.decodes:
            add_missing(model, settings.terms)
        fresh_head(model, task.outputs, settings.seed)
        model.config = with_labels(model.config, task.labels)
        return freeze_except(model, settings.terms, head=True)
    if is_zero_shot(settings, model.config):
        model.requires_grad_(False)
        return {}
    add_missing(model, settings.terms)
    return freeze_except(model, settings.terms, head=False)


def fresh_head(model: Transformer, outputs: int, seed: int) -> None:
    """A new classifier of this many outputs, in place: std 0.02, bias (if any) zero, from the seed alone."""
    assert model.head is not None
    like = next(model.parameters())
    before = model.head.out
    assert isinstance(before, nn.Linear)
    out = nn.Linear(before.in_features, outputs, bias=not model.config.decodes, device=like.device, dtype=like.dtype)
    drawn = torch.empty(out.weight.shape).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    out.weight.data.copy_(drawn)
    if not model.config.decodes:
        out.bias.data.zero_()
    model.head.out = out
    model.config = replace(model.config, labels=outputs)


def require_exactly(model: nn.Module, asked: dict[str, nn.Parameter]) -> None:
    """RuntimeError unless the parameters that train are the ones asked for: no more, no fewer, at least one."""
    found = {name for name, value in model.named_parameters() if value.requires_grad}
    if wrong := sorted(found ^ asked.keys()):
        raise RuntimeError(f"the trainable parameters are not the ones asked for; they differ in {', '.join(wrong)}")
    if not found:
        raise RuntimeError("nothing would train")


def hold_in_bfloat16(model: nn.Module) -> None:
    """Store the frozen linear maps in bfloat16, to which autocast would otherwise cast them in every step, and the rest
    (what trains, the frozen bias under a form, norms, embeddings) in float32 at least, whatever the checkpoint's
    type."""
    maps = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    frozen = {id(value) for m in maps for value in m.parameters(recurse=False) if not value.requires_grad}
    for value in model.parameters():
        wide = torch.promote_types(value.dtype, torch.float32)
        # A copy of what trains: it may be a view of the checkpoint's file.
        value.data = value.data.to(torch.bfloat16 if id(value) in frozen else wide, copy=value.requires_grad)


def autocast(settings: Settings) -> torch.autocast:
    """bfloat16 where it was asked for."""
    kind = torch.device(settings.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=settings.dtype == "bfloat16")


def loss_of(task: Task, logits: Float[Tensor, "B K"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross entropy, or the mean squared error of a regression."""
    return F.cross_entropy(logits, labels.long()) if task.labels else F.mse_loss(logits[:, 0], labels)


def forward(model: Transformer, settings: Settings, batch: Scorable) -> Float[Tensor, "B K"]:
    """The logits, in float32 at least."""
    with autocast(settings):
        logits = sharded.scores(batch, model)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def train_step(run: Run, batch: Scorable) -> Result:
    """One update, in a zero-shot run none; the loss and the logits before it."""
    return update([run], [batch], [forward(run.model, run.settings, batch)])[0]


def update(runs: Sequence[Run], batches: Sequence[Scorable], logits: Sequence[Float[Tensor, "_ K"]]) -> list[Result]:
    """One update of each run, from the logits of its own batch. No run's loss depends on another's parameters, so the
    gradients of the sum of the losses are those of each."""
    pairs = list(zip(runs, batches, logits, strict=True))
    losses = [loss_of(run.task, found, batch.labels) for run, batch, found in pairs]
    training = [run for run in runs if run.trained]
    if training:
        torch.autograd.backward(losses)
    for run in training:
        torch.nn.utils.clip_grad_norm_(run.trained.values(), run.settings.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return [(loss.detach(), found.detach()) for loss, found in zip(losses, logits, strict=True)]


def epoch_of(run: Run, examples: Data, progress: Callable[[Step], None]) -> Generator[Scorable, Result, dict[str, Any]]:
    """One pass over the examples; mean loss and accuracy on the way, dropout on."""
    settings, epoch = run.settings, len(run.epochs)
    run.model.train(settings.dropout and bool(run.trained))
    device, begun = torch.device(settings.device), perf_counter()
    assert settings.batch is not None
    sums, done = torch.zeros(2, dtype=torch.float64, device=device), 0
    order = shuffled(
        examples.lengths, settings.batch, seed=settings.seed, epoch=epoch, bucketed=settings.pad == "bucket"
    )
    for number, indices in enumerate(order, 1):
        batch = examples.gather(indices, settings.width, device)
        loss, logits = yield batch
        right = (logits.argmax(1) == batch.labels).sum() if run.task.labels else loss.new_zeros(())
        sums += torch.stack((loss * len(indices), right))
        done += len(indices)
        if number % 10 == 0 or number == len(order):  # reading the sums waits for the device
            loss_sum, rights = sums.tolist()
            accuracy = rights / done if run.task.labels else None
            rate = done / (perf_counter() - begun)
            progress(Step(epoch, settings.epochs or 0, done, len(examples), loss_sum / done, accuracy, rate))
    loss_sum, rights = sums.tolist()
    if not np.isfinite(loss_sum):
        raise BadInput(f"the loss is not finite in epoch {epoch}; lower --learning-rate {settings.learning_rate}")
    accuracy = {"train_accuracy": rights / done} if run.task.labels else {}
    return {"epoch": epoch, "loss": loss_sum / done} | accuracy | {"seconds": perf_counter() - begun}


def predict(run: Run, examples: Data) -> Float[Tensor, "N K"]:
    """The logits of all examples, dropout off, in the examples' order."""
    return scores_of(run.model, run.settings, examples)


@torch.inference_mode()
def scores_of(model: Transformer, settings: Settings, examples: Data) -> Float[Tensor, "N K"]:
    """The same for any model."""
    model.eval()
    device = torch.device(settings.device)
    order = by_length(examples.lengths, EVALUATION_BATCH)
    logits = torch.cat([forward(model, settings, examples.gather(i, settings.width, device)).cpu() for i in order])
    return logits[torch.cat(order).argsort()]


def evaluate(run: Run, examples: Data) -> dict[str, float]:
    """The task's metrics on these examples."""
    logits = predict(run, examples)
    predicted = (logits.argmax(1) if run.task.labels else logits[:, 0]).numpy()
    return {metric: score(metric, predicted, examples.labels.numpy()) for metric in run.task.metrics}


def lessons(
    run: Run, train: Data, valid: Mapping[str, Data], progress: Callable[[Step], None], keep: Callable[[], Any]
) -> Lessons:
    """All updates to the last epoch; `keep` is called when an epoch's record is complete, to save the run."""
    assert run.settings.epochs is not None
    while len(run.epochs) < run.settings.epochs:
        record = yield from epoch_of(run, train, progress)
        run.epochs.append(record | {name: evaluate(run, examples) for name, examples in valid.items()})
        keep()


def fit(
    run: Run,
    train: Data,
    valid: Mapping[str, Data],
    progress: Callable[[Step], None],
    keep: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """Train one run to its last epoch; the records of its epochs."""
    with deterministic(run.settings.device):
        (error,) = drive([lessons(run, train, valid, progress, keep)], lambda _, batches: [train_step(run, *batches)])
    if error is not None:
        raise error
    return run.epochs


def drive(
    runs: Sequence[Lessons],
    update: Callable[[list[int], list[Scorable]], list[Result]],
    inside: Callable[[int], AbstractContextManager[Any]] = lambda number: nullcontext(),
) -> list[Any]:
    """Train all runs to their ends, updating all unfinished ones together; what each returns, or its BadInput.

    update  gets the numbers of the runs, and the batch that each asks for
    inside  the context in which a run works by itself: between updates, when it evaluates and saves
    """
    found: list[Any] = [None] * len(runs)
    results: dict[int, Result | None] = dict.fromkeys(range(len(runs)))
    while results:
        asked: dict[int, Scorable] = {}
        for number, result in results.items():
            try:
                with inside(number):
                    asked[number] = runs[number].send(result)  # type: ignore[arg-type]  # None begins
            except StopIteration as end:
                found[number] = end.value
            except BadInput as error:
                found[number] = error
        results = dict(zip(asked, update([*asked], [*asked.values()]), strict=True)) if asked else {}
    return found


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """On a GPU, ask torch for deterministic algorithms; on a CPU all are, for a given number of threads."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.startswith("cuda"))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
