"""A user's own tables: read in every format, trained on, predicted; transformers and PEFT then read the result."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_decoder import decoder_settings, make_decoder
from small_run import WORDS, make_model
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.training.data import read_data
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.tasks import OWN, find_files

CLASSES = ("calm", "angry", 'sad, "very"')


def table(rows: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Texts whose words tell the class, a second text that tells nothing, and the class."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        kind = int(draw.integers(3))
        words = " ".join(WORDS[10 * kind + int(i)] for i in draw.integers(10, size=6))
        found.append((words, f"{WORDS[int(draw.integers(30))]}, {WORDS[0]}", CLASSES[kind]))
    return found


def write(file: Path, rows: list[tuple[str, str, str]]) -> Path:
    """In the format of the file's ending, under the columns body, other, mood."""
    names = ("body", "other", "mood")
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif file.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), file)
    elif file.suffix == ".tsv":
        file.write_text("\n".join("\t".join(row) for row in (names, *rows)) + "\n")
    else:
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows((names, *rows))
    return file


def own(file: Path, **changes: Any) -> Settings:
    base: dict[str, Any] = {"text_column": "body", "pair_column": "other", "label_column": "mood"}
    return Settings("unused", OWN, str(file), **(base | changes))


def test_every_format_reads_the_same(tmp_path):
    rows = table(30)
    found = [read_data(own(write(tmp_path / f"all{kind}", rows))) for kind in (".csv", ".tsv", ".jsonl", ".parquet")]
    for each in found:
        assert each.task.labels == tuple(sorted(CLASSES))
        assert each.splits["train"].texts == [row[:2] for row in rows]
        assert [each.task.labels[int(label)] for label in each.splits["train"].labels] == [row[2] for row in rows]
        assert each.held_out == 3


def test_a_folder_gives_its_own_validation_and_its_classes_are_those_of_training(tmp_path):
    write(tmp_path / "train.csv", table(30))
    write(tmp_path / "val.jsonl", table(9, seed=1))
    found = read_data(own(tmp_path, pair_column=None))
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 30, "validation": 9}
    assert found.held_out == 0
    write(tmp_path / "val.jsonl", [("w1", "", "bored")])
    with pytest.raises(BadInput, match=r"val\.jsonl:1: label = 'bored'; own has 0 \(angry\)"):
        read_data(own(tmp_path))


