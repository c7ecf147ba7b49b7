"""What a trained classifier says of other texts; it is opened from a run's folder, an adapter or a checkpoint."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.checkpoints.adapters import CONFIG, Adapter, apply_adapter, load_adapter, load_base
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.save import label_names
from minibeft.checkpoints.tokenizer import load_tokenizer, require_texts, room
from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.training.batches import Data
from minibeft.training.data import columns_of
from minibeft.training.loading import encode_data, load_for
from minibeft.training.metrics import Metric, score
from minibeft.training.prompts import is_prompted
from minibeft.training.records import RECORD, TRAINED, read_record, read_trained
from minibeft.training.rows import read_rows
from minibeft.training.settings import MAX_LENGTH, Settings, device_of
from minibeft.training.tasks import OWN, TASKS, Split, Task, read_files, text_of
from minibeft.training.train import scores_of


@dataclass(frozen=True)
class Classifier:
    """A model that classifies, with the task that says what it reads and what its classes are called."""

    model: Transformer
    source: Path
    settings: Settings
    task: Task

    def probabilities(self, split: Split) -> Float[Tensor, "N K"]:
        """The probability of each class, or the score of a regression."""
        found = scores_of(self.model.to(self.settings.device), self.settings, self.encoded(split))
        return found.softmax(1) if self.task.labels else found

    def encoded(self, split: Split) -> Data:
        """The texts as tokens, cut to the length that the model and the settings allow."""
        longest = min(self.settings.max_length or MAX_LENGTH, room(self.model.config) or MAX_LENGTH**2)
        return encode_data(load_tokenizer(self.source), self.task, split, self.model.config, longest)


def settings_for(
    model: str,
    text: str | None,
    pair: str | None,
    label: str | None,
    max_length: int | None,
    backend: Any,
    device: str,
) -> Settings:
    """Checked settings for reading a table and computing; a column not given is taken from the run's record."""
    if pair is not None and text is None:
        raise BadInput(f"--pair-column {pair}: needs --text-column too, for the first texts")
    found = Settings(model, OWN, "", text, pair, label or "", max_length=max_length, backend=backend, device=device)
    replace(found, text_column=text or "").check()
    return replace(found, device=device_of(found))


