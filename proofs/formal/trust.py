"""Rewrites the tables of proofs/TRUST.md from the catalogue and the .v files of this folder (`make readme`).

A block between <!-- trust: NAME --> and <!-- end --> is what the function NAME below makes.
"""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

from minibeft.proofs.formal.check import AXIOMS, FOLDER
from minibeft.theory.evidence import EVIDENCE, LEVELS
from minibeft.theory.theorems import THEOREMS, Theorem

PAGE = FOLDER.parent / "TRUST.md"
# What the statements are about, in the order of reading.
TERMS = {
    "Sums": "sum dot gradient frechet",
    "Head": "softmax sees Head logit weights mixture output Layer attention",
    "QueryBias": "beta tv oscillates seminorm",
}


def source(file: str) -> str:
    return (FOLDER / f"{file}.v").read_text(encoding="utf-8")


def theorem_in(name: str) -> tuple[str, str]:
    """The sentence above a theorem (File.Theorem) and its statement, as they stand in the file."""
    file, _, theorem = name.partition(".")
    found = re.search(rf"\(\*\* ((?:(?!\*\)).)*) \*\)\n(Theorem {theorem}\b.*?\.)\s+Proof\.", source(file), re.DOTALL)
    assert found, f"{name} has no sentence above it"
    return " ".join(found[1].split()), found[2]


def definition(file: str, name: str) -> str:
    """A definition with its comment."""
    pattern = rf"(?:\(\*\* (?:(?!\*\)).)* \*\)\n)?(?:Definition|Fixpoint|Record) {name}\b.*?\.\n(?=\n)"
    found = re.search(pattern, source(file), re.DOTALL)
    assert found, f"{file}.v does not define {name}"
    return found[0]


def levels() -> str:
    """A row for each level, with the statements that have it."""
    rows = ["| level | a statement has it where | statements |", "|---|---|---|"]
    for level, meaning in LEVELS.items():
        names = [name for name, evidence in EVIDENCE.items() if evidence.level == level]
        rows.append(f"| {level} | {meaning} | {' '.join(names) or '–'} |")
    return "\n".join(rows)


def axioms() -> str:
    """A row for each axiom of Coq's library that a theorem may rest on."""
    return "\n".join(["| axiom | says |", "|---|---|", *(f"| {name} | {says} |" for name, says in AXIOMS.items())])


def left() -> str:
    """What the theorems in Coq leave to a lower level."""
    return "\n".join(f"- {name}: {evidence.left}." for name, evidence in EVIDENCE.items() if evidence.left)


def terms() -> str:
    """The definitions that every statement is read with."""
    found = "\n".join(definition(file, name) for file, names in TERMS.items() for name in names.split())
    return f"```coq\n{found}```"


def statements() -> str:
    """Claim and Coq side by side."""
    rows = [row(theorem) for theorem in THEOREMS.values() if theorem.evidence.formal]
    return "\n".join(["<table>", "<tr><th>the catalogue says</th><th>Coq has checked</th></tr>", *rows, "</table>"])


def row(theorem: Theorem) -> str:
    claim = f"<b>{theorem.name}</b> {escape(theorem.title)}<br><br>{escape(theorem.claim)}"
    needs = f"<br><br>needs {', '.join(theorem.needs) or 'nothing more'}"
    checked = []
    for name in theorem.evidence.theorems(theorem.name):
        sentence, statement = theorem_in(name)
        file = f"{name.partition('.')[0]}.v"
        place = f'<a href="formal/{file}">{file}</a>'
        checked.append(f"{escape(sentence, quote=False)} ({place})<pre>{escape(statement, quote=False)}</pre>")
    return f'<tr><td valign="top">{claim}{needs}</td><td valign="top">{"".join(checked)}</td></tr>'


BLOCKS: tuple[Callable[[], str], ...] = (levels, axioms, left, terms, statements)


def filled(text: str) -> str:
    """The page with every block made anew."""
    for block in BLOCKS:
        pattern = rf"(<!-- trust: {block.__name__} -->\n).*?(<!-- end -->)"
        made = block()
        text, count = re.subn(pattern, lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text, flags=re.DOTALL)
        assert count == 1, f"{PAGE.name} has {count} blocks called {block.__name__}"
    return text


def write(page: Path) -> None:
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(PAGE)
