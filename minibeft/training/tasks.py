"""GLUE and SuperGLUE tasks in BEFT's regimes, read from the archives as shipped or from the hub; and one's own data.

A task says which columns are its texts, which labels there are, how many training examples each regime has, and the
protocol's learning rate and epochs. Source: BEFT, arXiv 2509.15974, Table 1 to 3 and its official code.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibeft.checkpoints.find import download
from minibeft.errors import BadInput
from minibeft.training.metrics import Metric
from minibeft.training.rows import KINDS, PLAIN, Layout, Row, read_rows

OWN = "own"  # the task of one's own data
REGIMES = ("low", "medium", "high")


@dataclass(frozen=True)
class Task:
    """One task. labels: their names in the order of their numbers; none: a regression (STS-B).

    sizes   training examples in the low, medium and high regime; empty: the paper gives none, all are used
    learning_rate, epochs   of the encoder protocol; none: the paper has the task for decoders only (prompts.py)
    valid   the validation splits, the first of which is reported
    hub     the repository that holds it on the Hugging Face hub
    label   the column of the labels
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    sizes: tuple[int, ...]
    learning_rate: float | None = None
    epochs: int | None = None
    valid: tuple[str, ...] = ("validation",)
    hub: str = "nyu-mll/glue"
    label: str = "label"

    @property
    def layout(self) -> Layout:
        """How the files of its archive depart from a plain table."""
        return LAYOUTS.get(self.name, PLAIN)

    @property
    def outputs(self) -> int:
        """How many outputs the classifier has."""
        return len(self.labels) or 1


PAIR, QUESTIONS, PREMISE = ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis")
ENTAILS = ("entailment", "not_entailment")
MATCHED = ("validation_matched", "validation_mismatched")
YES_NO_MAYBE, YES_MAYBE_NO = ("entailment", "contradiction", "neutral"), ("entailment", "neutral", "contradiction")
SUPER = "aps/super_glue"

MSR, MSR_DEV = "msr_paraphrase_train.txt", "dev_ids.tsv"
LAYOUTS = {
    "rte": Layout({"sentence1": "premise", "sentence2": "hypothesis"}),  # SuperGLUE's
    "mrpc": Layout({"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}),
    "cola": Layout(header=("source", "label", "star", "sentence")),
    "qqp": Layout({"label": "is_duplicate"}, broken=True),
    "mnli": Layout({"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}),
    "stsb": Layout({"label": "score"}),
}

_TASKS = (
    Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), (1000, 5000, 11000), 4e-4, 16),
    Task("rte", PAIR, ENTAILS, ("accuracy",), (300, 900, 1200), 1e-3, 30),
    Task("mrpc", PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), (367, 1191, 1835), 7e-4, 60),
    Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), (1710, 3420, 4275), 7e-4, 16),
    Task("qqp", QUESTIONS, ("not_duplicate", "duplicate"), ("accuracy", "f1"), (1000, 5000, 9000), 4e-4, 30),
    Task("qnli", ("question", "sentence"), ENTAILS, ("accuracy",), (1000, 5000, 9000), 1e-4, 30),
    Task("mnli", PREMISE, YES_MAYBE_NO, ("accuracy",), (1000, 5000, 9000), 1e-4, 30, MATCHED),
    Task("stsb", PAIR, (), ("pearson", "spearman"), (287, 1150, 2300), 1e-4, 60),
    Task("wnli", PAIR, ("not_entailment", "entailment"), ("accuracy",), ()),
    Task("cb", PREMISE, YES_NO_MAYBE, ("f1_macro", "accuracy"), (), 1e-3, 60, hub=SUPER),
    Task("wic", PAIR, ("false", "true"), ("accuracy",), (), 1e-3, 16, hub=SUPER),
    Task("boolq", ("question", "passage"), ("False", "True"), ("accuracy",), (), hub=SUPER),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


@dataclass(frozen=True)
class Split:
    """Texts, one or two per example, with their labels: numbers of classes, or scores for a regression."""

    texts: list[tuple[str, ...]]
    labels: list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: list[int]) -> "Split":
        """These examples, in this order."""
        return Split([self.texts[i] for i in indices], [self.labels[i] for i in indices])

    def sample(self, size: int | None, seed: int) -> "Split":
        """At most this many, drawn as the training subset is; None: all."""
        return self if size is None or size >= len(self) else draw(self, size, 0, seed)[0]


