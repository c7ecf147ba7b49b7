"""Every statement of the catalogue is proved, each hypothesis has its counterexample, and `minibeft prove` says so."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from sympy import Integer, Symbol
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.proofs import PROOFS, Counterexample, Report, Step
from minibeft.proofs.document import document
from minibeft.proofs.notation import a, j, l, m, mu, n, over, q, softmax, v, z
from minibeft.proofs.printing import MATH, unicode
from minibeft.proofs.statement import EVERY, PROVED, TRIED, Outcome
from minibeft.proofs.steps import bounded, equal, nonnegative
from minibeft.proofs.typeset import sentence
from minibeft.theory.theorems import HYPOTHESES, THEOREMS

NUMBERED = {
    "K": range(1, 13),
    "V": range(1, 10),
    "Q": range(1, 12),
    "R": (1, 2),
    "I": (1, 2, 3),
    "G": (1, 2),
}
THEORY = [f"{group}{k}" for group, numbers in NUMBERED.items() for k in numbers]
MEASURING = {"K4"}  # imports torch and searches for hostile inputs: some ten seconds
NEEDS = [(name, key) for name, theorem in THEOREMS.items() for key in theorem.needs]


def run(*arguments: str):
    return CliRunner().invoke(app, ["prove", *arguments])


def reports(*names: str) -> list[Report]:
    """Undecided reports: what there is to print, without the time that deciding it takes."""
    return [
        Report(
            PROOFS[x].theorem,
            tuple(Outcome(part, True, "", 0.0) for part in PROOFS[x].parts()),
            tuple(PROOFS[x].claims.values()),
        )
        for x in names
    ]


def test_the_catalogue_names_the_whole_theory():
    assert list(THEOREMS) == THEORY
    assert set(PROOFS) == set(THEORY)
    assert {name for name, theorem in THEOREMS.items() if theorem.measured} == {"K6", "K7"}
    assert all(key in HYPOTHESES for _, key in NEEDS)
    assert set(HYPOTHESES) == {key for _, key in NEEDS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in MEASURING else ()) for name in THEORY]
)
def test_every_statement_is_proved(name: str):
    report = PROOFS[name].check()
    assert [x.part.text for x in report.outcomes if not x.ok] == []
    assert report.unmatched == []
    assert report.loose == []
    assert report.ok
    assert report.level == (TRIED if name in ("Q5", "Q11", "V6", "R1") else PROVED)


def test_statements_about_attention_are_proved_for_every_size():
    fixed = {"K5", "I1", "R1"}  # scalars; norms; ranks
    for name in set(THEORY) - fixed:
        assert any(isinstance(x, Step) and x.scope == EVERY for x in PROOFS[name].parts()), name


@pytest.mark.parametrize(("name", "key"), NEEDS)
def test_dropping_any_hypothesis_shows_its_counterexample(name: str, key: str):
    result = run(name, "--without", key)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(name)
    assert f"COUNTEREXAMPLE to {name} without {key}: " in result.output


def test_a_hypothesis_that_is_not_needed_is_refused():
    for arguments, words in (
        (("V1", "--without", "unrotated"), "V1 does not need unrotated"),
        (("K1", "--without", "sunshine"), "known are unrotated"),
        (("K99",), "known are K1, K2"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, BadInput), arguments
        assert words in str(error)
        assert "\n" not in str(error)


def test_prove_prints_steps_formulas_and_a_table():
    result = run("K1", "I2")
    assert result.exit_code == 0, result.output
    assert "exp(cᵢ + zᵢⱼ)·μᵢⱼ/(Σₚ (exp(cᵢ + zᵢₚ)·μᵢₚ)) = Pᵢⱼ" in result.output
    found = [x for x in PROOFS["K1"].parts() if isinstance(x, Counterexample)]
    assert result.output.count("COUNTEREXAMPLE to K1") == len(found)
    assert "∎ P(b_k) = P(0)" in result.output
    assert result.output.count("proved") >= 2


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_counterexample_reads_as_one():
    output = words(run("k1", "--without", "unrotated").output)
    assert "COUNTEREXAMPLE to K1 without unrotated: P(0) = (1/2, 1/2), P(b_k) = (2/3, 1/3)" in output
    assert "✓" not in output


def test_a_counterexample_that_fails_is_no_counterexample(monkeypatch, tmp_path):
    true = PROOFS["V1"]
    same = [replace(x, dropped=x.kept) if isinstance(x, Counterexample) else x for x in true.parts()]
    monkeypatch.setitem(PROOFS, "V1", replace(true, script=lambda _: iter(same)))
    result = run("V1", "--without", "ungated", "--json", str(tmp_path / "x.json"))
    assert result.exit_code == 1
    assert "✗ no counterexample to V1 without ungated" in words(result.output)
    assert not json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["counterexamples"][0]["ok"]


def test_without_is_written_as_json(tmp_path):
    file = tmp_path / "x.json"
    assert run("--without", "nonzero", "--json", str(file)).exit_code == 0
    found = json.loads(file.read_text(encoding="utf-8"))["counterexamples"]
    assert [x["statement"] for x in found] == ["R1", "I1"]
    assert all(x["ok"] and x["without"] == "nonzero" and x["value"].endswith("= 0") for x in found)


def test_statements_are_named_in_capitals_or_not():
    assert run("i2").output.startswith("\nI2")
    assert "K1" in run("--list", "k1").output
    assert "no statement is called k99" in str(run("k99").exception)


@pytest.mark.parametrize("key", HYPOTHESES)
def test_each_hypothesis_is_explained(key: str):
    result = run("--explain", key)
    assert result.exit_code == 0
    assert HYPOTHESES[key] in words(result.output)
    for name, theorem in THEOREMS.items():
        assert (f"{name} {theorem.title}. Without it:" in words(result.output)) == (key in theorem.needs)


def test_an_unknown_hypothesis_is_not_explained():
    assert "no hypothesis is called sunshine" in str(run("--explain", "sunshine").exception)


def test_several_processes_find_the_same(tmp_path):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, jobs in zip(files, ("1", "2"), strict=True):
        assert run("I1", "I2", "Q4", "--jobs", jobs, "--json", str(file)).exit_code == 0
    one, two = (re.sub(r'"seconds": [\d.]+', "", file.read_text(encoding="utf-8")) for file in files)
    assert one.partition("statements")[2] == two.partition("statements")[2]


def test_lines_break_at_words_to_fit_the_terminal():
    shown = run("V1", "K5", "R1").output.partition("Statements")[0]
    assert max(map(len, shown.splitlines())) <= 80
    for name in ("V1", "K5", "R1"):
        for part in PROOFS[name].parts():
            assert words(part.text) in words(shown)


def test_nothing_is_spelled_as_sympy_does():
    for name in THEORY:
        for part in PROOFS[name].parts():
            if isinstance(part, Counterexample):
                text = f"{part.numbers} {part.decide().note}"
                assert not re.search(r"\bpi\b|sqrt|\*|\bE\b(?!_| b_v)|True|None", text), f"{name}: {text}"


def test_a_failing_step_gives_status_1(monkeypatch):
    true = PROOFS["I2"]
    scale = replace(true.claims["scale"], right=Integer(0))
    monkeypatch.setitem(PROOFS, "I2", replace(true, claims={**true.claims, "scale": scale}))
    result = run("I2")
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "✗" in result.output
    assert "no step decides scales with its arguments" in result.output


def test_json_holds_every_step(tmp_path):
    file = tmp_path / "proofs.json"
    assert run("I2", "K7", "--json", str(file)).exit_code == 0
    first, second = json.loads(file.read_text(encoding="utf-8"))["statements"]
    assert [first["name"], second["name"]] == ["K7", "I2"]
    assert [first["status"], second["status"]] == ["measured", "proved"]
    assert len(second["steps"]) == len(PROOFS["I2"].parts())
    assert all(step["ok"] and step["text"] and step["formulas"] and step["latex"] for step in second["steps"])


def test_an_output_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    error = run("I2", "--json", str(tmp_path / "nowhere" / "x.json")).exception
    assert isinstance(error, BadInput)
    assert "--json" in str(error)


def in_text(source: str) -> str:
    """What is outside of mathematics, formulas, code and the preamble."""
    body = source.partition(r"\maketitle")[2]
    body = "\n".join(line for line in body.splitlines() if not line.startswith(r"\formula"))
    body = re.sub(r"\\texttt\{[^{}]*\}|\\texorpdfstring\{.*\}$", "", body, flags=re.MULTILINE)
    return re.sub(r"\$[^$]*\$", "", body)


def test_latex_declares_every_character_and_closes_what_it_opens():
    text = document(reports(*THEORY))
    assert {char for char in text if ord(char) > 127} <= set(MATH)
    for environment in ("description", "enumerate", "tabular", "document"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert all(rf"\subsection{{{name}. " in text for name in THEORY)
    for part in (r"\section{Introduction}", r"\section{Notation}", r"\tableofcontents", r"\section{The key bias}"):
        assert text.count(part) == 1


def test_latex_has_its_mathematics_in_math_mode():
    text = in_text(document(reports(*THEORY)))
    assert not re.search(r"(?<!\\)[_^]|[=≤≥·‖Σ∂∞ᵀ]|[α-ωΔ]", text)
    assert not re.search(r"\\textsubscript|\\textsuperscript", text)


def test_latex_labels_start_at_the_margin():
    """A list whose labels are set to the left of the margin would push long names off the page."""
    text = document(reports(*THEORY))
    assert "itemize" not in text
    labels = re.findall(r"\\item\[\\normalfont \\texttt\{([\w-]+)\}\]", text)
    assert set(labels) == set(HYPOTHESES)


@pytest.mark.parametrize(
    ("plain", "set_"),
    [
        ("P(b_k) = P(0): no effect", "$P(b_{k})=P(0)$: no effect"),
        ("a key j, and A b_q", "a key $j$, and A $b_{q}$"),
        (
            "‖b_q‖ ≥ 4 artanh(TV)/(s diam K)",
            r"$\|b_{q}\|\ge 4\,\operatorname{artanh}(\mathrm{TV})/(s\,\operatorname{diam}\,K)$",
        ),
        ("1 − P_ij* ≤ e^{osc(z_i) − tΔ}", r"$1-P_{ij^{*}}\le e^{\operatorname{osc}(z_{i})-t\Delta }$"),
        ("q = (0, −1), k̄ and λ-difference (K1)", r"$q=(0,-1)$, $\bar{k}$ and $\lambda $-difference (K1)"),
        ("(add_bias_kv), 50 % of it", r"(\texttt{add\_bias\_kv}), 50 \% of it"),
        ("log P₁₂ᵀ of b_o'", r"$\log \,P_{12}^{\mathsf T}$ of $b_{o}'$"),
        ("", ""),
    ],
)
def test_a_sentence_is_typeset(plain: str, set_: str):
    assert sentence(plain) == set_


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here to compile the document with")
def test_latex_compiles(tmp_path):
    (tmp_path / "proofs.tex").write_text(document(reports(*THEORY)), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "proofs.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "proofs.pdf").stat().st_size > 50_000


def test_module_and_command_are_the_same():
    good = subprocess.run([sys.executable, "-m", "minibeft.proofs", "I2"], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert "proved" in good.stdout
    bad = subprocess.run([sys.executable, "-m", "minibeft.proofs", "K99"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("minibeft: prove: no statement is called K99")


def test_proofs_need_no_torch():
    code = (
        "import sys, minibeft.proofs, minibeft.theory.theorems, minibeft.proofs.prove; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_algebra_refuses_what_is_false():
    """Identities that look alike and are not, and slacks that may be negative."""
    false = [
        (over(j, z[a, j] * q[a, j]), over(j, z[a, j]) * over(j, q[a, j])),
        (over(j, z[a, j]) ** 2, over(j, z[a, j] ** 2)),
        (over(j, Integer(1)), n),
        (over(j, softmax(z[a, j])), m),
        (over(j, mu[a, j] * v[j, a]), over(j, mu[a, j]) * v[l, a]),
    ]
    for left, right in false:
        assert not equal("false", left, right).decide().ok, (left, right)
    x, y = Symbol("x", nonnegative=True), Symbol("y", real=True)
    assert not nonnegative(x - 1)
    assert not nonnegative(y)
    assert not nonnegative(x - x**2)
    assert not bounded("false", x, 1, 1 - x).decide().ok


def test_formulas_are_readable():
    """No sympy spelling is left, and no line is endless."""
    for name in THEORY:
        for part in PROOFS[name].parts():
            for formula in part.formulas if isinstance(part, Step) else ():
                for line in unicode(formula):
                    assert len(line) <= 320, f"{name}: {line}"
                    assert not re.search(r"\*|Sum\(|KroneckerDelta|Derivative|oo\b", line), f"{name}: {line}"
