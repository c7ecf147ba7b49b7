"""predict --adapters: each row of a table by its own adapter, as the merged models say it, in one stream."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import WORDS, make_adapters, make_model
from tolerance import FACTOR, assert_agrees, samples
from torch import Tensor
from typer.testing import CliRunner

from minibeft.checkpoints.adapters import load_adapted
from minibeft.cli.main import app
from minibeft.models.packed.sets import Rows
from minibeft.models.transformer import Transformer
from minibeft.training import mixed
from minibeft.training.batches import Batch
from minibeft.training.mixed import open_mixed, scores_of
from minibeft.training.predict import Classifier, settings_for

ROWS = [(" ".join(WORDS[i % 7 : i % 7 + 1 + i % 5]), ("all", "v", "q", "v")[i % 4]) for i in range(14)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    make_adapters(make_model(root / "model"), root / "adapters")
    write(root / "table.csv", ROWS)
    return root


def write(file: Path, rows: list[tuple[str, str]]) -> None:
    file.write_text("\n".join(["words,adapter", *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")


def say(root: Path, *words: object) -> str:
    """What the command says, or why it does not."""
    given = [
        "predict",
        root / "model",
        "--adapters",
        root / "adapters",
        "--text-column",
        "words",
        "--csv",
        root / "o.csv",
    ]
    done = CliRunner().invoke(app, [*map(str, given), "--device", "cpu", *map(str, words)])
    return done.output if done.exit_code == 0 else str(done.exception)


@pytest.fixture(scope="module")
def opened(root) -> tuple[Classifier, mixed.Requests]:
    settings = settings_for(str(root / "model"), "words", None, None, None, "fused", "cpu")
    return open_mixed(settings, root / "adapters", root / "table.csv", "adapter")


@pytest.fixture(scope="module")
def merged(root, opened) -> tuple[Tensor, list[Tensor]]:
    """The logits of the merged models, in float64, and samples of float32's rounding."""
    classifier, requests = opened
    models = [load_adapted(root / "model", root / "adapters" / name, dtype=torch.float64) for name in requests.names]
    data = classifier.encoded(requests.split)

    def apart(models: list[Transformer]) -> Tensor:
        logits = torch.zeros(len(requests.split), 2, dtype=torch.float64)
        for number, model in enumerate(models):
            own = (requests.numbers == number).nonzero()[:, 0]
            batch = data.gather(own, None, torch.device("cpu"))
            assert isinstance(batch, Batch)
            with torch.no_grad():
                logits[own] = model.eval().classify(*batch[:3])
        return logits

    return apart(models), samples(apart, models)


def test_each_row_is_answered_as_its_merged_model_does(opened, merged, monkeypatch):
    (classifier, requests), (exact, rounded) = opened, merged
    monkeypatch.setattr(mixed, "EVALUATION_BATCH", 4)  # several batches, in another order than the table's
    assert requests.names == ["all", "v", "q"]
    assert_agrees(scores_of(classifier, requests), rounded, exact, what="logits")
    pick = Rows.pick
    monkeypatch.setattr(Rows, "pick", lambda rows, count: pick(rows, count).flip(0))  # planted: another row's
    with pytest.raises(AssertionError, match="logits: error"):
        assert_agrees(scores_of(classifier, requests), rounded, exact, what="logits")


def test_the_command_writes_it(root, merged):
    """The CSV's six digits, and a softmax's derivative of at most 1/2 an entry: |p − p'| ≤ ‖z − z'‖∞ / 2 + 5e-7."""
    exact, rounded = merged
    assert "14 rows by 3 adapters" in say(root, "--data", root / "table.csv")
    with (root / "o.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [(row["words"], row["adapter"]) for row in found] == ROWS
    told = np.array([[float(row["p(LABEL_0)"]), float(row["p(LABEL_1)"])] for row in found])
    allowed = FACTOR * max((one - exact).abs().max().item() for one in rounded) / 2 + 5e-7
    assert abs(told - exact.softmax(1).numpy()).max() <= allowed
    assert [row["prediction"] for row in found] == [f"LABEL_{k}" for k in exact.argmax(1).tolist()]
    assert len({row["prediction"] for row in found}) == 2


def test_what_cannot_be_answered_is_refused_in_one_line(root, tmp_path):
    (root / "o.csv").unlink(missing_ok=True)
    table = root / "table.csv"
    assert "give the table once" in say(root)
    assert "give the table once" in say(root, table, "--data", table)
    write(tmp_path / "wrong.csv", [*ROWS, ("w1", "../model")])
    assert say(root, tmp_path / "wrong.csv").endswith(
        "wrong.csv:16: adapter = '../model' is no folder of adapters; there are all, q, v"
    )
    assert "lacks the column who" in say(root, table, "--adapter-column", "who")
    assert "is the column of the texts" in say(root, table, "--adapter-column", "words")
    assert "must be a folder that holds the adapters' folders" in say(root, table, "--adapters", table)
    assert "adapters side by side need an encoder's classifier" in say(root, table, "--backend", "plain")
    write(tmp_path / "model.csv", [("w1", "model")])
    assert "holds no adapter_config.json" in say(root, tmp_path / "model.csv", "--adapters", root)
    assert not (root / "o.csv").exists()


def test_classes_are_called_as_each_adapter_calls_them(root):
    """In the column of the prediction; those of the probabilities are numbered where the names differ."""
    settings = settings_for(str(root / "model"), "words", None, None, None, "fused", "cpu")
    classifier, requests = open_mixed(settings, root / "adapters", root / "table.csv", "adapter")
    assert classifier.model.served is not None
    classifier.model.served.labels[:] = [("no", "yes"), ("bad", "good"), ("bad", "good")]
    rows = [line.split(",") for line in mixed.predict_mixed(classifier, requests).decode().splitlines()[1:]]
    assert {row[2] for row in rows if row[1] == "all"} <= {"no", "yes"}
    assert {row[2] for row in rows if row[1] != "all"} == {"bad", "good"}
