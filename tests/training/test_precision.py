"""--dtype auto takes the type that was measured to be the faster one, says so, and a folder keeps its type."""

import json

import pytest
import torch
from small_run import small_settings
from typer.testing import CliRunner

from minibeft.benchmarks.train import plan
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.training import precision
from minibeft.training.precision import rates, settled
from minibeft.training.runs import finetune
from minibeft.training.train import Step

MEASURED = {"float32": {"float32": 20.0, "bfloat16": 10.0}, "bfloat16": {"float32": 10.0, "bfloat16": 20.0}}


def quiet(step: Step) -> None:
    """No progress."""


@pytest.fixture
def faster(monkeypatch):
    """Makes one type the faster one; without a call a measurement is an error."""

    def make(dtype: str | None) -> None:
        monkeypatch.setattr(precision, "rates", lambda *_: MEASURED[dtype or "measured"])

    make(None)
    return make


def finetune_auto(settings, folder, *more: str):
    """The command with --dtype auto; its result, and the type in every run's record."""
    given = {"data": settings.data, "examples": 16, "epochs": 1, "batch": 8, "max-length": 24, "out": folder}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, ["finetune", settings.model, "--dtype", "auto", *options, *more])
    return result, {json.loads(file.read_text())["settings"]["dtype"] for file in folder.rglob("run.json")}


@pytest.mark.parametrize("dtype", MEASURED)
@pytest.mark.parametrize("more", [(), ("--rates", "1e-3,1e-2", "--stack")], ids=["one", "rates"])
def test_the_faster_type_is_taken_and_kept(tmp_path, faster, dtype, more):
    """The same command again measures nothing, nor when another type has become the faster one."""
    settings = small_settings(tmp_path)
    faster(dtype)
    result, types = finetune_auto(settings, tmp_path / "run", *more)
    assert types == {dtype}, result.output
    (line,) = [line for line in result.stderr.splitlines() if "--dtype" in line]
    assert line == (
        f"--dtype auto: {dtype}; an MLP trains {MEASURED[dtype]['float32']:.3g} tokens/s in float32, "
        f"{MEASURED[dtype]['bfloat16']:.3g} tokens/s in bfloat16"
    )
    faster(None)
    result, types = finetune_auto(settings, tmp_path / "run", *more, "--seeds", "0,1")
    assert result.exit_code == 0, result.output
    assert types == {dtype}
    assert f"--dtype auto: {dtype}; as the runs in" in " ".join(result.stderr.split())


def test_an_interrupted_run_goes_on_in_its_type(tmp_path, faster):
    settings = small_settings(tmp_path, dtype="auto")

    def stop(step: Step) -> None:
        if step.epoch == 1:
            raise KeyboardInterrupt

    faster("bfloat16")
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, tmp_path / "run", progress=stop)
    faster("float32")
    assert finetune(settings, tmp_path / "run", progress=quiet)["settings"]["dtype"] == "bfloat16"


def test_a_series_keeps_its_type(tmp_path, faster):
    settings = small_settings(tmp_path, dtype="auto")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "series.json").write_text(json.dumps({"settings": {"dtype": "bfloat16"}, "digests": {}}))
    assert settled(settings, tmp_path / "series").dtype == "bfloat16"


@pytest.mark.parametrize("dtype", MEASURED)
def test_the_benchmark_measures_the_faster_type_alone(tmp_path, faster, dtype):
    pytest.importorskip("peft")
    settings = small_settings(tmp_path)
    faster(dtype)
    assert plan(settings.model, settings.data, examples=16, rounds=1, dtypes=["auto"]).dtypes == [dtype]


def test_an_mlp_is_measured_and_no_random_number_is_drawn(tmp_path):
    settings = small_settings(tmp_path)
    before = torch.get_rng_state()
    found = rates(settings.model, "cpu")
    assert found.keys() == MEASURED.keys()
    assert all(rate > 0 for rate in found.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_another_machine_is_not_measured(tmp_path, faster):
    result, _ = finetune_auto(small_settings(tmp_path), tmp_path / "run", "--cluster", "tcp://nowhere:1")
    assert isinstance(result.exception, BadInput)
    assert "goes with no --dtype auto" in str(result.exception)


@pytest.mark.parametrize("command", [("finetune",), ("reproduce",), ("bench", "train")])
def test_the_help_says_it(command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert "auto: the faster one here" in result.output
