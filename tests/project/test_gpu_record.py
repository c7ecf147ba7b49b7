"""make gpu-record without a card, and how it goes on: with commands that need none."""

import sys
from pathlib import Path

import gpu_record
import pytest
import torch
from gpu_record import Step

from minibeft.cli.main import app


def test_without_a_card_it_says_so_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_record, "run", pytest.fail)
    assert gpu_record.main() == 0
    assert capsys.readouterr().out == "gpu-record: there is no CUDA device here; nothing was run\n"


def step(folder: Path, name: str, code: str, minutes: float = 1.0) -> Step:
    return Step([sys.executable, "-c", code], minutes, Path(f"{name}.made"), Path(f"{name}.json"))


def test_what_is_there_is_not_run_again_and_what_fails_leaves_no_record(tmp_path: Path):
    """Planted: a command that fails after it wrote, and one that takes for ever."""
    writes = "from pathlib import Path; p = Path('{}.made'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    todo = [
        step(tmp_path, "whole", writes.format("whole")),
        step(tmp_path, "fails", writes.format("fails") + "; raise SystemExit(1)"),
        step(tmp_path, "slow", "import time; time.sleep(60)", minutes=0.01),
    ]
    missing = [Path("fails.json"), Path("slow.json")]
    assert gpu_record.run(todo, tmp_path, 1.0) == missing
    assert gpu_record.run(todo, tmp_path, 1.0) == missing
    assert (tmp_path / "whole.json").read_text() == "x"
    assert (tmp_path / "fails.made").read_text() == "xx"
    assert gpu_record.run(todo[:1], tmp_path, 0.0) == []


def test_its_commands_are_there():
    """Each is parsed as typed; none is run."""
    words = [step.words[4:] for step in gpu_record.steps("card") if "minibeft" in step.words]
    assert len(words) == 5
    for line in words:
        with pytest.raises(SystemExit) as ended:
            app([*line, "--help"], standalone_mode=True)
        assert ended.value.code == 0
    assert sum(gpu_record.TABLES.values()) < gpu_record.MINUTES
