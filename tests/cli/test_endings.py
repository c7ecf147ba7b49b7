"""How a command ends: 1 is a violated theorem and nothing else; whatever stops it is one line; names are data."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minibeft
from minibeft.cli import console
from minibeft.cli.console import DEFECT, INTERRUPTED, REFUSED, execute
from minibeft.cli.main import app
from minibeft.errors import LONGEST_LINE, BadInput, one_line, shortened
from minibeft.show.grid import Grid
from minibeft.show.page import markdown


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


@pytest.mark.parametrize("words", [["prove", "I2"], ["certify", "--help"], ["--help"]])
def test_a_reader_that_goes_away_is_no_violated_theorem(words: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    process = minibeft_process(*words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, said = process.communicate(timeout=60)
    assert process.returncode == DEFECT
    assert said.count("\n") == 1


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stream_changes_no_ending(descriptor: int):
    command = f"exec '{sys.executable}' -m minibeft certify /nowhere {descriptor}>&-"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == REFUSED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_named():
    with open("/dev/full", "w") as full:
        process = minibeft_process("prove", "I2", stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=60)
    assert process.returncode == REFUSED
    assert "No space left" in said


@pytest.mark.parametrize(
    "words",
    ["verfy", "certify", "bench", "bench train --rounds x", "certify a b c", "prove --no\x1b", "finetune --clip"],
)
def test_a_wrong_command_line_is_one_line(words: str, capsys, monkeypatch):
    status, said = ended(lambda: execute(app), capsys, monkeypatch, *words.split())
    assert status == REFUSED
    assert said.count("\n") == 1
    assert "--help" in said
    assert said.strip().isprintable()


def test_warnings_are_one_line(capsys, monkeypatch):
    script = "import logging; from minibeft.cli import console\n"
    script += "console.run(lambda: logging.getLogger('minibeft').warning('left out: %s', 'a\\x1b[31m' + 'x\\n' * 5000))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().isprintable()
    assert len(done.stderr) <= LONGEST_LINE + len("minibeft: \n")


HOSTILE = "a[/x]\x1b]0;title\x07.<b>|&\u202e" + "y" * 5000


def test_names_in_tables_and_lines_are_data(capsys):
    console.tell(f"name {HOSTILE}", Grid(HOSTILE, ("name", HOSTILE), [(HOSTILE, "1")], HOSTILE))
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "[/x]" in shown
    assert "y" * 301 not in shown.replace("\n", "")


def test_names_in_markdown_are_data():
    shown = markdown(HOSTILE, [Grid(HOSTILE, ("name",), [(HOSTILE,)], HOSTILE)], HOSTILE)
    assert "<b>" not in shown
    assert "\x1b" not in shown
    assert all(line.replace("\\|", "").count("|") in (0, 2) for line in shown.split("\n"))


CHILD = """
from pathlib import Path
from minibeft.benchmarks.resident import peak_in_process
from minibeft.errors import BadInput
from minibeft.training.parallel import finetune_in_processes
from minibeft.training.settings import Settings

if __name__ == "__main__":
    settings = Settings("/nowhere", "sst2", data="/nowhere")
    for start in (
        lambda: peak_in_process("nobody", settings),
        lambda: list(finetune_in_processes([(settings, Path("run"))], jobs=2, notify=print)),
    ):
        try:
            start()
        except BadInput as error:
            print(error)
"""


def test_children_do_not_import_from_the_current_folder(tmp_path: Path):
    """A torch.py or pickle.py that lies where the user stands is not run by --jobs, nor by bench train. The parent has
    no -P, which its children would inherit: what keeps them safe is what starts them."""
    here, script = tmp_path / "here", tmp_path / "script.py"
    here.mkdir()
    for name in ("torch", "pickle", "numpy", "minibeft"):
        (here / f"{name}.py").write_text("open('ran', 'w').close()\n")
    script.write_text(CHILD)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(Path(minibeft.__file__).parents[1])
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert "--data /nowhere: no such folder" in done.stdout, done.stderr
    assert "training in a process of its own failed" in done.stdout, done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["minibeft.py", "numpy.py", "pickle.py", "torch.py"]


def test_every_public_name_is_there_and_import_is_light():
    code = "import sys; before = set(sys.modules); import minibeft; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.partition(".")[0] in ("torch", "numpy", "rich", "typer")] == []
    assert set(minibeft.__all__) <= set(dir(minibeft))
    for name in minibeft.__all__:
        assert callable(getattr(minibeft, name)), name
