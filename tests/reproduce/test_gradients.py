"""`gradients`: the sizes of the gradients of b_q, b_k and b_v before the first update, beside Q8's bound."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import make_data, make_model
from typer.testing import CliRunner

from minibeft.checkpoints.tensors import read_json
from minibeft.cli.main import app
from minibeft.reproduce import gradients
from minibeft.training.loading import load
from minibeft.training.settings import Settings
from minibeft.training.train import loss_of, start


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("gradients")
    make_data(root / "data")
    return Settings(str(make_model(root / "model")), "sst2", str(root / "data"), examples=32, batch=32, device="cpu")


def test_sizes_are_those_of_the_loss_of_one_batch(settings: Settings):
    """With one batch the means over the batches are its values: against a backward pass of its own. Float32 sums of
    some thousand products differ by less than 1e-3 of their size."""
    row = gradients.measure(settings, [3], lambda done, of: None)["rows"][0]
    loaded = load(replace(settings, terms="v,q,k", backend="plain", seed=3))
    run = start(loaded.settings, loaded.task, loaded.model)
    run.model.eval()
    batch = loaded.train.gather(torch.arange(32), None, torch.device("cpu"))
    loss_of(run.task, batch.scores(run.model), batch.labels).backward()
    for term in "vq":
        slopes = [p.grad for name, p in run.trained.items() if name.endswith(f"attention.{term}.bias")]
        own = torch.cat([slope.double() for slope in slopes if slope is not None])
        assert row[term]["l1"] == pytest.approx(own.norm(1).item(), rel=1e-3)
        assert row[term]["l2"] == pytest.approx(own.norm().item(), rel=1e-3)
    assert row["q"]["l2"] <= row["q"]["bound"]
    assert row["k"]["l2"] < 1e-5 * row["v"]["l2"]  # K2: rounding alone
    assert row["k"]["below_eps"] == 1.0


def test_the_command_says_how_far_b_v_goes_beside_b_q(settings: Settings, tmp_path: Path):
    file = tmp_path / "found.json"
    line = f"gradients {settings.model} --data {settings.data} --examples 32 --seeds 0,1 --json {file}"
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, done.output
    record = read_json(file)
    times = sum(row["v"]["l1"] / row["q"]["l1"] for row in record["rows"]) / 2
    assert f"moves the loss {times:.1f} times as far" in " ".join(done.output.split())
