"""The pages of the site that are made, not written: one per theorem, from the records, and the repository's own.

docs/conf.py calls make() before each build; what it writes into docs/made/ is no part of the repository.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minibeft.proofs.formal.trust import theorem_in
from minibeft.theory.evidence import LEVELS
from minibeft.theory.theorems import THEOREMS, Theorem

ROOT = Path(__file__).parents[1]
MADE = ROOT / "docs" / "made"
# page of the repository → page of the site
TAKEN = {
    "EVIDENCE.md": "evidence",
    "proofs/TRUST.md": "trust",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "CHANGELOG.md": "changelog",
    "kernels/README.md": "kernels",
}
MODELS = {
    "a BERT (all-MiniLM-L6-v2)": "verify-minilm",
    "a LLaMA with rotary positions (stories260k)": "verify-stories260k",
}


def record(name: str) -> dict[str, Any]:
    """A committed record."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text(encoding="utf-8"))


def make() -> None:
    """Write every page that is made."""
    MADE.mkdir(exist_ok=True)
    derived = {statement["name"]: statement for statement in record("prove")["statements"]}
    for name, theorem in THEOREMS.items():
        (MADE / f"{name}.md").write_text("\n".join(page(theorem, derived[name])), encoding="utf-8")
    (MADE / "theorems.md").write_text("\n".join(contents()), encoding="utf-8")
    for file, name in TAKEN.items():
        (MADE / f"{name}.md").write_text(adapted(ROOT / file), encoding="utf-8")


def contents() -> Iterator[str]:
    """All statements on one page, each with how far it is assured."""
    yield "# The theorems\n"
    yield "Each has a page of its own: claim, derivation, counterexamples, the theorem in Coq, what was measured.\n"
    yield "| | says | assured |\n|---|---|---|"
    yield from (f"| [{name}]({name}.md) | {cell(t.title)} | {t.evidence.level} |" for name, t in THEOREMS.items())
    yield "\n```{toctree}\n:hidden:\n"
    yield from THEOREMS
    yield "```\n"


def page(theorem: Theorem, derived: dict[str, Any]) -> Iterator[str]:
    """A theorem: claim, derivation, counterexamples, Coq, measurements, places."""
    evidence = theorem.evidence
    yield f"# {theorem.name}. {plain(theorem.title)}\n"
    yield f"> {plain(theorem.claim)}\n"
    yield f"**Holds for** {plain(theorem.scope)}.\n" if theorem.scope else ""
    yield f"**Assured**: {evidence.level}, that is: {LEVELS[evidence.level]}."
    yield f" Left to a lower level: {plain(evidence.left)}.\n" if evidence.left else "\n"
    yield f"**Source**: {plain(theorem.source)}.\n"
    yield "## Derivation\n"
    yield from (line for number, step in enumerate(derived["steps"], 1) for line in derivation(number, step))
    if derived["counterexamples"]:
        yield "## What it needs\n\nWithout any of these it fails, and this is how:\n"
        for found in derived["counterexamples"]:
            yield f"- **{plain(found['hypothesis'])}.** {plain(found['text'])} {plain(found['numbers'])}"
            yield f"  *{plain(found['value'])}.*"
        yield ""
    if evidence.theorems(theorem.name):
        yield "## In Coq\n"
        yield "Checked by its kernel (`make formal`); the terms are defined in [what each level rests on](trust.md).\n"
        for name in evidence.theorems(theorem.name):
            sentence, statement = theorem_in(name)
            yield f"{plain(sentence)}\n\n```coq\n{statement}\n```\n"
    if rows := list(measurements(theorem.name)):
        yield "## Measured\n\nThe worst layer, and what theorem and rounding allow.\n"
        yield "| model | what | value | allowed | |\n|---|---|---|---|---|"
        yield from rows
    yield "\n## Where\n\n" + "\n".join(f"- `{place}`" for place in evidence.places()) + "\n"


def derivation(number: int, step: dict[str, Any]) -> Iterator[str]:
    """A step: its sentence, its formulas, and how it was decided."""
    yield f"{number}. {plain(step['text'])}\n"
    yield from (f"   $$\n   {formula}\n   $$\n" for formula in step["latex"])
    yield f"   *{step['level']}: {plain('; '.join([step['scope'], *step['given']]))}*\n"


def measurements(name: str) -> Iterator[str]:
    """A row for each check of the theorem on the committed models."""
    for model, file in MODELS.items():
        for check in record(file)["checks"]:
            if check["theorem"] == name:
                worst = max(check["measurements"], key=lambda m: m["value"] - m["allowed"])
                numbers = f"{worst['value']:.1e} | {worst['allowed']:.1e}"
                yield f"| {model} | {cell(check['what'])} | {numbers} | {check['verdict']} |"


def plain(text: str) -> str:
    """Words of the catalogue, in which no character means markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", text)


def cell(text: str) -> str:
    return plain(text).replace("\n", " ")


def adapted(file: Path) -> str:
    """A page of the repository whose links lead to pages of the site or, where the site has none, are names alone."""

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        path = (file.parent / target.partition("#")[0]).resolve().relative_to(ROOT).as_posix()
        if path in TAKEN:
            return f"[{words}]({TAKEN[path]}.md)"
        if path.startswith("records/") and path.endswith(".html"):
            return f'<a href="../{Path(path).name}">{words}</a>'
        return words if words.startswith("`") else f"`{path}`" if words in path else f"{words} (`{path}`)"

    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", file.read_text(encoding="utf-8"))
    text = re.sub(r'<a href="(?!https?:)[^"]*">([^<]*)</a>', r"<code>\1</code>", text)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, text)
