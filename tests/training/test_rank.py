"""The ranking: three measures of eight terms in every layer, and b_k's drift beside its effect."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_run import small_settings
from tolerance import FACTOR, error
from typer.testing import CliRunner

from minibeft.checkpoints.adapters import their_names
from minibeft.checkpoints.load import load_model
from minibeft.cli.main import app
from minibeft.models.biases import BIAS_TERMS
from minibeft.reproduce.plan import name_of
from minibeft.reproduce.reproduce import reproduce
from minibeft.training.importance import mag_angle, magnitude
from minibeft.training.loading import load
from minibeft.training.train import predict, start


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    root = tmp_path_factory.mktemp("rank")
    settings = small_settings(root, epochs=6)
    return settings, root / "out", reproduce("ranking", settings, root / "out", seeds=[0])[0]


def test_every_term_has_a_score_in_every_layer(ranked):
    _, folder, record = ranked
    assert set(record["scores"]) == {"mag_angle", "magnitude", "fisher"}
    for (scores,) in record["scores"].values():
        assert {term: len(values) for term, values in scores.items()} == dict.fromkeys(BIAS_TERMS, 2)
    assert json.loads((folder / "ranking.json").read_text())["scores"] == record["scores"]
    assert "<svg" in (folder / "ranking.html").read_text()


def test_scores_compare_the_trained_biases_with_the_checkpoints(ranked):
    settings, folder, record = ranked
    base = load_model(settings.model)
    tuned = load_file(folder / "runs" / name_of(replace(settings, terms="all")) / "trained.safetensors")
    for term, ours, theirs in (
        ("v", "blocks.1.attention.v.bias", "bert.encoder.layer.1.attention.self.value.bias"),
        ("ln1", "blocks.1.norm1.bias", "bert.encoder.layer.1.attention.output.LayerNorm.bias"),
    ):
        before, after = base.get_parameter(ours), tuned[theirs]
        assert record["scores"]["mag_angle"][0][term][1] == mag_angle(before, after)
        assert record["scores"]["magnitude"][0][term][1] == magnitude(before, after) > 0


def test_fisher_knows_that_the_key_bias_has_no_use(ranked):
    """K2: its gradient is rounding, some u = 2⁻²⁴ of the others'; squared, with 2¹⁶ for what is summed, below 2⁻³²."""
    scores = ranked[2]["scores"]["fisher"][0]
    others = min(max(values) for term, values in scores.items() if term != "k")
    assert max(scores["k"]) < 2**-32 * others


def test_adam_carries_the_key_bias_where_it_has_no_effect(ranked):
    """K5: a smaller eps carries it further. K1: putting it back changes nothing but the rounding of the logits, which
    two float32 runs may each have twice as large as the one measured here against float64."""
    settings, folder, record = ranked
    drift = record["drift"]
    assert drift["eps 1e-8"]["moved"] > 3 * drift["eps 1e-6"]["moved"] > 0
    assert drift["bfloat16"]["moved"] > drift["eps 1e-6"]["moved"]
    for name, eps in (("eps 1e-6", 1e-6), ("eps 1e-8", 1e-8)):
        assert drift[name]["predictions_changed"] == 0
        tuned = load_file(folder / "runs" / name_of(replace(settings, terms="k", eps=eps)) / "trained.safetensors")
        single, double = (logits(settings, tuned, dtype) for dtype in (torch.float32, torch.float64))
        assert drift[name]["effect"] <= 2 * FACTOR * error(single, double)


def logits(settings, tuned, dtype):
    """The validation logits of the model with these trained values, computed in this type."""
    loaded = load(settings)
    run = start(replace(settings, terms="k"), loaded.task, loaded.model.to(dtype))
    names = their_names(run.model)
    for name, value in run.trained.items():
        value.data.copy_(tuned[names[name]])
    return predict(run, loaded.valid["validation"])


def test_what_is_complete_is_not_run_again(ranked):
    settings, folder, record = ranked
    before = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*")}
    again, _ = reproduce("ranking", settings, folder, seeds=[0])
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert again["scores"] == record["scores"]


def test_the_command_prints_the_ranking(ranked, tmp_path):
    settings = ranked[0]
    words = f"rank {settings.model} --data {settings.data} --examples 48 --epochs 1 --out {tmp_path / 'out'}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    rows = [line.split()[0] for line in done.output.splitlines() if line.split() and line.split()[0] in BIAS_TERMS]
    assert set(rows) == set(BIAS_TERMS)
    assert "eps 1e-8" in done.output
