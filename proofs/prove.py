"""`minibeft prove`: run the proofs, show every step, and say plainly what holds."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from minibeft.errors import BadInput
from minibeft.proofs import PROOFS, Counterexample, Proof, Report, Step
from minibeft.proofs.document import document
from minibeft.proofs.printing import latex as formula_latex
from minibeft.proofs.printing import unicode
from minibeft.proofs.relation import Relation
from minibeft.proofs.statement import PROVED, TRIED, Outcome, decide
from minibeft.show.console import out
from minibeft.show.files import write, write_json
from minibeft.show.grid import Grid
from minibeft.show.progress import steps
from minibeft.show.record import provenance
from minibeft.theory.evidence import LEVELS
from minibeft.theory.theorems import HYPOTHESES, THEOREMS

GUARD = (
    "P_ij stands for exp(z_ij) μ_ij / Σ_p exp(z_ip) μ_ip. ∎: this part of the claim is decided. "
    "'every size' is proved by normal forms, and added up in numbers for all sizes 1 to 3 (1, 2 where four occur)"
)


def prove(
    names: list[str],
    *,
    latex: Path | None = None,
    json: Path | None = None,
    without: str | None = None,
    jobs: int = 1,
) -> None:
    """Prove the statements of the theory step by step; exit status 1 if a step fails."""
    proofs = chosen(names)
    if without is not None:
        found = drop(out, proofs, without)
        if json is not None:
            write_json(json, provenance() | {"counterexamples": found})
            out.print(f"wrote {json}")
        if not all(x["ok"] for x in found):
            raise typer.Exit(1)
        return
    reports = run(out, proofs, jobs)
    out.print(summary(reports))
    if latex is not None:
        write(latex, document(reports).encode())
        out.print(f"wrote {latex}")
    if json is not None:
        write_json(json, record(reports))
        out.print(f"wrote {json}")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def catalogue(names: list[str]) -> Grid:
    """`prove --list`: how far each statement is assured."""
    unknown = [name for name in names if name not in THEOREMS]
    if unknown:
        raise BadInput(f"prove: no statement is called {', '.join(unknown)}; known are {', '.join(THEOREMS)}")
    rows = []
    for name, theorem in THEOREMS.items():
        if not names or name in names:
            evidence = theorem.evidence
            theorems = len(evidence.theorems(name)) or "–"
            level = evidence.level + "*" * bool(evidence.left)
            rows.append((name, theorem.title, level, f"{theorems}", evidence.derivation))
    note = "; ".join(f"{x}: {LEVELS[x]}" for x in dict.fromkeys(row[2].rstrip("*") for row in rows))
    return Grid(
        "",
        ("", "statement", "level", "in Coq", "derivation"),
        rows,
        f"{note}. *: not all of it, see proofs/TRUST.md",
        {"formal": "green"},
    )


def chosen(names: list[str]) -> list[Proof]:
    """The proofs of these names, in capitals or not, all of them for none, in the catalogue's order."""
    unknown = [name for name in names if name.upper() not in PROOFS]
    if unknown:
        raise BadInput(f"prove: no statement is called {', '.join(unknown)}; known are {', '.join(THEOREMS)}")
    wanted = [name.upper() for name in names]
    return [PROOFS[name] for name in THEOREMS if not names or name in wanted]


def known_hypothesis(key: str) -> str:
    if key not in HYPOTHESES:
        raise BadInput(f"prove: no hypothesis is called {key}; known are {', '.join(HYPOTHESES)}")
    return HYPOTHESES[key]


def explain(key: str) -> None:
    """`prove --explain`: what a hypothesis says, which statements need it, and what happens without it."""
    say(out, f"[bold]{key}[/]: {escape(known_hypothesis(key))}", 0, 4)
    for name, theorem in THEOREMS.items():
        if key in theorem.needs:
            found = (x for x in PROOFS[name].parts() if isinstance(x, Counterexample) and x.hypothesis == key)
            say(out, f"[bold]{name}[/] {escape(theorem.title)}. Without it: {escape(next(found).text)}", hang=3)
    say(out, f"`minibeft prove --without {key}` checks all of them.", 0)


