"""What certify does not know is measured where transformers can run it, and said to be measured."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from minibeft.audit import stand_in
from minibeft.cli.main import app
from minibeft.families import FAMILIES

CODEGEN = {
    "model_type": "codegen", "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "vocab_size": 60,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def stranger(monkeypatch: pytest.MonkeyPatch):
    """CodeGen is a type that certify does not know."""
    monkeypatch.delitem(FAMILIES, "codegen", raising=False)


def certified(folder: Path, raw: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    (folder / "config.json").write_text(json.dumps(raw))
    done = CliRunner().invoke(app, ["certify", str(folder), "--json", str(folder / "record.json")])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split()), json.loads((folder / "record.json").read_text())


def test_an_unknown_type_is_measured_and_labelled(tmp_path: Path):
    said, record = certified(tmp_path, CODEGEN)
    assert "unknown: model_type codegen is not one of" in said
    assert "no certificate but a measurement" in said
    assert record["verdicts"]["k"] == "unknown"
    assert [layer["found"]["k"]["status"] for layer in record["measured"]["layers"]] == ["partly null"]


def test_a_type_that_transformers_lacks_stays_unknown(tmp_path: Path):
    said, record = certified(tmp_path, {"model_type": "mystery"})
    assert "measurement" not in said
    assert "measured" not in record


def test_without_transformers_it_stays_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stand_in, "find_spec", lambda name: importlib.util.find_spec("no_such_module"))
    assert "measurement" not in certified(tmp_path, CODEGEN)[0]


def test_what_transformers_cannot_read_stays_unknown(tmp_path: Path):
    """Its classes raise what they like on a value of the wrong type."""
    said, record = certified(tmp_path, {"model_type": "roberta", "num_hidden_layers": True})
    assert "unknown" in said
    assert "measured" not in record
