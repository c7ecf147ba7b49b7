"""Long work says once, for a file too, how long the rest takes."""

import pytest

from minibeft.show import progress as module
from minibeft.show.progress import progress, steps


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, total: int) -> list[str]:
    """What stands on standard error after `total` steps of so many seconds each, the first already done."""
    clock = iter(float(n) for n in range(10**6))
    monkeypatch.setattr(module, "monotonic", lambda: seconds * next(clock))
    with progress() as lines:
        for done in range(1, total + 1):
            lines.show("a run", 0.5, 1.0, part=True)
            lines.show("runs", done, total)
    return capsys.readouterr().err.splitlines()


def test_long_work_is_estimated_once(capsys, monkeypatch):
    """Ten seconds per step: after the second of 100, 98 are left, that is 16 minutes; of 2,000 it is 6 hours."""
    assert said(capsys, monkeypatch, 10.0, 100) == ["about 16 min to go"]
    assert said(capsys, monkeypatch, 10.0, 2000) == ["about 6 h to go"]


def test_what_was_there_before_says_nothing_of_the_speed(capsys, monkeypatch):
    """A second run turns up after ten seconds with 50 of 100 steps done: it is one step that took the time, not 51."""
    clock = iter((0.0, 10.0))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    with progress() as lines:
        lines.show("runs", 1, 200)
        lines.show("runs", 52, 200, found=50)
    assert capsys.readouterr().err.splitlines() == ["about 25 min to go"]


def test_short_work_says_nothing(capsys, monkeypatch):
    """40 steps of a second: after five seconds 34 are left, which is less than a minute."""
    assert said(capsys, monkeypatch, 1.0, 40) == []
    with steps("verify", 2) as begin:
        begin("one")
        begin("two")
    assert capsys.readouterr().err == ""
