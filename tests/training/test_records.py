"""Every file of a run's folder that is read again, damaged in every part: refused by name, and all left as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import small_settings
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.reproduce.series import open_series

DROP = object()
# Part → what it must not be; of an object or a list, an edit of what the run wrote.
RUN: list[tuple[str, Any]] = [
    ("settings", None),
    ("settings", {"rank": "a"}),
    ("settings", {"new": 1}),
    ("settings", {"model": 3}),
    ("settings", {"dropout": 1.0}),
    ("digests", 3),
    ("digests", {"data": 5}),
    ("labels", 5),
    ("labels", [1, 2]),
    ("trained", None),
    ("trained", {"tensors": "x"}),
    ("trained", {"count": "many"}),
    ("epochs", None),
    ("epochs", ["x"]),
    ("epochs", []),
    ("epochs", lambda epochs: [epochs[0] | {"validation": {}}]),
    ("epochs", lambda epochs: [epochs[0] | {"validation": {"f1": 1.0}}]),
    ("epochs", lambda epochs: [epochs[0] | {"validation": {"accuracy": "good"}}]),
    ("epochs", lambda epochs: [{k: v for k, v in epochs[0].items() if k != "loss"}]),
    ("epochs", lambda epochs: epochs * 2),
    ("complete", "yes"),
    ("written", 5),
    ("written", "0" * 64),
    ("versions", DROP),
]
SHARED: list[tuple[str, Any]] = [
    ("settings", DROP),
    ("settings", [1]),
    ("settings", {"rank": "a"}),
    ("digests", DROP),
    ("digests", {"data": None}),
]
LAST: list[tuple[str, Any]] = [
    ("last", "x"),
    ("last", [{"seed": "0"}]),
    ("last", lambda last: [{**last[0], "loss": None}]),
]
TEXTS = [b"", b"{", b"[]", b"\xff\xfe", b'{"settings": ' * 5000]


def damaged(content: bytes, part: str, value: Any) -> bytes:
    """The record with this part damaged."""
    record = json.loads(content)
    if value is DROP:
        del record[part]
    elif callable(value):
        record[part] = value(record[part])
    else:
        record[part] = record[part] | value if isinstance(value, dict) else value
    return json.dumps(record).encode()


def command(*words: object) -> BadInput | None:
    """What the command line refuses with; None where it does its work. Anything else fails."""
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exit_code and not isinstance(done.exception, BadInput):
        raise AssertionError(done.output) from done.exception
    return done.exception if isinstance(done.exception, BadInput) else None


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A model, data, and what finetune made of them over two seeds."""
    root = tmp_path_factory.mktemp("records")
    small_settings(root)
    assert command(*finetune(root)) is None
    return root


def finetune(root: Path) -> list[str]:
    line = f"finetune {root}/model --data {root}/data --out {root}/run --seeds 0-1 --epochs 1 --examples 24 --batch 8"
    return [*line.split(), "--device", "cpu"]


def refused(root: Path, file: Path, content: bytes, run: Callable[[], BadInput | None]) -> None:
    """With this content in the file, the command names it, and leaves every file of the folder as it is."""
    whole = file.read_bytes()
    file.write_bytes(content)
    before = {each: each.read_bytes() for each in (root / "run").rglob("*") if each.is_file()}
    try:
        error = run()
        assert error is not None, content[:200]
        assert str(error).startswith(str(file)), error
        assert {each: each.read_bytes() for each in (root / "run").rglob("*") if each.is_file()} == before
    finally:
        file.write_bytes(whole)


def test_a_damaged_run_is_refused_by_finetune_and_by_predict(root):
    file = root / "run" / "seed-1" / "run.json"
    whole, table = file.read_bytes(), root / "data" / "sst2" / "dev.tsv"
    predict = ("predict", file.parent, table, "--csv", root / "x.csv", "--device", "cpu")
    for content in (*TEXTS, *(damaged(whole, part, value) for part, value in RUN)):
        if b'"0000000' not in content:  # a wrong digest is reported as wrong weights
            refused(root, file, content, lambda: command(*finetune(root)))
    for part, value in RUN:
        # Which split and metric there should be is for finetune to know, which reads the data.
        if part != "written" and not callable(value):
            refused(root, file, damaged(whole, part, value), lambda: command(*predict))
    assert not (root / "x.csv").exists()


@pytest.mark.parametrize("damage", ["a byte", "cut", "another run's", "not finite", "empty"])
def test_damaged_weights_are_refused_by_finetune_and_by_predict(root, damage):
    file = root / "run" / "seed-1" / "trained.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    save_file({name: torch.full_like(value, torch.nan) for name, value in tensors.items()}, root / "nan.safetensors")
    content = {
        "a byte": whole[:-1] + bytes([whole[-1] ^ 1]),
        "cut": whole[:-4],
        "another run's": (root / "run" / "seed-0" / "trained.safetensors").read_bytes(),
        "not finite": (root / "nan.safetensors").read_bytes(),
        "empty": b"",
    }[damage]
    predict = ("predict", file.parent, root / "data" / "sst2" / "dev.tsv", "--csv", root / "x.csv", "--device", "cpu")
    for words in (finetune(root), predict):
        refused(root, file, content, lambda words=words: command(*words))


def test_a_damaged_list_of_seeds_is_refused(root):
    file = root / "run" / "seeds.json"
    whole = file.read_bytes()
    for content in (*TEXTS, *(damaged(whole, part, value) for part, value in (*SHARED, *LAST))):
        refused(root, file, content, lambda: command(*finetune(root)))


def test_a_damaged_series_and_a_damaged_run_in_it_are_refused(root, tmp_path):
    settings, folder = small_settings(root, epochs=1), root / "run" / "series"

    def series() -> BadInput | None:
        try:
            with open_series(settings, folder, held_out=0) as opened:
                opened.run([settings], jobs=1)
        except BadInput as error:
            return error
        return None

    assert series() is None
    file, (run,) = folder / "series.json", folder.glob("runs/*/run.json")
    for content in (*TEXTS, *(damaged(file.read_bytes(), part, value) for part, value in SHARED)):
        refused(root, file, content, series)
    for part, value in RUN[:4]:
        refused(root, run, damaged(run.read_bytes(), part, value), series)
