"""All derivations as one LaTeX document, for pdflatex (Debian: texlive-latex-recommended, lmodern), run twice."""

from collections.abc import Iterable, Iterator

from minibeft.proofs.printing import MATH, latex, latex_lines, latex_sides
from minibeft.proofs.relation import Relation
from minibeft.proofs.statement import Counterexample, Outcome, Report, Step
from minibeft.proofs.typeset import math, sentence
from minibeft.show.files import MARK
from minibeft.theory.evidence import LEVELS
from minibeft.theory.theorems import HYPOTHESES

# A formula that is wider than the line is broken before its sign, and if a side is still too wide, set smaller.
HEAD = r"""\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{lmodern,amsmath,amssymb,graphicx}
\usepackage[margin=25mm]{geometry}
\usepackage[hidelinks]{hyperref}
%s
\newlength{\wide}
\newcommand{\fit}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{$\displaystyle #1$}}
\newsavebox{\lhs}\newsavebox{\rhs}
\newcommand{\side}[3]{\settowidth{\wide}{$\displaystyle #2$}%%
  \ifdim\wide>\linewidth\sbox{#1}{$\displaystyle\begin{aligned}[t]#3\end{aligned}$}%%
  \else\sbox{#1}{$\displaystyle #2$}\fi}
\newcommand{\formula}[5]{\settowidth{\wide}{$\displaystyle #1 #2 #3$}%%
  \ifdim\wide>\linewidth\side{\lhs}{#1}{#4}\side{\rhs}{#3}{#5}%%
    \[\fit{\begin{aligned}&\usebox{\lhs}\\[2pt]&{}#2 \usebox{\rhs}\end{aligned}}\]%%
  \else\[#1 #2 #3\]\fi}
\makeatletter\@beginparpenalty=10000\makeatother
\setlength{\emergencystretch}{3em}
\setcounter{secnumdepth}{0}
\setcounter{tocdepth}{2}
\begin{document}
\title{What the attention biases do}
\author{minibeft: statements, derivations, counterexamples}
\date{}
\maketitle
"""

INTRODUCTION = (
    "A head of attention projects its tokens to queries, keys and values, and may add a bias to each: b_q, b_k, b_v. "
    "Three facts say most of what these biases do. b_k adds one number to all logits of a row, which a softmax "
    "ignores: no effect and no gradient (K1, K2). b_v comes out of the mixture as it went in: one shift for every "
    "token, which folds into b_o (V1, V2). b_q adds one number to each key, the same for every query: a limited "
    "effect, blind to who asks (Q1, Q3, Q4). The rest says how far this carries, what it means in training, and where "
    "it stops.",
    "Each section is one statement of the catalogue: the claim, its scope, the hypotheses that it needs, the steps "
    "that prove it, and for each hypothesis a counterexample, numbers on which the claim fails without it. Each step "
    "says for which sizes it is decided, what it assumes of its numbers, and how. Formulas for every size are decided "
    "by a normal form of indexed sums and, apart from that, in numbers for all small sizes. The level of a statement "
    "says how far it is assured:",
)

# The letters that every section uses, and what they stand for.
NOTATION = (
    ("n, m, d", "how many queries and keys there are, and how many dims a head has"),
    ("i, r; j, l, p; a, e", "a query; a key; a dim"),
    ("q_i, k_j, v_j", "a query, a key and a value, before their biases"),
    ("b_q, b_k, b_v, b_o", "the biases of queries, keys, values and output"),
    ("s", "the scale of the logits, 1/√d as a rule"),
    ("z_ij", "the logit, s q_i·k_j where nothing else is said"),
    ("μ_ij", "exp of the mask: 0 where the key is hidden, 1 where the mask does nothing"),
    ("P_ij", "the weight that query i gives to key j, μ_ij exp(z_ij)/Σ_l μ_il exp(z_il)"),
    ("O_i", "the output Σ_j P_ij v_j"),
    ("W_o", "the matrix that maps the outputs of all heads to the width C of the model"),
    ("E", "which query head reads which key-value head (GQA); 1 without sharing"),
    ("β_j", "what b_q adds to the logit of key j, s k_j·b_q"),
    ("c_i", "what b_k adds to all logits of row i, s q_i·b_k"),
    ("osc(x)", "the largest entry less the smallest, over the keys that a row sees"),
    ("diam(X)", "the largest distance of two rows"),
    ("TV(P, P')", "the total variation, half of Σ_j |P_j − P'_j|"),
    ("KL(P‖P')", "the relative entropy Σ_j P_j ln(P_j/P'_j)"),
    ("δ_ij", "1 where i = j, else 0"),
)


