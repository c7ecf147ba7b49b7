"""Where a command writes: checked before the work, locked during it, replaced only if the same command wrote it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import digests, write_adapter, write_checkpoint
from small_run import small_settings

from minibeft.cli import console
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.show.files import beside, held, new_folder, require_place, write_json
from minibeft.show.plot import as_png
from minibeft.surgery.simplify import simplify
from minibeft.training.runs import finetune


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line: its status, and what it said."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minibeft", *map(str, words)])
        try:
            console.run(lambda: console.execute(app))
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "bert", "bert")


def named(bert: Path, out: Path, adapter: Path) -> dict[str, list[str | Path]]:
    """Every option that names a file, with a command that has it."""
    return {
        "verify --json": ["verify", bert, "--json"],
        "verify --png": ["verify", bert, "--png"],
        "certify --json": ["certify", bert, "--json"],
        "inspect --json": ["inspect", bert, "--json"],
        "simplify --json": ["simplify", bert, out, "--json"],
        "merge --json": ["merge", adapter, bert, out, "--json"],
        "quantkeys --json": ["quantkeys", bert, "--json"],
        "quantkeys --png": ["quantkeys", bert, "--png"],
        "quantkeys --export": ["quantkeys", bert, "--export"],
        "prove --json": ["prove", "I2", "--json"],
        "prove --latex": ["prove", "I2", "--latex"],
        "bench train --json": ["bench", "train", bert, "--json"],
        "bench train --png": ["bench", "train", bert, "--png"],
        "bench memory --json": ["bench", "memory", bert, "--json"],
        "bench kernels --json": ["bench", "kernels", "--json"],
        "bench kernels --tune --json": ["bench", "kernels", "--tune", "--json"],
        "bench kernels --png": ["bench", "kernels", "--png"],
    }


OPTIONS = list(named(Path(), Path(), Path()))
HERE = {
    "config": '{"model_type": "bert"}',
    "other record": '{\n  "command": "minibeft finetune x",\n  "date": ""}',
    "text": "dear diary",
    "empty": "",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_that_the_command_did_not_write_is_kept(option: str, bert: Path, tmp_path: Path, ended):
    adapter = write_adapter(tmp_path / "adapter", bert) if "merge" in option else tmp_path
    words = named(bert, tmp_path / "out", adapter)[option]
    for name, content in HERE.items():
        file = tmp_path / name
        file.write_text(content)
        status, shown, said = ended(*words, file)
        assert (status, shown) == (2, "")
        assert "is there, and not from this command" in said
        assert file.read_text() == content
    for file in (tmp_path, tmp_path / "no" / "x", Path("/dev/null")):
        status, shown, said = ended(*words, file)
        assert (status, shown) == (2, "")
        assert str(file)[:20] in said
    assert not (tmp_path / "out").exists()
    assert Path("/dev/null").is_char_device()


def test_a_record_of_the_same_command_is_replaced(bert: Path, tmp_path: Path, ended):
    file = tmp_path / "x.json"
    for _ in range(2):
        assert ended("certify", bert, "--json", file)[0] == 0
    assert json.loads(file.read_text())["model_type"] == "bert"


def test_marks(tmp_path: Path):
    for name, content in (("a.png", as_png(lambda figure: None)), ("a.tex", b"% written by minibeft\n")):
        (tmp_path / name).write_bytes(content)
        require_place("--png", tmp_path / name, "minibeft bench train")
    record, other = {"command": "minibeft bench train"}, "minibeft bench memory"
    write_json(tmp_path / "a.json", record)
    require_place("--json", tmp_path / "a.json", "python -m minibeft bench train x")
    with pytest.raises(BadInput, match="not from this command"):
        require_place("--json", tmp_path / "a.json", other)


@pytest.mark.parametrize("command", ["train", "kernels"])
def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(command: str, tmp_path: Path, ended, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, said = ended("bench", command, "--png", tmp_path / "k.png")
    assert (status, "needs matplotlib: pip install" in said) == (2, True)


def test_one_file_for_two_results_is_refused(bert: Path, tmp_path: Path, ended):
    status, _, said = ended("quantkeys", bert, "--json", tmp_path / "x", "--export", tmp_path / "x")
    assert status == 2
    assert "is named twice" in said


def test_refused_work_leaves_nothing_behind(bert: Path, tmp_path: Path, ended):
    settings = small_settings(tmp_path)
    before = sorted(tmp_path.iterdir())
    words = ["finetune", settings.model, "--data", str(settings.data), "--examples", "48", "--batch", "8"]
    for more in (["--device", "x"], ["--task", "x"], ["--device", "cpu", "--seeds", "0", "--examples", "4800"]):
        assert ended(*words, *more, "--out", tmp_path / "deep" / "er" / "out")[0] == 2
    assert ended("simplify", bert, tmp_path / "deep" / "out", "--text", tmp_path / "nothing")[0] == 2
    assert sorted(tmp_path.iterdir()) == before


def test_seeds_of_other_settings_are_kept(tmp_path: Path, ended):
    settings = small_settings(tmp_path)
    words = ["finetune", settings.model, "--data", str(settings.data), "--examples", "48", "--batch", "8"]
    words += ["--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert ended(*words)[0] == 0
    before = digests(tmp_path / "out")
    status, _, said = ended(*words, "--seeds", "7", "--terms", "q")
    assert (status, digests(tmp_path / "out")) == (2, before)
    assert "holds another run (terms is 'v' there, 'q' here)" in said
    lines = (Path(settings.data or "") / "sst2" / "train.tsv").read_text().splitlines()
    (Path(settings.data or "") / "sst2" / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
    assert ended(*words, "--seeds", "7")[0] == 2
    assert (tmp_path / "out" / "seeds.json").read_bytes()
    assert digests(tmp_path / "out")["seeds.json"] == before["seeds.json"]


def test_a_folder_is_for_one_process(bert: Path, tmp_path: Path, ended):
    settings = small_settings(tmp_path)
    out = tmp_path / "out"
    with held(out):
        with pytest.raises(BadInput, match="another minibeft is at work there"):
            finetune(settings, out, progress=lambda step: None)
        assert ended("finetune", settings.model, "--data", settings.data or "", "--out", out)[0] == 2
    assert not out.exists()
    with held(beside(out)), pytest.raises(BadInput, match="another minibeft is at work there"):
        simplify(bert, out)


def test_a_dead_process_holds_nothing_and_its_leftovers_go(tmp_path: Path):
    script = "import os, sys\nfrom pathlib import Path\nfrom minibeft.show.files import new_folder\n"
    script += "with new_folder(Path(sys.argv[1])) as ready:\n (ready / 'half').touch()\n os._exit(9)\n"
    subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".out.new"]
    with new_folder(tmp_path / "out") as ready:
        assert not list(ready.iterdir())
        (ready / "whole").touch()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/whole"]


def test_two_at_once_end_with_one_whole_folder(bert: Path, tmp_path: Path):
    """Of processes that write the same folder at the same time one writes it, and the others are refused."""
    command = [sys.executable, "-m", "minibeft", "simplify", str(bert), str(tmp_path / "out")]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in several:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in several) == [0, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_stops_parallel_runs_at_once(tmp_path: Path):
    """Only the parent is told: it tells its children, none begins another run, and their folders can be taken up."""
    settings = small_settings(tmp_path)
    words = ["finetune", settings.model, "--data", str(settings.data), "--examples", "48", "--batch", "8"]
    words += ["--epochs", "100000", "--device", "cpu", "--seeds", "0-5", "--jobs", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "minibeft", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/seed-*/run.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == console.INTERRUPTED, said
    assert time.monotonic() - begun < 10
    assert said.count("\n") == 1, said
    assert len(list(tmp_path.glob("out/seed-*/run.json"))) == 2
    with held(tmp_path / "out" / "seed-0"), held(tmp_path / "out" / "seed-1"):
        pass