def run(console: Console, proofs: list[Proof], jobs: int = 1) -> list[Report]:
    """Decide every part of the proofs, each shown when it and those before it are done."""
    reports = []
    with steps("proving", sum(len(proof.parts()) for proof in proofs)) as begin:
        if jobs == 1 or len(proofs) == 1:
            for proof in proofs:
                reports.append(proof.check(tick=lambda name=proof.theorem.name: begin(name)))
                show(console, reports[-1])
            return reports
        with ProcessPoolExecutor(min(jobs, len(proofs)), get_context("spawn")) as pool:
            names = sorted((proof.theorem.name for proof in proofs), key=lambda name: -len(PROOFS[name].parts()))
            waiting = {name: pool.submit(decided, name) for name in names}
            for proof in proofs:
                found = waiting[proof.theorem.name].result()
                parts = proof.parts()
                for _ in parts:
                    begin(proof.theorem.name)
                outcomes = tuple(Outcome(part, *verdict) for part, verdict in zip(parts, found, strict=True))
                reports.append(proof.report(outcomes))
                show(console, reports[-1])
    return reports


def decided(name: str) -> list[tuple[bool, str, float]]:
    """The part of a report that another process can return: its steps contain code, which cannot be sent."""
    return [(x.ok, x.note, x.seconds) for x in PROOFS[name].check().outcomes]


def say(console: Console, text: str, indent: int = 2, hang: int = 0) -> None:
    """A paragraph, broken at words to fit the terminal; further lines go in by `hang` more."""
    paragraph = Text.from_markup(text)
    width = console.width - indent - hang
    first, *rest = paragraph.wrap(console, width) or [Text()]
    for at, line in enumerate((first, *rest)):
        line.rstrip()
        console.print(Text(" " * (indent + hang * (at > 0))) + line, soft_wrap=True, highlight=False)


def show(console: Console, report: Report) -> None:
    """One statement: hypotheses, claim, steps, counterexamples."""
    theorem = report.theorem
    console.print()
    say(console, f"[bold]{theorem.name}  {escape(theorem.title)}[/]  [dim]{escape(theorem.source)}[/]", 0, 4)
    say(console, escape(theorem.claim) + (" [yellow](measured, not proved)[/]" if theorem.measured else ""))
    say(console, f"[dim]scope[/] {escape(theorem.scope)}", hang=6)
    say(console, f"[dim]needs[/] {', '.join(theorem.needs) or 'nothing more'}", hang=6)
    for number, outcome in enumerate(report.steps, 1):
        assert isinstance(outcome.part, Step)
        head = f"{mark(outcome)} {number}. {escape(outcome.part.text)} [dim]\\[{escape(reach(outcome.part))}][/]"
        say(console, head, hang=3)
        for formula in outcome.part.formulas:
            for row in unicode(formula):
                say(console, f"[cyan]{escape(row)}[/]", 6, 2)
        for words in concluded(report, number):
            say(console, f"[bold]∎[/] {escape(words)}", 6, 2)
        if not outcome.ok or ":" in outcome.note:
            say(console, escape(outcome.note), 6)
    for outcome in report.counterexamples:
        refutation(console, theorem.name, outcome)
    for key in report.unmatched:
        say(console, f"[red]✗ no counterexample shows that '{key}' is needed[/]")
    for problem in report.loose:
        say(console, f"[red]✗ {escape(problem)}[/]")


def concluded(report: Report, number: int) -> list[str]:
    """The words of the claim that are said once this step holds: it decides the last of their formulas."""
    last = {}
    for claim in report.claims:
        for at, _ in report.concluded(claim):
            last[claim.says] = max(at, last.get(claim.says, 0))
    return [words for words, at in last.items() if words and at == number]


def reach(part: Step) -> str:
    """For which sizes a step is decided, and what it assumes; a step that is tried or measured says so."""
    how = "" if part.level == PROVED else f"{part.level}: "
    return how + "; ".join([part.scope, *(" ".join(unicode(x)) for x in part.given)])


def mark(outcome: Outcome) -> str:
    return "[green]✓[/]" if outcome.ok else "[red]✗[/]"


def refutation(console: Console, name: str, outcome: Outcome) -> None:
    """A counterexample, which says so: no tick, as the claim fails there."""
    assert isinstance(outcome.part, Counterexample)
    where = f"to {name} without {outcome.part.hypothesis}"
    if outcome.ok:
        say(console, f"[magenta]COUNTEREXAMPLE[/] {where}: [cyan]{escape(outcome.note)}[/]", hang=4)
    else:
        say(console, f"[red]✗ no counterexample[/] {where}: {escape(outcome.note)}", hang=4)
    say(console, f"{escape(outcome.part.text)} [dim]{escape(outcome.part.numbers)}[/]", 6)


