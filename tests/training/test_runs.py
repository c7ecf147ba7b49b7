"""A run's folder: killed and resumed to the same bits, never overwritten, and of use afterwards."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import outcome, small_settings
from typer.testing import CliRunner

from minibeft.checkpoints.adapters import load_adapted
from minibeft.checkpoints.load import load_model
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.show.files import write
from minibeft.show.progress import Lines
from minibeft.training.loading import load
from minibeft.training.runs import finetune
from minibeft.training.seeds import finetune_all, read_seeds, trainable
from minibeft.training.settings import Settings
from minibeft.training.train import Step


def quiet(step: Step) -> None:
    """No progress."""


def child(settings: Settings, folder: Path) -> subprocess.Popen:
    """The same run in a process of its own, one thread, as this one."""
    code = (
        "import json, sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from minibeft.training.runs import finetune; from minibeft.training.settings import Settings\n"
        "finetune(Settings(**json.loads(sys.argv[1])), Path(sys.argv[2]), progress=lambda step: None)"
    )
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(asdict(settings)), str(folder)])


@pytest.fixture(autouse=True)
def one_thread():
    """The order of summation depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_run_killed_in_the_middle_ends_with_the_same_bits(tmp_path):
    """SIGKILL after two epochs are complete, with the third under way; then the same command again."""
    settings = small_settings(tmp_path, epochs=12)
    whole = finetune(settings, tmp_path / "whole", progress=quiet)
    process = child(settings, tmp_path / "killed")
    record = tmp_path / "killed" / "run.json"
    while process.poll() is None and not (record.is_file() and len(json.loads(record.read_text())["epochs"]) >= 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    reached = json.loads(record.read_text())
    assert "complete" not in reached
    assert 2 <= len(reached["epochs"]) < 12
    resumed = finetune(settings, tmp_path / "killed", progress=quiet)
    assert outcome(resumed) == outcome(whole)
    for name in ("trained.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_without_the_random_state_would_not(tmp_path, monkeypatch):
    """Negative twin: the comparison above sees one number drawn too many between two epochs."""
    settings = small_settings(tmp_path, epochs=4)
    whole = finetune(settings, tmp_path / "whole", progress=quiet)

    def stop(step: Step) -> None:
        if step.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(settings, tmp_path / "stopped", progress=stop)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: torch.rand(1))
    assert outcome(finetune(settings, tmp_path / "stopped", progress=quiet)) != outcome(whole)


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    settings = small_settings(tmp_path)
    first = finetune(settings, tmp_path / "run", progress=quiet)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    again = finetune(settings, tmp_path / "run", progress=lambda step: pytest.fail("it trained again"))
    assert again == json.loads((tmp_path / "run" / "run.json").read_text())
    assert outcome(again) == outcome(first)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == files


def test_the_record_says_what_made_it(tmp_path):
    record = finetune(small_settings(tmp_path), tmp_path / "run", progress=quiet)
    assert record["settings"]["eps"] == 1e-6
    assert record["trained"]["count"] == 2 * 16 + 16 + 2 * 16 + 2
    assert len(record["digests"]["model"]) == len(record["digests"]["data"]) == 64
    assert {"loss", "train_accuracy", "validation", "seconds"} < set(record["epochs"][-1])
    assert {"command", "versions", "machine"} < set(record)


@pytest.mark.parametrize("form", ["plain", "dora"])
def test_the_adapter_is_the_trained_model(tmp_path, form):
    """The base with the adapter has every trained value, up to the one rounding of b + Δ."""
    settings = small_settings(tmp_path, form=form, rank=2)
    finetune(settings, tmp_path / "run", progress=quiet)
    adapted = load_adapted(settings.model, tmp_path / "run" / "adapter")
    trained = load_file(tmp_path / "run" / "trained.safetensors")
    base = load_model(settings.model).blocks[1].attention.v.bias.detach()  # type: ignore[union-attr]
    value = trained["bert.encoder.layer.1.attention.self.value.bias"]
    found = adapted.blocks[1].attention.v.bias.detach()  # type: ignore[union-attr]
    step = torch.finfo(torch.float32).eps * torch.maximum(value.abs(), base.abs())
    assert ((found - value).abs() <= step).all()
    assert (base - value).abs().max() > 1e-3
    assert torch.equal(adapted.head.out.weight, trained["classifier.weight"])  # type: ignore[union-attr]


def test_the_settings_reach_the_model(tmp_path):
    loaded = load(small_settings(tmp_path, backend="plain", held_out=10))
    assert loaded.model.blocks[0].attention.backend == "plain"  # type: ignore[union-attr]
    assert {name: len(examples) for name, examples in loaded.valid.items()} == {"held_out": 10}
    assert len(loaded.train) == 48


def test_another_runs_folder_is_refused_and_left_alone(tmp_path):
    settings = small_settings(tmp_path)
    finetune(settings, tmp_path / "run", progress=quiet)
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    with pytest.raises(BadInput, match=r"another run \(terms is 'v' there, 'q' here, seed is 0 there, 3 here\)"):
        finetune(replace(settings, terms="q", seed=3), tmp_path / "run", progress=quiet)
    with (tmp_path / "data" / "sst2" / "dev.tsv").open("a") as stream:
        stream.write("w1\t1\n")
    with pytest.raises(BadInput, match=r"holds another run \(data is .* there"):
        finetune(settings, tmp_path / "run", progress=quiet)
    assert {file: file.read_bytes() for file in before} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match=r"is not empty and holds no run\.json"):
        finetune(settings, tmp_path / "other", progress=quiet)
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_damaged_state_is_named(tmp_path):
    settings = small_settings(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, tmp_path / "run", progress=lambda s: (_ for _ in ()).throw(KeyboardInterrupt))
    (tmp_path / "run" / "state.pt").write_bytes(b"\x80\x04not a state")
    with pytest.raises(BadInput, match=r"state\.pt: is damaged; delete it"):
        finetune(settings, tmp_path / "run", progress=quiet)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A limit on file size simulates the disk: the kernel refuses the bytes beyond it in the same way."""
    file = tmp_path / "run.json"
    write(file, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            BadInput, match=r"run\.json: cannot be written \(File too large\); make room or choose another place"
        ):
            write(file, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_parallel_processes_give_the_same_as_one_after_the_other(tmp_path):
    settings = small_settings(tmp_path)

    def all_seeds(jobs: int, seen: "Seen") -> list[str]:
        folder = tmp_path / f"jobs-{jobs}"
        runs = [(f"seed {seed}", replace(settings, seed=seed), folder / f"seed-{seed}") for seed in (0, 1)]
        return [outcome(record) for record in finetune_all(runs, seen, jobs=jobs)]

    one, two = Seen(), Seen()
    assert all_seeds(1, one) == all_seeds(2, two)
    assert one.last == two.last == {"seed 0": (1, 1), "seed 1": (1, 1), "runs": (2, 2)}


def test_what_a_resumed_run_brings_with_it_is_told_apart(tmp_path):
    """Broken off in its second epoch, it comes back with the first one done, and ten steps of 48 of the second."""
    settings, folder = small_settings(tmp_path, batch=1), tmp_path / "run"

    def stop(step: Step) -> None:
        if step.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(settings, folder, progress=stop)
    seen = Seen()
    finetune_all([("a run", settings, folder)], seen, jobs=1)
    assert seen.found == pytest.approx((1 + 10 / 48) / 2)
    assert seen.last["runs"] == (1, 1)


def test_what_is_done_counts_by_the_size_of_the_runs(tmp_path):
    """Runs of one and of three examples: when one of the two runs is done, that is not half of the work."""
    base = small_settings(tmp_path)
    runs = [(f"seed {seed}", replace(base, seed=seed), tmp_path / "out" / f"seed-{seed}") for seed in (0, 1)]
    seen = Seen()
    finetune_all(runs, seen, jobs=1, sizes=[1, 3], before=[2, 2])
    assert [(done, total) for done, total in seen.every if done in (5, 8)] == [(5, 8), (8, 8)]


class Seen(Lines):
    """Progress that is only remembered: how much of how much each line has come to."""

    def __init__(self):
        self.last: dict[str, tuple[float, float]] = {}
        self.every: list[tuple[float, float]] = []  # of all runs together

    def show(
        self, name: str, done: float, total: float, text: str = "", *, part: bool = False, found: float = 0.0
    ) -> None:
        self.last[name] = done, total
        self.found = found
        self.every += [(done, total)] * (name == "runs")

    def end(self, name: str) -> None:
        assert name in self.last


def test_seeds_are_read():
    assert read_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "a", "3-1", "1,1", "-1", "0-", "²", "0-²", "0-100000000", "0-999,1000", "9" * 5000, "٣"):
        with pytest.raises(BadInput, match="--seeds"):
            read_seeds(text)


def test_the_command_prints_what_trains_and_the_result(tmp_path):
    settings = small_settings(tmp_path)
    words = f"finetune {settings.model} --data {settings.data} --terms q --seeds 0-1 --epochs 1 --batch 8 --examples 48"
    done = CliRunner().invoke(app, [*words.split(), "--device", "cpu", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "blocks.*.attention.q.bias" in done.output
    assert "82" in done.output  # 2·16 + 16 + 34 numbers
    assert "mean ± std" in done.output
    assert (tmp_path / "out" / "seed-1" / "run.json").is_file()
    seeds = json.loads((tmp_path / "out" / "seeds.json").read_text(encoding="utf-8"))
    assert [row["seed"] for row in seeds["last"]] == [0, 1]
    assert seeds["settings"]["terms"] == "q"
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = " ".join(done.output.split())
    assert f"minibeft merge {tmp_path / 'out'}/seed-0/adapter".replace(" ", "") in said.replace(" ", "")
    assert "complete before" not in said
    again = CliRunner().invoke(app, [*words.split(), "--device", "cpu", "--out", str(tmp_path / "out")])
    assert "seed-0, seed-1 was complete before" in " ".join(again.output.split())


def test_a_run_needs_no_matplotlib(tmp_path, monkeypatch):
    """It draws no curves then, and has all else."""
    monkeypatch.setattr("minibeft.show.plot.find_spec", lambda name: None)
    settings = small_settings(tmp_path)
    words = f"finetune {settings.model} --data {settings.data} --epochs 1 --batch 8 --examples 48 --device cpu"
    assert CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path / "out")]).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seed-0", "seeds.json"}
    assert {path.name for path in (tmp_path / "out" / "seed-0").iterdir()} == {
        "adapter",
        "run.json",
        "state.pt",
        "trained.safetensors",
    }


def test_a_resumed_run_says_after_which_epoch(tmp_path):
    """And one that begins says nothing of it."""

    class Stopped(Exception):
        pass

    def stop(step: Step) -> None:
        if step.epoch == 1:
            raise Stopped

    said = []
    with pytest.raises(Stopped):
        finetune(
            small_settings(tmp_path), tmp_path / "run", progress=stop, announce=lambda run: said.append(trainable(run))
        )
    finetune(
        small_settings(tmp_path), tmp_path / "run", progress=quiet, announce=lambda run: said.append(trainable(run))
    )
    assert [grid.note for grid in said] == ["", "resumed after epoch 1"]
