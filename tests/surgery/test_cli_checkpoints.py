"""The checkpoint commands from the command line: what they write, their records, and one line where they refuse."""

import json
import subprocess
import sys

import pytest
import torch
from checkpoints import digests, in_transformers, logits, write_adapter, write_checkpoint
from typer.testing import CliRunner

from minibeft.cli.main import app


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())  # a long path may break a line anywhere


def test_merge_simplify_inspect_and_unmerge(tmp_path):
    model = write_checkpoint(tmp_path / "model", "llama", attention_bias=False, shard="1GB", dtype=torch.bfloat16)
    adapter = write_adapter(tmp_path / "adapter", model, size=1e-3)
    record = tmp_path / "merge.json"
    run("merge", adapter, model, tmp_path / "merged", "--json", record)
    merged = json.loads(record.read_text())
    assert merged["entries"] > 0
    assert merged["added"] == 8
    assert {"command", "versions", "machine", "date"} < merged.keys()
    assert "b_v: folded into b_o (V2" in run("simplify", tmp_path / "merged", tmp_path / "simple")
    found = logits(in_transformers(tmp_path / "simple"), model)
    assert torch.equal(found.argmax(-1), logits(in_transformers(tmp_path / "merged"), model).argmax(-1))
    table = run("inspect", tmp_path / "merged")
    assert "foldable" in table
    run("unmerge", tmp_path / "merged", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(model)
    run("merge", adapter, model, tmp_path / "folded", "--fold", "--residual")
    assert (tmp_path / "folded" / "merge" / "residual.safetensors").is_file()


def test_quantkeys_prints_and_records(tmp_path, monkeypatch):
    monkeypatch.setattr("minibeft.surgery.quantkeys.STEPS", 2)
    model = write_checkpoint(tmp_path / "opt", "opt")
    said = run("quantkeys", model, "--json", tmp_path / "study.json", "--export", tmp_path / "shifts.safetensors")
    assert said.startswith("A shift of the cached keys")
    assert len(json.loads((tmp_path / "study.json").read_text())["rows"]) == 4 * 3 * 4  # quantisers, bits, shifts
    assert (tmp_path / "shifts.safetensors").is_file()


@pytest.mark.parametrize(("command", "why"), [("simplify", "unrotated"), ("quantkeys", "holds one sentence")])
def test_a_refusal_is_one_line_and_status_2(command, why, tmp_path):
    model = write_checkpoint(tmp_path / "qwen2", "qwen2")
    (tmp_path / "text").write_text("It was dull .\n")
    more = {"simplify": [str(tmp_path / "out")], "quantkeys": ["--text", str(tmp_path / "text")]}
    arguments = [command, str(model), *more[command]]
    done = subprocess.run([sys.executable, "-m", "minibeft", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("minibeft: ")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
