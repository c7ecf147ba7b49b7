"""The faults that `make mutants` plants: each is one small edit that compiles, and what is traced computes the same."""

import builtins
from pathlib import Path

from mutate import functions, mutants, traced

TEXT = '''
"""A module."""
LIMIT = 3


def f(x: int, y: int = 2) -> int:
    """Left alone."""
    if x > 1 and not y:
        x = x + LIMIT
        raise ValueError("left alone")
    assert x == x
    return [a for a, _ in zip(range(x), range(x), strict=True) if a][-1] if x else -y


class C:
    def g(self) -> str:
        self.h("name")
        return "two words"
'''
EDITS = {
    "f: x > 1 and (not y) → x > 1 or not y",
    "f: not (x > 1 and (not y))",
    "f: x > 1 → x >= 1",
    "f: 1 → 2",
    "f: not y → y",
    "f: x = x + LIMIT → pass",
    "f: x + LIMIT → x - LIMIT",
    "f: raise ValueError('left alone') → pass",
    "f: a → not a",
    "f: -1 → 1",
    "f: x → not x",
    "f: -y → y",
    "C.g: self.h('name') → pass",
    "C.g: 'name' → 'namex'",
}


def test_each_place_is_edited_once(tmp_path: Path):
    (tmp_path / "m.py").write_text(TEXT)
    found = mutants(tmp_path, "m.py")
    assert len({mutant.key for mutant in found}) == len(found)
    assert {m.key.removeprefix("m.py:") for m in found} == {
        edit if "→" in edit else "f: x > 1 and (not y) → not (x > 1 and (not y))" for edit in EDITS
    }
    original = {code.co_qualname: code.co_code for code in functions(compile(TEXT, "m", "exec"))}
    for mutant in found:
        codes = {code.co_qualname: code for code in functions(compile(mutant.tree, "m", "exec"))}
        assert codes.keys() == original.keys() == {"f", "C", "C.g"}
        assert mutant.function in original


def test_what_is_traced_computes_the_same_and_says_where_it_was(monkeypatch):
    hits: list[tuple[str, int, int]] = []
    monkeypatch.setattr(builtins, "_hit", hits.append, raising=False)
    names: dict[str, object] = {}
    exec(compile(traced(TEXT, "m.py"), "m", "exec"), names)
    f = names["f"]
    assert callable(f)
    assert f(0) == -2
    assert {line for _, line, _ in hits} == {7, 8, 11, 12}
