"""Runs on a Dask cluster end as runs here do, and a worker that is killed costs the epoch that it was at."""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_run import outcome, small_settings
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.training.cluster import finetune_on_cluster, require_one_thread
from minibeft.training.records import RECORD

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Any:
    place = str(tmp_path_factory.mktemp("dask"))
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, local_directory=place) as found:
        yield found


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Of a run under way."""
    return json.loads((folder / RECORD).read_text())["epochs"] if (folder / RECORD).exists() else []


@pytest.mark.slow
def test_a_killed_worker_costs_the_epoch_it_was_at(cluster, tmp_path):
    """The same run twice, one of them killed: the same result to the last digit, and the epochs that were complete,
    with the seconds that they took, are those from before."""
    settings = small_settings(tmp_path, examples=16, epochs=12)
    folders, steps, address = [tmp_path / "killed", tmp_path / "whole"], [], cluster.scheduler_address
    with distributed.Client(address) as client:
        processes = client.run(os.getpid)
    with ThreadPoolExecutor(1) as pool:
        asked = [(settings, folder) for folder in folders]
        notify = lambda number, step: steps.append((number, step.epoch))  # noqa: E731
        found = pool.submit(lambda: dict(finetune_on_cluster(asked, address=address, notify=notify)))
        while not epochs_of(folders[0]):
            assert not found.done(), found.result()
            time.sleep(0.01)
        (task,) = [task for key, task in cluster.scheduler.tasks.items() if str(key).endswith("-0")]
        os.kill(processes[task.processing_on.address], signal.SIGKILL)
        before = epochs_of(folders[0])
        records = found.result(timeout=60)
    assert len(before) < 12, "it was done"
    assert records[0]["epochs"][: len(before)] == before
    assert outcome(records[0]) == outcome(records[1])
    assert {number for number, _ in steps} == {0, 1}


def test_the_command_runs_there_and_a_run_that_fails_leaves_the_others(cluster, tmp_path, monkeypatch):
    """Names are relative to where the command is typed."""
    small_settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = (
        "finetune model --task sst2 --data data --examples 16 --batch 8 --epochs 1 --device cpu --out runs --cluster"
    )
    done = CliRunner().invoke(app, [*words.split(), cluster.scheduler_address, "--seeds", "0,1"])
    assert done.exit_code == 0, done.exception
    assert "the first run took" in done.output
    assert len(epochs_of(tmp_path / "runs" / "seed-1")) == 1
    (tmp_path / "runs" / "seed-3").mkdir()
    (tmp_path / "runs" / "seed-3" / "letter.txt").touch()
    done = CliRunner().invoke(app, [*words.split(), cluster.scheduler_address, "--seeds", "0,2,3"])
    assert str(done.exception).startswith("seed-3: runs/seed-3: ")
    assert len(epochs_of(tmp_path / "runs" / "seed-2")) == 1


def test_a_table_is_reproduced_there(cluster, tmp_path, monkeypatch):
    """And read here: K3 on the runs of two processes."""
    small_settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = "reproduce biases --model model --data data --seeds 0 --rates none --examples 16 --epochs 1 --out runs"
    done = CliRunner().invoke(app, [*words.split(), "--device", "cpu", "--cluster", cluster.scheduler_address])
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "runs" / "biases.json").read_text())["ok"]


def test_what_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    settings = small_settings(tmp_path)
    one = [(settings, tmp_path / "run")]
    with pytest.raises(BadInput, match="--cluster nowhere: no scheduler answers there"):
        list(finetune_on_cluster(one, address="nowhere", notify=print))
    with pytest.raises(BadInput, match="tcp://b has 4 threads; start workers with --nthreads 1"):
        require_one_thread({"tcp://a": {"nthreads": 1}, "tcp://b": {"nthreads": 4}})
    words = ["finetune", settings.model, "--cluster", "x"]
    for more in (["--jobs", "2"], ["--stack"]):
        done = CliRunner().invoke(app, [*words, *more])
        assert f"goes with no {more[0]}" in str(done.exception)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInput, match=r"--cluster needs distributed: pip install 'minibeft\[cluster\]'"):
        list(finetune_on_cluster(one, address="x", notify=print))
    assert not (tmp_path / "run").exists()
