"""`make formal`: Coq checks every theorem of this folder, from nothing, and the theorems are those of the catalogue.

Exit status 1 if a file does not compile, a theorem of the catalogue is missing, one is here that the catalogue does not
name, anything is admitted, or a theorem rests on more than AXIOMS; 2 where there is no Coq.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from minibeft.theory.evidence import FORMAL

FOLDER = Path(__file__).parent
NO_COQ = "make formal needs Coq with MathComp: apt-get install coq libcoq-mathcomp-algebra (Debian, Ubuntu)"

# The axioms that a theorem may rest on, all from Coq's own library, and what each one says.
AXIOMS: dict[str, str] = {
    "ClassicalDedekindReals.sig_forall_dec": "the reals: a decidable property of n is decided for all n at once",
    "ClassicalDedekindReals.sig_not_dec": "the reals: it is decided whether a negation holds",
    "FunctionalExtensionality.functional_extensionality_dep": "functions with the same values are equal",
    "Classical_Prop.classic": "the law of the excluded middle, in the library's calculus",
}
# Words that no file may hold: the first ones make a theorem true without proof, the last ones can change how a
# statement is read.
FORBIDDEN = (
    "Admitted admit give_up Axiom Axioms Parameter Parameters Conjecture Conjectures bypass_check Guard Positivity "
    "Universe Notation Infix Coercion Canonical Load"
).split()
COMMENT = re.compile(r"\(\*(?:(?!\(\*|\*\)).)*\*\)", re.DOTALL)


def main() -> int:
    if not has_coq():
        print(NO_COQ, file=sys.stderr)
        return 2
    begin = perf_counter()
    problems = []
    for problem in check(FOLDER, FORMAL, recheck=True):
        problems.append(problem)
        print(f"✗ {problem}", flush=True)
    verdict = "FAILED" if problems else "checked by Coq, from the library's axioms alone"
    print(f"{len(set(FORMAL.values()))} statements, {len(FORMAL)} theorems: {verdict} ({perf_counter() - begin:.0f} s)")
    return bool(problems)


def has_coq() -> bool:
    """Coq is here, with MathComp."""
    if shutil.which("coqc") is None:
        return False
    where = subprocess.run(["coqc", "-where"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(where) / "user-contrib" / "mathcomp" / "algebra").exists()


def check(folder: Path, theorems: Iterable[str], *, recheck: bool = False) -> Iterator[str]:
    """What is wrong with the files of a folder, of which the catalogue names these theorems (File.Theorem).

    recheck: coqchk, a program apart from coqc, then goes through the compiled files again.
    """
    texts = {file.stem: uncommented(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.v"))}
    yield from misnamed(texts, theorems)
    yield from forbidden(texts)
    with TemporaryDirectory() as place:
        built = Path(place)
        for file in folder.glob("*.v"):
            shutil.copy(file, built)
        broken = list(compiled(built, texts))
        yield from broken
        if not broken:
            yield from assumed(built, theorems)
        if recheck and not broken:
            yield from rechecked(built, texts)


def uncommented(text: str) -> str:
    """Comments nest, so the innermost go first."""
    while (shorter := COMMENT.sub(" ", text)) != text:
        text = shorter
    return text


def stated(texts: Mapping[str, str]) -> list[str]:
    """Every Theorem, as File.Theorem."""
    return [f"{file}.{name}" for file, text in texts.items() for name in re.findall(r"\bTheorem\s+([\w']+)", text)]


def misnamed(texts: Mapping[str, str], theorems: Iterable[str]) -> Iterator[str]:
    """The theorems that are stated and those of the catalogue are the same."""
    here, named = set(stated(texts)), set(theorems)
    yield from (f"{name} is not there" for name in sorted(named - here))
    yield from (f"{name} belongs to no statement of the catalogue" for name in sorted(here - named))


def forbidden(texts: Mapping[str, str]) -> Iterator[str]:
    """No word that would make a theorem true without proof."""
    for file, text in texts.items():
        for word in FORBIDDEN:
            if re.search(rf"\b{word}\b", text):
                yield f"{file}.v says {word}"


def compiled(folder: Path, texts: Mapping[str, str]) -> Iterator[str]:
    """Compile every file after those that it requires, two at a time; what Coq says against one."""
    needs = {
        file: {name for line in re.findall(r"From Minibeft Require Import ([\w ]+)\.", text) for name in line.split()}
        for file, text in texts.items()
    }
    order = TopologicalSorter(needs)
    order.prepare()
    with ThreadPoolExecutor(2) as pool:
        while order.is_active():
            ready = order.get_ready()
            for file, said in zip(ready, pool.map(lambda file: compile_one(folder, file), ready), strict=True):
                if said.returncode:
                    yield f"{file}.v does not compile: {' '.join(said.stderr.split())}"
                    return
                order.done(file)


def coq(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program, "-Q", ".", "Minibeft", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def compile_one(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    """By coqc, which reads nobody's settings."""
    return coq(folder, "coqc", "-q", "-w", "none", f"{file}.v")


def assumed(folder: Path, theorems: Iterable[str]) -> Iterator[str]:
    """Print Assumptions of every theorem names nothing but AXIOMS.

    All theorems are asked about as one tuple, for Coq then goes through the library once; one by one only if that tuple
    rests on more, to name which does."""
    names = list(theorems)
    if names and assumptions(folder, "Together", names, together=True):
        yield from assumptions(folder, "OneByOne", names)


def assumptions(folder: Path, file: str, names: list[str], *, together: bool = False) -> list[str]:
    """What is wrong with what these theorems, or the tuple of them, rest on."""
    lines = [f"From Minibeft Require {' '.join(sorted({name.partition('.')[0] for name in names}))}."]
    if together:
        lines += [f"Definition together := ({', '.join(f'@{name}' for name in names)}, tt)."]
        names = ["together"]
    lines += [f'Goal True. idtac "== {name}". Abort. Print Assumptions {name}.' for name in names]
    (folder / f"{file}.v").write_text("\n".join(lines), encoding="utf-8")
    said = compile_one(folder, file)
    if said.returncode:
        return [f"Print Assumptions failed: {' '.join(said.stderr.split())}"]
    problems = []
    for name, answer in zip(names, re.split(r"^== .*\n", said.stdout, flags=re.MULTILINE)[1:], strict=True):
        heading, _, listed = answer.partition("\n")
        found = re.findall(r"^([\w.']+)\s*:", listed, flags=re.MULTILINE)
        if heading != ("Axioms:" if found else "Closed under the global context"):
            problems.append(f"{name}: Print Assumptions says {' '.join(answer.split())}")
        problems += [f"{name} rests on {axiom}" for axiom in found if axiom not in AXIOMS]
    return problems


def rechecked(folder: Path, texts: Mapping[str, str]) -> Iterator[str]:
    """coqchk accepts the compiled files, with no axiom in them and no check switched off; it trusts Coq's library."""
    said = coq(folder, "coqchk", "-silent", "-o", *(word for file in texts for word in ("-norec", f"Minibeft.{file}")))
    summary = said.stderr
    if said.returncode or summary.count("<none>") != 3 or "    Minibeft." in summary:
        yield f"coqchk: {' '.join((said.stdout + summary).split())}"


if __name__ == "__main__":
    sys.exit(main())
