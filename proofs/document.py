"""All derivations as one LaTeX document, which pdflatex from a small TeX installation compiles."""

from collections.abc import Iterable, Iterator

from minibeft.proofs.printing import MATH, latex, text
from minibeft.proofs.statement import Counterexample, Outcome, Report, Step
from minibeft.show.files import MARK
from minibeft.theory.theorems import HYPOTHESES

HEAD = r"""\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{amsmath,amssymb,graphicx}
\usepackage[margin=25mm]{geometry}
%s
\newcommand{\formula}[1]{\[\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{$\displaystyle #1$}\]}
\setlength{\emergencystretch}{3em}
\begin{document}
\title{What the attention biases do: statements, derivations, counterexamples}
\author{minibeft}
\maketitle
"""


def declarations() -> Iterator[str]:
    """What each character outside of ASCII means in running text."""
    for char, command in MATH.items():
        if ord(char) > 127:
            yield rf"\DeclareUnicodeCharacter{{{ord(char):04X}}}{{\ensuremath{{{command.strip()}}}}}"


def section(report: Report) -> Iterator[str]:
    theorem = report.theorem
    yield rf"\section*{{{theorem.name}. {text(theorem.title)}}}"
    kind = "Measured" if theorem.measured else "Claim"
    yield rf"\noindent\textbf{{{kind}.}} {text(theorem.claim)}\par"
    yield rf"\noindent\textbf{{Scope.}} {text(theorem.scope)}.\par"
    yield rf"\noindent\textbf{{Source.}} {text(theorem.source)}.\par"
    if theorem.needs:
        yield r"\noindent\textbf{Hypotheses.}\begin{itemize}"
        yield from (rf"\item[\texttt{{{key}}}] {text(HYPOTHESES[key])}" for key in theorem.needs)
        yield r"\end{itemize}"
    yield r"\noindent\textbf{Steps.}\begin{enumerate}"
    yield from (line for outcome in report.steps for line in step(outcome))
    yield r"\end{enumerate}"
    if report.counterexamples:
        yield r"\noindent\textbf{Counterexamples.}\begin{itemize}"
        yield from (counterexample(outcome) for outcome in report.counterexamples)
        yield r"\end{itemize}"


def step(outcome: Outcome) -> Iterator[str]:
    assert isinstance(outcome.part, Step)
    yield rf"\item {text(outcome.part.text)}"
    yield from (rf"\formula{{{latex(formula)}}}" for formula in outcome.part.formulas)
    verdict = outcome.part.level if outcome.ok else r"\textbf{FAILED}"
    given = "".join(f"; ${latex(x)}$" for x in outcome.part.given)
    yield rf"{{\footnotesize {verdict}: {text(outcome.part.scope)}{given}; {text(outcome.note)}}}"


def counterexample(outcome: Outcome) -> str:
    assert isinstance(outcome.part, Counterexample)
    sentences = " ".join(text(x) for x in (outcome.part.text, outcome.part.numbers, outcome.note))
    return rf"\item[\texttt{{{outcome.part.hypothesis}}}] {sentences}."


def document(reports: Iterable[Report]) -> str:
    """The whole document."""
    lines = [f"% {MARK}", HEAD % "\n".join(declarations())]
    lines += [line for report in reports for line in section(report)]
    return "\n".join([*lines, r"\end{document}", ""])
