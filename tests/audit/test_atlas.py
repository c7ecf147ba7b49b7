"""atlas audits each model type in its own process, keeps finished results, and writes a page with every type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minibeft.atlas.atlas import model_types, summary
from minibeft.atlas.page import html
from minibeft.errors import BadInput


def test_types_are_audited_once_and_shown(tmp_path: Path):
    """bert is there already, with a mark that a second run would lose; gpt2 is run; fnet has nothing to audit."""
    kept = {"type": "bert", "unaudited": "kept"}
    (tmp_path / "bert.json").write_text(json.dumps(kept), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "minibeft", "atlas", str(tmp_path), "--types", "bert,gpt2,fnet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Of 3 model types of transformers")
    record = json.loads((tmp_path / "atlas.json").read_text(encoding="utf-8"))
    rows = {row["type"]: row for row in record["rows"]}
    assert rows["bert"] == kept
    assert (rows["gpt2"]["k"], rows["gpt2"]["v"], rows["gpt2"]["agrees"]) == ("null", "foldable", True)
    assert rows["gpt2"]["dead"] == 12 * 768
    assert rows["fnet"]["unaudited"] == "it computes no softmax"
    assert record["summary"]["audited"] == 1
    page = (tmp_path / "atlas.html").read_text(encoding="utf-8")
    assert all(f"<td>{kind}</td>" in page for kind in rows)
    assert 'type="search"' in page
    assert "http" not in page


def test_a_disagreement_is_counted_and_shown():
    row = {
        "type": "x", "k": "null", "k_without": [1, 1], "k_why": "", "v": "foldable", "v_why": "", "dead": 0,
        "largest_null": 1e-16, "smallest_active": None, "certify": "active, foldable",
        "agrees": False,
    }  # fmt: skip
    found = summary([row])
    assert found["disagreements"] == ["x"]
    versions = {"torch": "2", "transformers": "5"}
    made = {"command": "c", "date": "d", "versions": versions, "machine": {"cores": 1, "cpu": "p"}}
    assert "active, foldable: disagrees" in html(made | {"summary": found, "rows": [row]})


def test_a_type_that_transformers_lacks_is_refused():
    with pytest.raises(BadInput, match="--types bert3: is no model type"):
        model_types("bert,bert3")
