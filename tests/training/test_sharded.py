"""Two processes train a decoder, and a stack, as one does: the same losses and scores up to rounding, half of the
matrices each. They serve adapters side by side as one does.

Tolerance: float64 runs differ by what the float32 error of the same run says, scaled by the unit roundoffs' ratio.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_worker import main
from small_decoder import decoder_settings
from small_run import make_adapters, small_settings
from stack_worker import served, trained, with_adapters
from stacked import in_double, quiet
from tolerance import SAMPLES, assert_agrees, samples
from torch import Tensor

from minibeft.checkpoints.adapters import load_adapted
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.training import sharded
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.tasks import find_task
from minibeft.training.train import start

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HELPERS = Path(__file__).parents[1] / "helpers"
WORKER, STACK_WORKER = str(HELPERS / "sharded_worker.py"), str(HELPERS / "stack_worker.py")


def launch(*command: str) -> None:
    """In two processes, which torchrun starts."""
    path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([*TORCHRUN, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def alone(settings: Settings, dtype: torch.dtype, file: Path, nudged: int = 0) -> dict[str, Any]:
    """The same in this process; `nudged` is the seed of a sample of rounding."""
    main(settings, dtype, file, nudged)
    return json.loads(file.read_text())


def tensor(result: dict[str, Any], key: str) -> Tensor:
    return torch.tensor(result[key], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "terms"), [("opt", "q,v"), ("llama", "k")])
def test_two_processes_give_the_losses_of_one(tmp_path, family, terms):
    settings = decoder_settings(tmp_path, family, terms=terms)
    launch(WORKER, json.dumps(asdict(settings)), "float64", str(tmp_path / "two"))
    two = json.loads((tmp_path / "two").read_text())
    one = alone(settings, torch.float64, tmp_path / "one")
    drawn = [alone(settings, torch.float64, tmp_path / "one", seed) for seed in range(1, SAMPLES + 1)]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert 2 * two["held"] == one["held"]
    for key in ("losses", "logits"):
        assert_agrees(tensor(two, key), [tensor(run, key) for run in drawn], tensor(one, key), what=key)
    other = alone(replace(settings, eps=1.1e-6), torch.float64, tmp_path / "other")
    losses = [tensor(run, "losses") for run in drawn]
    with pytest.raises(AssertionError, match="losses: error"):  # negative twin: they show a slightly wrong update
        assert_agrees(tensor(other, "losses"), losses, tensor(one, "losses"), what="losses")


@pytest.mark.slow
def test_the_command_runs_under_torchrun_and_resumes_with_as_many_processes_only(tmp_path):
    """One folder, written once, which says what one process's says; bfloat16 leaves what trains in float32."""
    settings = decoder_settings(tmp_path, "llama", terms="v", dtype="bfloat16")
    words = f"-m minibeft finetune {settings.model} --data {settings.data} --examples 24 --epochs 2 --dtype bfloat16"
    launch(*words.split(), "--device", "cpu", "--out", str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "seed-0" / "run.json").read_text())
    assert record["complete"]
    assert len(record["epochs"]) == 2
    adapted = load_adapted(settings.model, tmp_path / "out" / "seed-0" / "adapter", dtype=torch.float32)
    assert any(block.attention.v.bias.any() for block in adapted.blocks)  # type: ignore[union-attr]
    finetuned = tmp_path / "out" / "seed-0" / "run.json"
    finetuned.write_text(json.dumps({name: value for name, value in record.items() if name != "complete"}))
    with pytest.raises(BadInput, match="was begun by 2 processes; resume it with as many"):
        finetune(replace(settings, learning_rate=None), tmp_path / "out" / "seed-0", progress=quiet)


@pytest.mark.slow
def test_a_stack_and_adapters_side_by_side_in_two_processes(tmp_path):
    """Runs of other terms, rates and seeds, whose batches do not divide by two; adapters of b_v, folded, and of all."""
    base = small_settings(tmp_path, epochs=1, examples=22, batch=7, evaluated=9, dropout=False)
    work = [base, replace(base, terms="q", seed=1, learning_rate=3e-3)]
    adapters = [str(folder) for folder in make_adapters(Path(base.model), tmp_path, ("v", "all"))]
    launch(STACK_WORKER, json.dumps([one.as_json() for one in work]), json.dumps(adapters), str(tmp_path))
    two, first = json.loads((tmp_path / "found").read_text()), in_double(base)

    train = partial(trained, first=first, work=work)
    one, drawn = train(first.model), samples(train, first.model, torch.float64)
    assert_agrees(tensor(two, "trained"), drawn, one, what="the stack")
    with pytest.raises(AssertionError, match="the stack: error"):  # negative twin: gradients of a share of the batch
        assert_agrees(tensor(two, "not summed"), drawn, one, what="the stack")
    assert two["draws as alone"]

    model = with_adapters(first, adapters)
    one, drawn = served(model), samples(served, model, torch.float64)
    assert_agrees(tensor(two, "served"), drawn, one, what="the adapters")
    with pytest.raises(AssertionError, match="the adapters: error"):  # negative twin: exchanged
        assert_agrees(served(with_adapters(first, adapters[::-1])), drawn, one, what="the adapters")

    assert all((tmp_path / number / "adapter").is_dir() for number in "01")
    run = tmp_path / "1" / "run.json"
    run.write_text(run.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(BadInput, match="was begun by 2 processes; resume it with as many"):
        finetune(replace(work[1], epochs=2, dropout=True, dtype="bfloat16"), tmp_path / "1", progress=quiet)


def test_without_torchrun_there_is_one_process():
    sharded.join()
    sharded.wait()
    assert (sharded.processes(), sharded.rank(), sharded.from_all("x")) == (1, 0, ["x"])


def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "processes", lambda: 2)
    decoder = decoder_settings(tmp_path, "opt", terms="full")
    with pytest.raises(BadInput, match="--terms full trains in one process"):
        start(decoder, find_task("sst2"), load_model(decoder.model))
