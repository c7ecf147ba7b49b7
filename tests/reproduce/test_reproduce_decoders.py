"""`reproduce bias-free`: with learned positions b_k is zero-shot, exactly; with rotary ones it need not be."""

from pathlib import Path

import pytest
from small_decoder import decoder_settings
from typer.testing import CliRunner, Result

from minibeft.checkpoints.tensors import read_json
from minibeft.cli.main import app

# Scores of size 10 after sums of some hundred products in float32: 10 · 100 · 2⁻²⁴, rounded up.
ROUNDING = 1e-4


def run(root: Path, family: str) -> Result:
    """The command on a random decoder of this family, at a rate that moves what can be moved."""
    decoder_settings(root, family)
    line = f"reproduce bias-free --model {root}/{family} --data {root}/data --out {root}/out-{family} --seeds 0"
    return CliRunner().invoke(app, [*line.split(), *"--examples 24 --epochs 2 --device cpu".split()])


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_b_k_is_zero_shot_where_positions_are_not_rotary(tmp_path, family):
    result = run(tmp_path, family)
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / f"out-{family}" / "bias-free.json")
    text = (tmp_path / f"out-{family}" / "bias-free.md").read_text(encoding="utf-8")
    drift = record["drift"]["seed 0"]
    assert drift["moved"] > 0
    if family == "opt":
        assert record["key_bias"]["status"] == "null"
        assert [(pair["allowed"], pair["ok"]) for pair in record["same"]] == [(0.0, True)]
        assert drift["effect"] < ROUNDING
    else:
        assert record["key_bias"] | {"reason": ""} == {"status": "active", "theorem": "K4", "reason": ""}
        assert record["same"] == []
        assert "need not be training without it here" in text
        assert drift["effect"] > ROUNDING


def test_other_metrics_than_zero_shot_fail_the_command(tmp_path):
    """Planted: one validation accuracy of the run with b_k is another."""
    assert run(tmp_path, "opt").exit_code == 0
    file = next((tmp_path / "out-opt").glob("runs/k-*/run.json"))
    text = file.read_text(encoding="utf-8")
    score = read_json(file)["epochs"][0]["validation"]["accuracy"]
    file.write_text(text.replace(f'"accuracy": {score}', '"accuracy": 0.123', 1), encoding="utf-8")
    result = run(tmp_path, "opt")
    assert result.exit_code == 1, result.output
    assert "NO" in result.output