def find_task(name: str) -> Task:
    """The task of this name, or BadInput with the names there are."""
    if name not in TASKS:
        raise BadInput(f"--task {name}: choose among {', '.join(TASKS)}")
    return TASKS[name]


def find_data(task: Task, data: str | Path | None) -> Path:
    """The folder of the task's files: DATA/<task>, also spelled as in SST-2 or CoLA, or DATA itself; the hub's files
    when no folder is given."""
    if data is None:
        instead = "a folder with --data or MINIBEFT_DATA"
        return download(task.hub, f"{task.name}/*.parquet", kind="dataset", instead=instead) / task.name
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; it must hold {task.name}/train.tsv or train.parquet")
    own = sorted(path for path in folder.iterdir() if plain(path.name) == task.name and path.is_dir())
    return next((path for path in own if path.name == task.name), own[0] if own else folder)


def is_folders(data: str | Path | None) -> bool:
    """Whether the data are files in a folder for each class, train/CLASS/FILE."""
    return data is not None and (Path(data).expanduser() / "train").is_dir()


def plain(name: str) -> str:
    """The name in lower-case letters and digits alone: sst2 for SST-2."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_files(folder: Path, split: str) -> list[Path]:
    """The split's files: train.tsv and the like, or Parquet shards; dev and val are other names of validation. MRPC as
    Microsoft ships it is one file, beside GLUE's list of the pairs that form its validation split."""
    if (folder / MSR).is_file():
        return [folder / MSR, folder / MSR_DEV]
    for stem in (split, split.replace("validation", "dev"), split.replace("validation", "val")):
        for pattern in (*(f"{stem}{kind}" for kind in KINDS), f"{stem}-*.parquet"):
            if found := sorted(folder.glob(pattern)):
                return found
    raise BadInput(f"{folder}: has no {split}.tsv, .csv, .jsonl or .parquet")


def read_split(task: Task, folder: Path, split: str) -> Split:
    """All examples of one split; BadInput names the file that is missing, empty, or has a label that the task lacks."""
    files = find_files(folder, split)
    if files[0].name != MSR:
        return read_files(task, files)
    ids = ("#1 ID", "#2 ID")
    listed = {tuple(row.values()) for _, row in read_rows(files[1], ids, Layout(header=ids))}
    pairs = [tuple(row.values()) in listed for _, row in read_rows(files[0], ids, task.layout)]
    whole = read_files(task, files[:1])
    return whole.take([i for i, validates in enumerate(pairs) if validates == (split != "train")])


def read_files(task: Task, files: list[Path]) -> Split:
    """All examples of these files."""
    texts, labels = [], []
    for file in files:
        for where, row in read_rows(file, (*task.columns, task.label), task.layout):
            texts.append(tuple(text_of(row, column, where) for column in task.columns))
            labels.append(label_of(task, row[task.label], where))
    if not labels:
        raise BadInput(f"{files[0]}: holds no examples")
    return Split(texts, labels)


def text_of(row: Row, column: str, where: str) -> str:
    """The text in a column."""
    value = row[column]
    if not isinstance(value, str):
        raise BadInput(f"{where}: {column} = {value!r} is not text")
    return value


def label_of(task: Task, value: Any, where: str) -> float:
    """A label as a number: by its name, by its number unless the names are numbers, or for a regression its score."""
    for name in (class_name(value), class_name(value).lower()):
        if name in task.labels:
            return task.labels.index(name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    named = any(name.isdecimal() for name in task.labels)
    if not named and (number in range(len(task.labels)) if task.labels else np.isfinite(number)):
        return number
    allowed = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels)) or "a finite number"
    raise BadInput(f"{where}: label = {value!r}; {task.name} has {', '.join(task.labels) if named else allowed}")


def class_name(value: Any) -> str:
    """The name of a class, as text; empty for a value that names no class, such as null or 0.5."""
    whole = isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
    return str(int(value) if isinstance(value, float) else value) if whole else ""


def draw(train: Split, examples: int, held_out: int, seed: int) -> tuple[Split, Split | None]:
    """The training subset, and the examples held out after it to choose settings on.

    As in the official code: the first of numpy's RandomState(seed).permutation of the training split.
    """
    if examples + held_out > len(train):
        asked = f"{examples} examples" + (f" and {held_out} held out" if held_out else "")
        raise BadInput(f"the training split has {len(train)} examples, fewer than the {asked} asked for")
    # The old generator, because the official code uses it.
    order = np.random.RandomState(seed).permutation(len(train)).tolist()
    return train.take(order[:examples]), train.take(order[examples : examples + held_out]) if held_out else None
