"""How a command ends: 1 is a violated theorem and nothing else; whatever stops it is one line; names are data."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minibeft
from minibeft.cli import console
from minibeft.cli.console import DEFECT, INTERRUPTED, REFUSED
from minibeft.errors import LONGEST_LINE, BadInput, one_line, shortened


def ended(
    command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, str]:
    """The exit status and what was said."""
    monkeypatch.setattr(sys, "argv", ["minibeft", *options])
    with pytest.raises(SystemExit) as stop:
        console.run(command)
    return int(stop.value.code or 0), capsys.readouterr().err


def failing(error: BaseException):
    def command() -> None:
        raise error

    return command


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInput("config.json: bad"), REFUSED),
        (FileNotFoundError("gone"), REFUSED),
        (ZeroDivisionError("x"), DEFECT),
        (Panic("native"), DEFECT),
        (console.Interrupt(), INTERRUPTED),
    ],
)
def test_each_ending_has_its_status_and_one_line(error, status, capsys, monkeypatch):
    found, said = ended(failing(error), capsys, monkeypatch)
    assert found == status
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["minibeft", "--debug"])
    with pytest.raises(ZeroDivisionError):
        console.run(failing(ZeroDivisionError("x")))


@pytest.mark.parametrize(
    "name", ["a\x1b[31mred\x1b[0m", "a[/x].bias", ":boom:", "line\nbreak", "x" * 5000, "\u202eabc"]
)
def test_names_from_files_are_data(name, capsys, monkeypatch):
    status, said = ended(failing(BadInput(f"{name}: is not a name")), capsys, monkeypatch)
    assert status == REFUSED
    assert said == f"minibeft: {shortened(one_line(f'{name}: is not a name'))}\n"
    assert len(said) <= LONGEST_LINE + len("minibeft: \n")
    assert said.strip().isprintable()


def minibeft_process(*arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "minibeft", *arguments], text=True, **options)


def test_ctrl_c_is_no_violated_theorem():
    process = minibeft_process("prove", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_terminal_without_unicode_gets_escapes():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = minibeft_process("prove", "I2", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    shown, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert shown.isascii()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_no_error(arguments: list[str]):
    process = minibeft_process(*arguments, stdout=subprocess.PIPE)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "certify" in shown


def test_version():
    process = minibeft_process("--version", stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0].strip() == minibeft.__version__
    assert process.returncode == 0


CHILD = """
from minibeft.training import parallel
import multiprocessing, os
if __name__ == "__main__":
    os.environ.pop("PYTHONSAFEPATH", None)
    list(parallel.finetune_in_processes([], jobs=1, notify=print))
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=print, args=("child ran",))
    child.start()
    child.join()
"""


def test_children_do_not_import_from_the_current_folder(tmp_path: Path):
    """A torch.py or pickle.py that lies where the user stands is not run."""
    for name in ("torch", "pickle", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(CHILD)
    done = subprocess.run(
        [sys.executable, "-P", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "child ran" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_every_public_name_is_there_and_import_is_light():
    code = "import sys; before = set(sys.modules); import minibeft; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.partition(".")[0] in ("torch", "numpy", "rich", "typer")] == []
    assert set(minibeft.__all__) <= set(dir(minibeft))
    for name in minibeft.__all__:
        assert callable(getattr(minibeft, name)), name
