"""The data that settings name: a task's splits, or one's own tables with any number of named classes."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minibeft.errors import BadInput
from minibeft.families.family import MOST_LABELS
from minibeft.training.folders import classes_of, read_classes
from minibeft.training.rows import read_rows
from minibeft.training.settings import Settings
from minibeft.training.tasks import (
    OWN,
    Split,
    Task,
    class_name,
    find_data,
    find_files,
    find_task,
    is_folders,
    read_files,
    read_split,
)

# For your own data, which the protocol does not cover: its values for small tasks of sentence pairs.
LEARNING_RATE, EPOCHS = 1e-3, 30
HELD_OUT = 10  # one example in ten is held out, if there is no validation split


class Dataset(NamedTuple):
    """What is trained and validated on. held_out: examples of the training split that stand in for validation."""

    task: Task
    splits: dict[str, Split]
    files: list[Path]
    held_out: int


def read_data(settings: Settings) -> Dataset:
    """All splits that the settings need, with the files they came from."""
    if settings.task == OWN:
        return read_own(settings)
    task = find_task(settings.task)
    folder = find_data(task, settings.data)
    splits = ["train"] if settings.held_out else ["train", *task.valid]
    raw = {split: read_split(task, folder, split) for split in splits}
    return Dataset(task, raw, [file for split in splits for file in find_files(folder, split)], settings.held_out)


def read_own(settings: Settings) -> Dataset:
    """One's own data: a file, of which a tenth is held out unless the settings say how much; or a folder with train and
    validation files. The classes are the labels that the training file has, in alphabetical order."""
    place = Path(settings.data or "").expanduser()
    if settings.text_column is None and is_folders(settings.data):
        return read_own_folders(settings, place)
    if settings.data is None or not place.exists():
        raise BadInput(f"--data {settings.data}: no such file or folder; --text-column needs your own table there")
    train, valid = ([place], []) if place.is_file() else (find_files(place, "train"), find_files(place, "validation"))
    task = own_task(settings, train)
    raw = {"train": read_files(task, train)}
    held_out = settings.held_out
    if valid and not held_out:
        raw["validation"] = read_files(task, valid)
    elif not held_out:
        held_out = max(1, len(raw["train"]) // HELD_OUT)
    return Dataset(task, raw, train + valid * ("validation" in raw), held_out)


def read_own_folders(settings: Settings, place: Path) -> Dataset:
    """Files in a folder for each class; the examples are their paths. A tenth is held out where there is no
    validation folder."""
    task = task_of(settings, classes_of(place), f"{place / 'train'}: has a folder for")
    raw = read_classes(place, task.labels, valid=not settings.held_out)
    held_out = settings.held_out or (0 if len(raw) > 1 else max(1, len(raw["train"]) // HELD_OUT))
    return Dataset(task, raw, [Path(file) for split in raw.values() for (file,) in split.texts], held_out)


def own_task(settings: Settings, files: list[Path]) -> Task:
    """The task of these columns, with the classes that the files name."""
    names = set()
    for file in files:
        for where, row in read_rows(file, (*columns_of(settings), settings.label_column)):
            value = row[settings.label_column]
            if not (name := class_name(value)):
                raise BadInput(f"{where}: {settings.label_column} = {value!r} names no class")
            names.add(name)
    return task_of(settings, tuple(sorted(names, key=in_order)), f"{files[0]}: {settings.label_column} has")


def task_of(settings: Settings, names: tuple[str, ...], where: str) -> Task:
    """The task of these classes."""
    if not 2 <= len(names) < MOST_LABELS:
        raise BadInput(f"{where} {len(names)} classes; there must be 2 to {MOST_LABELS}")
    return replace(
        Task(OWN, columns_of(settings), names, ("accuracy", "f1_macro"), ()),
        **{"label": settings.label_column, "learning_rate": LEARNING_RATE, "epochs": EPOCHS},
    )


def columns_of(settings: Settings) -> tuple[str, ...]:
    """The columns of the texts."""
    return tuple(column for column in (settings.text_column, settings.pair_column) if column is not None)


def in_order(name: str) -> tuple[int, str]:
    """Numbers by size, then words by alphabet."""
    return (int(name) if name.isdecimal() and len(name) < 10 else 10**10, name)