def test_numbers_that_name_classes_are_names(tmp_path):
    """The classes 1, 2, 10: their order is that of numbers, and 1 is the first of them, not the second."""
    rows = [{"body": "w", "other": "", "mood": mood} for mood in (10, 1, 2.0, True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    found = read_data(own(tmp_path / "a.jsonl", held_out=1))
    assert found.task.labels == ("1", "2", "10")
    assert found.splits["train"].labels == [2, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'body,mood\n"open,x\n', r"a\.csv:\d: is no CSV"),
        ("a.csv", "body,mood\nx,y,z\n", r"a\.csv:2: has 3 fields, the header 2"),
        ("a.csv", "body,body\nx,y\n", "names a column twice"),
        ("a.csv", "text,mood\nx,y\n", "lacks the column body; it has text, mood"),
        ("a.csv", "body,mood\nx,same\ny,same\n", "mood has 1 classes; there must be 2"),
        ("a.csv", "body,mood\nx,\n", "mood = '' names no class"),
        ("a.jsonl", '{"body": "x", "mood": 0.5}', "mood = 0.5 names no class"),
        ("a.jsonl", '{"body": "x", "mood": null}', "mood = None names no class"),
        ("a.jsonl", '{"body": 1, "mood": "a"}\n{"body": "x", "mood": "b"}', "body = 1 is not text"),
        ("a.xlsx", "PK", r"a\.xlsx: is none of \.tsv, \.csv"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_data(own(tmp_path / name, pair_column=None))
    assert "\n" not in str(caught.value)


def command(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status or (status == 2 and isinstance(done.exception, BadInput)), done.output
    return done.output if status == 0 else str(done.exception)


@pytest.fixture(scope="module", params=["bert", "llama"])
def trained(tmp_path_factory, request) -> Path:
    """A CSV with three classes, and what finetune made of it, of an encoder or a decoder without biases; model,
    all.csv, new.csv, run."""
    root = tmp_path_factory.mktemp("own")
    if request.param == "bert":
        make_model(root / "model")
    else:
        make_decoder(root / "model", "llama", attention_bias=False)
    write(root / "all.csv", table(90))
    write(root / "new.csv", table(40, seed=1))
    words = f"--text-column body --label-column mood --epochs 5 --batch 8 --device cpu --out {root / 'run'} --baseline"
    said = command("finetune", root / "model", "--data", root / "all.csv", "--learning-rate", "0.02", *words.split())
    assert "; with no bias term: 0." in " ".join(said.split())
    assert (root / "run" / "none" / "seeds.json").is_file()
    return root


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term")
def test_a_csv_goes_from_finetune_to_predict_evaluate_merge_and_transformers(trained, tmp_path):
    """The run, its adapter and the merged folder say the same, and so do transformers' pipeline and PEFT."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    columns = ("--text-column", "body", "--device", "cpu")
    adapter = trained / "run" / "seed-0" / "adapter"
    command("merge", trained / "run", trained / "model", tmp_path / "merged")
    for name, folder in {"run": trained / "run", "adapter": adapter, "merged": tmp_path / "merged"}.items():
        command("predict", folder, trained / "new.csv", "--csv", tmp_path / f"{name}.csv", *columns)
    said = {name: read_csv(tmp_path / f"{name}.csv") for name in ("run", "adapter", "merged")}
    rows = table(40, seed=1)
    assert [row["body"] for row in said["run"]] == [row[0] for row in rows]
    right = np.mean([row["prediction"] == label for row, (*_, label) in zip(said["run"], rows, strict=True)])
    usual = max(sum(row[2] == name for row in rows) for name in CLASSES) / len(rows)
    measures = command("evaluate", trained / "run", trained / "new.csv", "--json", tmp_path / "e.json")
    assert "most frequent class" in measures
    metrics = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert metrics["model"]["accuracy"] == right
    assert metrics["most frequent class"]["accuracy"] == usual

    names = json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"]
    assert names == {str(i): name for i, name in enumerate(sorted(CLASSES))}
    pipe = transformers.pipeline("text-classification", str(tmp_path / "merged"), device="cpu")
    theirs = pipe([row[0] for row in rows], top_k=None)
    whole = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        str(adapter), num_labels=3, ignore_mismatched_sizes=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    with torch.no_grad():
        logits = [whole(**tokenizer(row[0], return_tensors="pt")).logits[0] for row in rows]
    for i, scores in enumerate(theirs):
        for each in scores:
            ours = [float(said[name][i][f"p({each['label']})"]) for name in ("run", "adapter", "merged")]
            place = sorted(CLASSES).index(each["label"])
            # Six digits are written.
            assert ours == pytest.approx([each["score"]] * 3, rel=1e-4, abs=1e-6)
            assert ours[0] == pytest.approx(logits[i].softmax(0)[place].item(), rel=1e-4, abs=1e-6)


def test_predict_refuses_in_one_line_and_overwrites_nothing(trained, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    words = ("predict", trained / "run", trained / "new.csv", "--csv")
    assert "is there, and not from this command" in command(*words, tmp_path / "there.csv", status=2)
    assert (tmp_path / "there.csv").read_text() == "mine"
    said = command("predict", trained / "model", *words[2:], tmp_path / "x.csv", status=2)
    decoder = (trained / "model" / "config.json").read_text().count("LlamaForCausalLM")
    assert ("has no classification head; give a run" if decoder else "--text-column") in said
    said = command("evaluate", trained / "run", trained / "new.csv", "--label-column", "kind", status=2)
    assert "lacks the column kind; it has body, other, mood" in said
    if decoder:  # whose tokenizer puts no token around a text, once it is told to
        file = trained / "model" / "tokenizer.json"
        bare, whole = json.loads(file.read_text()) | {"post_processor": None}, file.read_text()
        file.write_text(json.dumps(bare))
        (tmp_path / "empty.csv").write_text('body,mood\nw1,calm\n"",calm\n')
        said = command(*words[:2], tmp_path / "empty.csv", "--csv", tmp_path / "x.csv", status=2)
        assert said.startswith("text 2: has no tokens")
        file.write_text(whole)
    assert not (tmp_path / "x.csv").exists()


def test_evaluate_shows_what_a_decoder_says_without_training(tmp_path):
    """The row zero-shot is what a run that trains nothing measured; the model's row what the run did."""
    settings = decoder_settings(tmp_path, "llama", learning_rate=1.0)
    dev = find_files(tmp_path / "data" / "sst2", "validation")[0]
    last = {}
    for terms in ("v", "none"):
        record = finetune(replace(settings, terms=terms), tmp_path / terms, progress=lambda step: None)
        last[terms] = record["epochs"][-1]["validation"]["accuracy"]
    assert last["v"] != last["none"]
    command("evaluate", tmp_path / "v", dev, "--json", tmp_path / "e.json", "--device", "cpu")
    metrics = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert metrics.keys() == {"model", "most frequent class", "zero-shot"}
    assert (metrics["model"]["accuracy"], metrics["zero-shot"]["accuracy"]) == (last["v"], last["none"])
