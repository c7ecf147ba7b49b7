"""Some of the cases that `make fuzz` runs, with the same numbers everywhere; cases.py says what is spoilt."""

import pytest
from cases import KINDS
from fuzz import run

CASES, PARTS = 240, 4


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_spoilt_is_refused_in_one_line_or_does_no_harm(part: int):
    found = run(part * CASES // PARTS, (part + 1) * CASES // PARTS)
    assert found["violations"] == []


def test_the_rule_is_broken_by_what_breaks_it(tmp_path, monkeypatch):
    """A command that fails, says too much, writes beside OUT or changes its input is found."""
    from cases import Case
    from rule import violations

    from minibeft.cli import console

    (tmp_path / "in").write_text("input")

    def breaks(app: object) -> None:
        (tmp_path / "in").write_text("other")
        (tmp_path / "left").touch()
        print("a", "b", sep="\n", file=__import__("sys").stderr)
        raise ZeroDivisionError

    monkeypatch.setattr(console, "execute", breaks)
    wrong = " ".join(violations(Case(0, ["certify"], tmp_path, tmp_path / "out", "")))
    assert all(part in wrong for part in ("status 70", "touched in", "left left"))


def test_every_kind_has_cases():
    assert len({name for name, _ in KINDS}) >= 10