GROUPS = {
    "K": "The key bias",
    "V": "The value bias",
    "Q": "The query bias",
    "R": "Biases made of other parameters",
    "I": "What a bias is worth",
    "G": "Gradients and decay",
}


def declarations() -> Iterator[str]:
    """The declarations of how LaTeX sets each character outside of ASCII in running text."""
    for char, command in MATH.items():
        if ord(char) > 127:
            yield rf"\DeclareUnicodeCharacter{{{ord(char):04X}}}{{\ensuremath{{{command.strip()}}}}}"


def opening() -> Iterator[str]:
    """Introduction, notation and contents."""
    yield r"\section{Introduction}"
    yield from (sentence(paragraph) + r"\par" for paragraph in INTRODUCTION)
    yield from listed((rf"\textbf{{{level}}}", sentence(meaning)) for level, meaning in LEVELS.items())
    yield r"\section{Notation}"
    yield r"\noindent\begin{tabular}{@{}lp{110mm}@{}}"
    yield from (rf"${math(letters)}$ & {sentence(meaning)} \\" for letters, meaning in NOTATION)
    yield r"\end{tabular}"
    yield r"\clearpage\tableofcontents\clearpage"


def listed(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list whose labels begin at the margin, however long they are."""
    yield r"\begin{description}\setlength{\itemsep}{0pt}"
    yield from (rf"\item[\normalfont {label}] {body}" for label, body in items)
    yield r"\end{description}"


def section(report: Report) -> Iterator[str]:
    theorem = report.theorem
    name = rf"\texorpdfstring{{{sentence(theorem.title)}}}{{{theorem.title.replace('_', chr(92) + '_')}}}"
    yield rf"\subsection{{{theorem.name}. {name}}}"
    kind = "Measured" if theorem.measured else "Claim"
    yield rf"\noindent\textbf{{{kind}.}} {sentence(theorem.claim)}\par"
    yield rf"\noindent\textbf{{Scope.}} {sentence(theorem.scope)}.\par"
    yield rf"\noindent\textbf{{Level.}} {theorem.evidence.level}. \textbf{{Source.}} {sentence(theorem.source)}.\par"
    if theorem.needs:
        yield r"\medskip\noindent\textbf{Hypotheses}\nopagebreak"
        yield from listed((rf"\texttt{{{key}}}", sentence(HYPOTHESES[key])) for key in theorem.needs)
    yield r"\medskip\noindent\textbf{Steps}\begin{enumerate}"
    yield from (line for outcome in report.steps for line in step(outcome))
    yield r"\end{enumerate}"
    if report.counterexamples:
        yield r"\noindent\textbf{Counterexamples}\nopagebreak"
        yield from listed(counterexample(outcome) for outcome in report.counterexamples)


def step(outcome: Outcome) -> Iterator[str]:
    assert isinstance(outcome.part, Step)
    yield rf"\item {sentence(outcome.part.text)}"
    yield from (formula(x) for x in outcome.part.formulas)
    verdict = outcome.part.level if outcome.ok else r"\textbf{FAILED}"
    given = "".join(f"; ${latex(x)}$" for x in outcome.part.given)
    yield rf"{{\footnotesize [{verdict}: {sentence(outcome.part.scope)}{given}; {sentence(outcome.note)}]}}"


def formula(relation: Relation) -> str:
    """The formula in one line, and both sides term by term in case that line is too wide."""
    broken = (r"\\".join(f"&{{}}{line}" for line in latex_lines(x)) for x in (relation.left, relation.right))
    return r"\formula" + "".join(f"{{{part}}}" for part in (*latex_sides(relation), *broken))


def counterexample(outcome: Outcome) -> tuple[str, str]:
    """The hypothesis; the numbers, and what they give."""
    assert isinstance(outcome.part, Counterexample)
    numbers = f" {sentence(outcome.part.numbers)}." if outcome.part.numbers else ""
    return (
        rf"\texttt{{{outcome.part.hypothesis}}}",
        f"{sentence(outcome.part.text)}{numbers} Then {sentence(outcome.note)}.",
    )


def document(reports: Iterable[Report]) -> str:
    """The whole document."""
    lines = [f"% {MARK}", HEAD % "\n".join(declarations()), *opening()]
    group = ""
    for report in reports:
        if report.theorem.name[0] != group:
            group = report.theorem.name[0]
            lines.append(rf"\section{{{GROUPS[group]}}}")
        lines += section(report)
    return "\n".join([*lines, r"\end{document}", ""])
