"""A table whose rows name their adapters, answered in one stream of packed batches, each row by its own adapter.

The model is loaded once, with only those adapters that the table names.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.save import unnamed
from minibeft.checkpoints.serve import load_adapters
from minibeft.errors import BadInput
from minibeft.training.batches import Batch, by_length
from minibeft.training.predict import Classifier, as_csv, task_of, with_columns
from minibeft.training.rows import read_rows
from minibeft.training.settings import Settings
from minibeft.training.tasks import Split, Task, text_of
from minibeft.training.train import EVALUATION_BATCH


@dataclass(frozen=True)
class Requests:
    """Texts, each for one of these adapters; `column` is the table's column of the adapters' names."""

    split: Split
    numbers: Int[Tensor, " N"]
    names: list[str]
    column: str


def read_requests(task: Task, file: Path, column: str, there: dict[str, Path]) -> Requests:
    """The rows of a table; BadInput for a name that is no folder there."""
    if column in task.columns:
        raise BadInput(f"--adapter-column {column}: is the column of the texts; name the one that names adapters")
    rows = list(read_rows(file, (*task.columns, column), task.layout))
    for where, row in rows:
        if text_of(row, column, where) not in there:
            some = ", ".join([*there][:5])
            raise BadInput(f"{where}: {column} = {row[column]!r} is no folder of adapters; there are {some}")
    if not rows:
        raise BadInput(f"{file}: holds no rows")
    names = list(dict.fromkeys(row[column] for _, row in rows))
    place = {name: number for number, name in enumerate(names)}
    texts = [tuple(text_of(row, each, where) for each in task.columns) for where, row in rows]
    return Requests(
        Split(texts, [0.0] * len(texts)), torch.tensor([place[row[column]] for _, row in rows]), names, column
    )


def folders_in(folder: Path) -> dict[str, Path]:
    """The folders of a folder, by name."""
    folder = folder.expanduser()
    if not folder.is_dir() or not (found := {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}):
        raise BadInput(f"--adapters {folder}: must be a folder that holds the adapters' folders")
    return found


def open_mixed(settings: Settings, folder: Path, file: Path, column: str) -> tuple[Classifier, Requests]:
    """The model of the settings with the adapters that the table names, and the table; the table is read first."""
    task, there = with_columns(task_of(()), settings, settings.model), folders_in(folder)
    requests = read_requests(task, file, column, there)
    source = find(settings.model)
    with head_to_come():
        model = load_model(
            source, task="classification", dtype=torch.float32, device=settings.device, backend=settings.backend
        )
    load_adapters(model, [there[name] for name in requests.names])
    assert model.served is not None
    labels = model.served.labels
    shared = labels[0] if len(set(labels)) == 1 else unnamed(len(labels[0]))
    return Classifier(model.eval(), source, settings, replace(task, labels=shared if len(shared) > 1 else ())), requests


@torch.inference_mode()
def scores_of(classifier: Classifier, requests: Requests) -> Float[Tensor, "N K"]:
    """The logits of each text by its own adapter, in the table's order."""
    model, device = classifier.model, torch.device(classifier.settings.device)
    data, numbers = classifier.encoded(requests.split), requests.numbers.to(device)
    order, found = by_length(data.lengths, EVALUATION_BATCH), []
    for indices in order:
        batch = data.gather(indices, None, device)
        assert isinstance(batch, Batch)
        found.append(model.classify(*batch[:3], adapters=numbers[indices]).cpu())
    return torch.cat(found)[torch.cat(order).argsort()]


def predict_mixed(classifier: Classifier, requests: Requests) -> bytes:
    """CSV: a row for each input, its texts and adapter, the prediction, and the probability of each class."""
    task, split, served = classifier.task, requests.split, classifier.model.served
    assert served is not None
    found, own = scores_of(classifier, requests), requests.numbers.tolist()
    texts = [(*texts, requests.names[number]) for texts, number in zip(split.texts, own, strict=True)]
    with_names = replace(task, columns=(*task.columns, requests.column))
    found = found.softmax(1) if task.labels else found
    return as_csv(with_names, Split(texts, split.labels), found, [served.labels[number] for number in own])