def drop(console: Console, proofs: list[Proof], key: str) -> list[dict[str, Any]]:
    """What fails when one hypothesis is dropped: the counterexamples, checked."""
    known_hypothesis(key)
    found = []
    for proof in proofs:
        parts = [x for x in proof.parts() if isinstance(x, Counterexample) and x.hypothesis == key]
        if parts:
            say(console, f"[bold]{proof.theorem.name}[/] {escape(proof.theorem.claim)}", 0, 3)
        for part in parts:
            outcome = decide(part)
            refutation(console, proof.theorem.name, outcome)
            found.append({"statement": proof.theorem.name, "claim": proof.theorem.claim} | counterexample(outcome))
    if not found:
        names = ", ".join(proof.theorem.name for proof in proofs)
        needs = dict.fromkeys(need for proof in proofs for need in proof.theorem.needs)
        raise BadInput(f"prove: {names} does not need {key}; it needs {', '.join(needs) or 'nothing more'}")
    return found


def status(report: Report) -> str:
    """proved; in part tried, where some formula of the claim is decided on instances alone; measured; FAILED."""
    if not report.ok:
        return "FAILED"
    return "measured" if report.theorem.measured else "proved" if report.level == PROVED else f"in part {report.level}"


def summary(reports: list[Report]) -> Grid:
    """Statement, scope, steps, counterexamples, seconds."""
    rows = []
    for report in reports:
        theorem = report.theorem
        held = [f"{sum(x.ok for x in group)}/{len(group)}" for group in (report.steps, report.counterexamples)]
        rows.append((theorem.name, theorem.title, theorem.scope, *held, f"{report.seconds:.1f}", status(report)))
    totals = [str(sum(map(len, found))) for found in zip(*((r.steps, r.counterexamples) for r in reports), strict=True)]
    rows.append(("", "", "", *totals, f"{sum(report.seconds for report in reports):.1f}", ""))
    header = ("", "statement", "scope", "steps", "counter- examples", "seconds", "")
    styles = {"proved": "green", "measured": "yellow", f"in part {TRIED}": "yellow", "FAILED": "bold red"}
    return Grid("Statements", header, rows, GUARD, styles)


def record(reports: list[Report]) -> dict[str, Any]:
    """Everything that was checked, as data."""
    return provenance() | {"statements": [statement(report) for report in reports]}


def statement(report: Report) -> dict[str, Any]:
    theorem = report.theorem
    return {
        "name": theorem.name,
        "title": theorem.title,
        "claim": theorem.claim,
        "needs": list(theorem.needs),
        "scope": theorem.scope,
        "source": theorem.source,
        "status": status(report).lower(),
        "seconds": round(report.seconds, 3),
        "claims": [claim(report, part) for part in report.claims],
        "steps": [step(outcome) for outcome in report.steps],
        "counterexamples": [counterexample(outcome) for outcome in report.counterexamples],
    }


def claim(report: Report, part: Relation) -> dict[str, Any]:
    """A formula of the claim: the words it stands for (none for a lemma), and the steps that decide it."""
    steps = [number for number, _ in report.concluded(part)]
    return {"says": part.says, "formula": " ".join(unicode(part)), "steps": steps}


def step(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome.part, Step)
    return {
        "text": outcome.part.text,
        "formulas": [" ".join(unicode(formula)) for formula in outcome.part.formulas],
        "latex": [formula_latex(formula) for formula in outcome.part.formulas],
        "scope": outcome.part.scope,
        "given": [" ".join(unicode(x)) for x in outcome.part.given],
        "level": outcome.part.level,
        "ok": outcome.ok,
        "note": outcome.note,
        "seconds": round(outcome.seconds, 3),
    }


def counterexample(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome.part, Counterexample)
    return {
        "without": outcome.part.hypothesis,
        "hypothesis": HYPOTHESES[outcome.part.hypothesis],
        "text": outcome.part.text,
        "numbers": outcome.part.numbers,
        "ok": outcome.ok,
        "value": outcome.note,
        "seconds": round(outcome.seconds, 3),
    }
