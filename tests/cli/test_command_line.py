"""The command line without a command, and the package's front: version, help, names, and how fast it is there."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import minibeft
from minibeft.cli.console import execute, run
from minibeft.cli.main import app
from minibeft.training.caches import CAPS


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_there_is_help(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    for command in ("verify", "certify", "prove", "simplify", "finetune", "rank", "reproduce", "bench"):
        assert command in done.output


def test_every_command_has_help():
    for words in ("verify", "rank", "reproduce", "bench", "bench train"):
        done = CliRunner().invoke(app, [*words.split(), "-h"])
        assert done.exit_code == 0
        assert "Usage" in done.output


def test_the_version():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, minibeft.__version__)


def test_a_wrong_command_is_refused():
    assert CliRunner().invoke(app, ["verfy"]).exit_code == 2


@pytest.mark.parametrize("command", ["certify", "inspect"])
def test_a_model_may_be_an_option_everywhere(command):
    """As in commands whose first argument is another one; given twice, it is refused."""
    plain = CliRunner().invoke(app, [command, "minilm"])
    assert plain.exit_code == 0
    for words in (["--model", "minilm"], ["--model=minilm"]):
        assert CliRunner().invoke(app, [command, *words]).output == plain.output
        assert CliRunner().invoke(app, [command, *words, "minilm"]).exit_code == 2


def test_one_seed_or_several_have_the_same_option():
    for word in ("--seed", "--seeds"):
        done = CliRunner().invoke(app, ["finetune", "minilm", word, "x"])
        assert "seeds: x" in str(done.exception) or "--seeds x" in str(done.exception), done.exception


@pytest.mark.parametrize("words", [["--version"], []])
def test_the_module_is_the_command(words):
    done = subprocess.run([sys.executable, "-m", "minibeft", *words], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() == minibeft.__version__) == bool(words)


def test_the_public_names():
    """Each is there, once, where dir() shows it."""
    assert sorted(minibeft.__all__) == sorted(minibeft.HOMES)
    assert {*minibeft.__all__, "__version__"} <= set(dir(minibeft))
    for name in minibeft.__all__:
        assert getattr(minibeft, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        _ = minibeft.lod_model  # type: ignore[attr-defined]


def test_the_import_is_light():
    """Less than 50 ms of this process's own time, the least of five processes; and no torch."""
    code = "import sys, time; begun = time.process_time(); import minibeft; print(time.process_time() - begun)"
    code += "; print('torch' in sys.modules)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds, torch = zip(*(run.stdout.split() for run in runs), strict=True)
    assert min(map(float, seconds)) < 0.05
    assert set(torch) == {"False"}


@pytest.mark.parametrize("given", [{}, {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}])
def test_the_caches_are_cut_short_before_torch_reads_their_sizes(given: dict[str, str]):
    """What the user has set stays."""
    code = "import os, sys; from minibeft.cli import main; from minibeft.training.caches import CAPS"
    code += "; there = 'torch' in sys.modules; sys.argv[1:] = ['--version']\ntry: main.main()\nexcept SystemExit: pass"
    code += "\nprint(there, *(os.environ[name] for name in CAPS))"
    plain = {key: value for key, value in os.environ.items() if key not in CAPS}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain | given)
    assert done.stdout.split()[1:] == ["False", *(CAPS | given).values()]


def called(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command line prints to standard output."""
    monkeypatch.setattr("sys.argv", ["minibeft", *words.split()])
    codes: list[int] = []
    monkeypatch.setattr("sys.exit", codes.append)
    run(lambda: execute(app))
    assert not any(codes)
    return capsys.readouterr().out


def test_json_to_standard_output_stands_alone(capsys, monkeypatch):
    record = json.loads(called("certify minilm --json -", capsys, monkeypatch))
    assert record["command"].endswith("certify minilm --json -")


def test_quiet_prints_nothing_and_for_one_command_alone(capsys, monkeypatch):
    assert called("--quiet certify minilm", capsys, monkeypatch) == ""
    assert "b_k" in called("certify minilm", capsys, monkeypatch)


def test_a_shell_is_told_how_a_word_goes_on():
    asked = {"_MINIBEFT_COMPLETE": "complete_bash", "COMP_WORDS": "minibeft ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "minibeft"], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["verify"]


def test_help_names_no_type_of_a_switch(capsys, monkeypatch):
    assert "<bool>" not in called("finetune --help", capsys, monkeypatch)
    assert "<int>" in called("finetune --help", capsys, monkeypatch)
