"""Coq checks the theorems of the catalogue, and `make formal` rejects what is false, admitted, assumed or missing."""

import fcntl
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.proofs.formal import check as formal
from minibeft.proofs.formal import trust
from minibeft.theory.evidence import EVIDENCE, FORMAL, LEVELS
from minibeft.theory.theorems import THEOREMS

ROOT = Path(__file__).parents[2]


def coq(test):
    """A test that needs Coq."""
    return pytest.mark.toolchain(pytest.mark.skipif(not formal.has_coq(), reason=formal.NO_COQ)(test))


SMALL = """(** A comment may say Axiom and Admitted (* twice *). *)
Theorem K1_one : 1 = 1.
Proof. reflexivity. Qed.
"""


def problems(folder: Path, text: str, *theorems: str) -> list[str]:
    """What `check` says of one file."""
    (folder / "Small.v").write_text(text, encoding="utf-8")
    return list(formal.check(folder, theorems))


@coq
def test_what_is_true_passes(tmp_path):
    assert problems(tmp_path, SMALL, "Small.K1_one") == []


@coq
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL.replace("1 = 1", "1 = 2"), "does not compile"),
        (SMALL.replace("reflexivity. Qed", "Admitted"), "says Admitted"),
        (SMALL.replace("1 = 1", "1 = 2").replace("reflexivity. Qed", "Admitted"), "Small.K1_one rests on"),
        (SMALL.replace("reflexivity. Qed", "admit. Admitted"), "says admit"),
        (f"Axiom false : 1 = 2.\n{SMALL}", "says Axiom"),
        (f"Parameter number : nat.\n{SMALL}", "says Parameter"),
        ('Notation "1 = 1" := True.\n' + SMALL, "says Notation"),
        # a variable of no section is an axiom by another name, which only Print Assumptions sees
        (
            "Variable assumed : 1 = 2.\n" + SMALL.replace("1 = 1", "1 = 2").replace("reflexivity", "exact assumed"),
            "Small.K1_one rests on",
        ),
        (SMALL.replace("K1_one", "K1_two"), "Small.K1_one is not there"),
        (SMALL.replace("Theorem", "Lemma"), "Small.K1_one is not there"),
        (SMALL + SMALL.replace("K1_one", "K1_two"), "Small.K1_two belongs to no statement"),
        (SMALL.replace("Theorem K1_one", "(* Theorem K1_one : 1 = 1. *) Theorem K1_two"), "Small.K1_one is not there"),
    ],
)
def test_what_is_not_proved_is_rejected(tmp_path, text, words):
    assert any(words in problem for problem in problems(tmp_path, text, "Small.K1_one"))


@coq
def test_the_second_checker_sees_an_axiom_too(tmp_path):
    (tmp_path / "Small.v").write_text(f"Axiom false : 1 = 2.\n{SMALL}", encoding="utf-8")
    found = list(formal.check(tmp_path, ["Small.K1_one"], recheck=True))
    assert [problem.partition(" ")[0] for problem in found] == ["Small.v", "coqchk:"]
    assert "Minibeft.Small.false" in found[1]


