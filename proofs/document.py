"""All derivations as one LaTeX document, which pdflatex from a small TeX installation compiles."""

from collections.abc import Iterable, Iterator

from minibeft.proofs.printing import MATH, latex, text
from minibeft.proofs.statement import Counterexample, Outcome, Report, Step
from minibeft.theorems import HYPOTHESES

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
COMBINING = {
    "P̂": r"\hat P",
    "ẑ": r"\hat z",
    "β̄": r"\bar\beta",
    "k̄": r"\bar k",
    "m̂": r"\hat m",
    "v̂": r"\hat v",
    "ĝ": r"\hat g",
}


def declarations() -> Iterator[str]:
    """What each character outside of ASCII means in running text."""
    for char, command in MATH.items():
        if ord(char) > 127:
            yield rf"\DeclareUnicodeCharacter{{{ord(char):04X}}}{{\ensuremath{{{command.strip()}}}}}"


def plain(sentence: str) -> str:
    """A sentence as LaTeX; letters with a combining accent are set in math mode."""
    sentence = text(sentence)
    for letters, command in COMBINING.items():
        sentence = sentence.replace(letters, rf"\ensuremath{{{command}}}")
    return sentence


def section(report: Report) -> Iterator[str]:
    theorem = report.theorem
    yield rf"\section*{{{theorem.name}. {plain(theorem.title)}}}"
    kind = "Measured" if theorem.measured else "Claim"
    yield rf"\noindent\textbf{{{kind}.}} {plain(theorem.claim)}\par"
    yield rf"\noindent\textbf{{Scope.}} {plain(theorem.scope)}.\par"
    yield rf"\noindent\textbf{{Source.}} {plain(theorem.source)}.\par"
    if theorem.needs:
        yield r"\noindent\textbf{Hypotheses.}\begin{itemize}"
        yield from (rf"\item[\texttt{{{key}}}] {plain(HYPOTHESES[key])}" for key in theorem.needs)
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
    yield rf"\item {plain(outcome.part.text)}"
    yield from (rf"\formula{{{latex(formula)}}}" for formula in outcome.part.formulas)
    verdict = "checked" if outcome.ok else r"\textbf{FAILED}"
    yield rf"{{\footnotesize {verdict}: {plain(outcome.part.scope)}; {plain(outcome.note)}}}"


def counterexample(outcome: Outcome) -> str:
    assert isinstance(outcome.part, Counterexample)
    return rf"\item[\texttt{{{outcome.part.hypothesis}}}] {plain(outcome.part.text)} {plain(outcome.note)}."


def document(reports: Iterable[Report]) -> str:
    """The whole document."""
    lines = [HEAD % "\n".join(declarations())]
    lines += [line for report in reports for line in section(report)]
    return "\n".join([*lines, r"\end{document}", ""])