def open_classifier(name: str | Path, settings: Settings) -> Classifier:
    """A run's folder (or the folder of its only seed), an adapter, or a checkpoint with a classification head.

    settings  columns, and how to compute; columns that are not given are those of the run's record
    """
    folder = Path(name).expanduser()
    if (run := only_seed(folder)) is not None:
        return open_run(run, settings)
    if (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        adapter = load_adapter(folder)
        source = find(base_of(adapter, folder))
        model = apply_adapter(load_base(source, adapter, dtype=torch.float32), adapter)
    else:
        source = find(name)
        model = load_model(source, dtype=torch.float32, backend=settings.backend)
    if model.config.task != "classification":
        raise BadInput(f"{name}: has no classification head; give a run, an adapter of one, or a checkpoint with one")
    require_texts(model.config)
    names = label_names(model.config) if model.config.labels > 1 else ()
    return Classifier(model.eval(), source, settings, with_columns(task_of(names), settings, str(name)))


def task_of(names: tuple[str, ...]) -> Task:
    """One's own task with these classes, or a regression."""
    return Task(OWN, (), names, ("accuracy", "f1_macro") if names else ("pearson", "spearman"), ())


def base_of(adapter: Adapter, folder: Path) -> str:
    """The model that an adapter was made for."""
    base = adapter.config.get("base_model_name_or_path")
    if not base:
        raise BadInput(f"{folder / CONFIG}: base_model_name_or_path names no model; merge the adapter into its model")
    return base


def only_seed(folder: Path) -> Path | None:
    """The folder of one run: this one, or its only seed-…; None where it holds none."""
    if (folder / RECORD).is_file():
        return folder
    found = sorted(file.parent for file in folder.glob(f"seed-*/{RECORD}"))
    if len(found) > 1:
        raise BadInput(f"{folder}: holds {len(found)} runs; give one of them, such as {found[0]}")
    return found[0] if found else None


def open_run(folder: Path, given: Settings) -> Classifier:
    """A run's model, with the trained parameters from the run's folder."""
    record = read_record(folder)
    settings = Settings(**{"model": "", "task": ""} | record.get("settings", {}))
    task = TASKS.get(settings.task)
    if settings.task == OWN:
        task = Task(OWN, columns_of(settings), tuple(record.get("labels", ())), ("accuracy", "f1_macro"), ())
        task = replace(task, label=settings.label_column)
    if task is None or not (folder / TRAINED).is_file():
        raise BadInput(f"{folder}: is not at its end, or another version's; run its command again to finish it")
    source = find(settings.model)
    model = load_for(task, source, replace(settings, dtype="float32"))
    require_texts(model.config)
    config = {"task_type": None}
    apply_adapter(model, Adapter({}, read_trained(folder), config, task.labels))
    settings = replace(settings, device=given.device, max_length=given.max_length or settings.max_length)
    return Classifier(model.eval(), source, settings, with_columns(task, given, str(folder)))


def with_columns(task: Task, settings: Settings, what: str) -> Task:
    """The task with the columns that were given."""
    columns = columns_of(settings) or task.columns
    if not columns:
        raise BadInput(f"--text-column: {what} does not say which column it reads; name it")
    return replace(task, columns=columns, label=settings.label_column or task.label)


def read_texts(task: Task, file: Path) -> Split:
    """The texts of a table that need not have labels."""
    rows = read_rows(file, task.columns, task.layout)
    texts = [tuple(text_of(row, column, where) for column in task.columns) for where, row in rows]
    if not texts:
        raise BadInput(f"{file}: holds no rows")
    return Split(texts, [0.0] * len(texts))


def as_csv(task: Task, split: Split, found: Float[Tensor, "N K"], classes: Sequence[tuple[str, ...]] = ()) -> bytes:
    """A row for each input: its texts, the prediction, and the probability of each class.

    classes  the names of the classes for each row, if they differ between rows; else those of the task
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [*task.columns, *(("prediction", *(f"p({name})" for name in task.labels)) if task.labels else ("score",))]
    )
    named = classes or [task.labels] * len(split)
    for texts, row, names in zip(split.texts, found.double().tolist(), named, strict=True):
        first = [names[row.index(max(row))]] if task.labels else []
        writer.writerow([*texts, *first, *(f"{value:.6g}" for value in row)])
    return out.getvalue().encode()


def measured(task: Task, split: Split, found: Float[Tensor, "N K"]) -> dict[Metric, float]:
    """The task's metrics."""
    predicted = (found.argmax(1) if task.labels else found[:, 0]).numpy()
    return {metric: score(metric, predicted, np.array(split.labels)) for metric in task.metrics}


def baselines(classifier: Classifier, split: Split) -> dict[str, dict[Metric, float]]:
    """What needs no training: the most frequent class for every row, or a constant score for a regression; and a
    decoder before training, by its prompt alone."""
    task, labels = classifier.task, np.array(split.labels)
    usual = torch.zeros(len(split), task.outputs)
    if task.labels:
        usual[:, int(np.bincount(labels.astype(int)).argmax())] = 1
    rows = {"most frequent class" if task.labels else "a constant": measured(task, split, usual)}
    if is_prompted(task.name, classifier.model.config.family):
        untouched = load_for(task, classifier.source, replace(classifier.settings, dtype="float32"))
        rows["zero-shot"] = measured(task, split, replace(classifier, model=untouched.eval()).probabilities(split))
    return rows


def evaluate(classifier: Classifier, file: Path) -> tuple[Split, Float[Tensor, "N K"], dict[str, Any]]:
    """The labelled rows of a table, what the model says of them, and its metrics beside the baselines'."""
    split = read_files(classifier.task, [file])
    found = classifier.probabilities(split)
    return split, found, {"model": measured(classifier.task, split, found)} | baselines(classifier, split)