# One word of a statement is made false; its proof must break.
FALSE = [
    ("KeyBias", "weights H bq bk i = weights H bq zero i.", "weights H bq bk i = weights H zero zero i."),
    (
        "ValueBias",
        "output H bq bk zero i c + bv c.\nProof. intros S. apply V1",
        "output H bq bk zero i c - bv c.\nProof. intros S. apply V1",
    ),
    ("ValueBias", "(add bo (through L D bv)) e i c.", "bo e i c."),
    (
        "QueryBias",
        "(fun j => z j + beta j)) <= tanh (osc / 4).\nProof.\n  intros S O.",
        "(fun j => z j + beta j)) <= tanh (osc / 8).\nProof.\n  intros S O.",
    ),
    ("QueryBias", "<= (INR m - 1) * exp (osc - t * gap).", "<= (INR m - 2) * exp (osc - t * gap)."),
    ("Ranks", "(minn (\\rank Wo) GD))%N", "(minn 1 GD))%N"),
    ("Ranks", "(\\rank X <= k)%N", "(\\rank X < k)%N"),
    ("Importance", "0 <= mag_angle d b b' <= 2.", "0 <= mag_angle d b b' <= 1."),
    ("Importance", "<= 1 / INR d.", "<= 1 / INR (S d)."),
    ("Covariance", "<= rx * ry / 4.\nProof.", "<= rx * ry / 5.\nProof."),
    ("Divergence", "<= p * h + h * h / 8.", "<= p * h + h * h / 9."),
    ("Rotary", "Rmin 2 (Rabs (omega u) * W)) / 4).", "Rmin 1 (Rabs (omega u) * W)) / 4)."),
    ("LayerNorm", "read l (stream start l).", "stream start l."),
    ("Gauge", "sum C (fun a => Wk c a * Gk e a).", "sum C (fun a => Wk e a * Gk c a)."),
    ("Price", "4 * artanh (tv", "5 * artanh (tv"),
    ("Price", "osc + ln ((INR (keys H) - 1) / eps) <= scale", "osc + ln ((INR (keys H) - 1) / 2 / eps) <= scale"),
    (
        "Elsewhere",
        "beside_sink H (sigma - key_shift H bq bk i) bq zero i.",
        "beside_sink H (sigma + key_shift H bq bk i) bq zero i.",
    ),
    ("Elsewhere", "let lambda := m * c / (n + m * c) in", "let lambda := c / (n + c) in"),
    ("Ranking", "bo e + dot C r (through L D bv).", "bo e."),
    ("Latent", "c mu s) bq bk bv i a + image r Uv bc a.", "c mu s) bq bk bv i a."),
    ("Reach", "0 < mask H i j -> 0 < w j", "0 < mask H i j -> 1 < w j"),
    ("Decay", "t) 0 0 -> bk g a = 0.", "t) 0 0 -> bk g a = 1."),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, compiled, once for all processes of the suite."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "formal"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = Path(shutil.copytree(formal.FOLDER, base / "unfinished"))
            assert list(formal.compiled(unfinished, texts(unfinished))) == []
            unfinished.rename(place)
    return place


def texts(folder: Path) -> dict[str, str]:
    """The files of a folder, without their comments."""
    return {file.stem: formal.uncommented(file.read_text(encoding="utf-8")) for file in folder.glob("*.v")}


@coq
@pytest.mark.slow
def test_every_theorem_is_checked(tmp_path, built):
    """What `make formal` does; the files are compiled already."""
    folder = shutil.copytree(built, tmp_path / "copy")
    assert list(formal.misnamed(texts(folder), FORMAL)) == []
    assert list(formal.forbidden(texts(folder))) == []
    assert list(formal.assumed(folder, FORMAL)) == []


@coq
@pytest.mark.slow
@pytest.mark.parametrize(("file", "true", "false"), FALSE)
def test_a_false_statement_does_not_compile(tmp_path, built, file, true, false):
    folder = shutil.copytree(built, tmp_path / "planted")
    text = (folder / f"{file}.v").read_text(encoding="utf-8")
    assert text.count(true) == 1
    (folder / f"{file}.v").write_text(text.replace(true, false), encoding="utf-8")
    said = formal.compile_one(folder, file)
    assert said.returncode == 1
    assert "Error" in said.stderr


def test_without_coq_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(formal.shutil, "which", lambda name: None)
    assert formal.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "apt-get install coq" in said.err


def test_every_statement_has_its_evidence_and_every_place_exists():
    assert list(EVIDENCE) == list(THEOREMS)
    for name, evidence in EVIDENCE.items():
        assert evidence.level in LEVELS, name
        assert (evidence.level == "formal") == bool(evidence.formal), name
        for place in evidence.places():
            assert (ROOT / place).is_file(), f"{name}: {place}"
    for name, theorem in THEOREMS.items():
        assert theorem.measured == (theorem.evidence.level == "measured"), name
        assert all((theorem.evidence.derivation, theorem.evidence.test, theorem.evidence.code)), name


def test_at_least_25_statements_are_formal():
    assert len(set(FORMAL.values())) >= 25


def test_the_page_on_trust_is_current():
    page = trust.PAGE.read_text(encoding="utf-8")
    assert trust.filled(page) == page, "run: make readme"


def test_a_statement_that_changes_changes_the_page(monkeypatch):
    """Negative twin."""
    text = trust.source("KeyBias")
    changed = text.replace("weights H bq bk i = weights H bq zero i", "weights H bq bk i = weights H bq bk i")
    assert changed != text
    monkeypatch.setattr(trust, "source", lambda file: changed if file == "KeyBias" else text)
    assert "weights H bq bk i = weights H bq bk i" in trust.theorem_in("KeyBias.K1_no_effect")[1]


def test_every_lemma_has_a_sentence_above_it():
    for file in formal.FOLDER.glob("*.v"):
        lines = file.read_text(encoding="utf-8").split("\n")
        for above, line in pairwise(lines):
            assert not line.startswith(("Lemma", "Theorem")) or above.endswith("*)"), f"{file.name}: {line}"


def test_the_list_names_every_statement_and_fits_a_terminal():
    result = CliRunner().invoke(app, ["prove", "--list"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert [
        line.split()[0] for line in result.output.splitlines() if line[:1] in "KVQRIG" and line[1:2].isdigit()
    ] == list(EVIDENCE)
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert isinstance(CliRunner().invoke(app, ["prove", "K99", "--list"]).exception, BadInput)
