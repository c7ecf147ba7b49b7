"""What a proof is made of: steps and counterexamples, each with a decision that can come out either way.

A proof is a generator registered under its theorem's name together with the formulas it claims. It yields its parts
from top to bottom; `check` decides every one of them. The claimed formulas are arguments, so that a test can hand in
wrong ones and watch the same code reject them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from sympy import Expr, MatrixBase

from minibeft.proofs.head import Head, is_finite_and_not_zero, is_zero, written
from minibeft.theory.theorems import HYPOTHESES, THEOREMS, Theorem

EVERY = "every size"
NUMBERS = "all real numbers"
PROVED, TRIED, MEASURED = "proved", "tried", "measured"  # for all instances; on some; in floating point


@dataclass(frozen=True)
class Relation:
    """left sign right, as it is printed."""

    left: Any
    sign: str
    right: Any


@dataclass(frozen=True)
class Verdict:
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Step:
    """A sentence, the formula that it says, for which sizes it is decided, and the decision.

    `given` is what is assumed of the numbers in the formula, `level` how far the decision carries.
    """

    text: str
    formulas: tuple[Relation, ...]
    scope: str
    decide: Callable[[], Verdict]
    given: tuple[Relation, ...] = ()
    level: str = PROVED


@dataclass(frozen=True)
class Counterexample:
    """Numbers on which the claim holds while the hypothesis does, and fails without it.

    `kept` and `dropped` are the claim's residual, zero exactly where the claim holds, on the same `numbers` (those that
    the text does not give). Where the claim has no value without the hypothesis (`undefined`), they are what it divides
    by instead: not 0, and 0.
    """

    hypothesis: str
    text: str
    residual: str
    kept: Callable[[], Expr | MatrixBase]
    dropped: Callable[[], Expr | MatrixBase]
    numbers: str = ""
    undefined: bool = False

    def decide(self) -> Verdict:
        holds, fails = is_zero, is_finite_and_not_zero
        if self.undefined:
            holds, fails = fails, holds
        if not holds(self.kept()):
            return Verdict(False, f"the claim fails although the hypothesis '{self.hypothesis}' holds")
        value = self.dropped()
        return Verdict(fails(value), f"{self.residual} = {shown(value)}")


def shown(value: Any) -> str:
    """The exact value where it is short, four digits of it where it is not."""
    entries = list(value) if isinstance(value, MatrixBase) else [value]
    texts = [str(x) if len(str(x)) <= 32 or x.free_symbols else f"{x.evalf(4)}…" for x in entries]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


@dataclass(frozen=True)
class Outcome:
    """One part of a proof, decided."""

    part: Step | Counterexample
    ok: bool
    note: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """A proof, decided: it holds when every part does and every hypothesis of the theorem has a counterexample."""

    theorem: Theorem
    outcomes: tuple[Outcome, ...]

    @property
    def steps(self) -> list[Outcome]:
        return [x for x in self.outcomes if isinstance(x.part, Step)]

    @property
    def counterexamples(self) -> list[Outcome]:
        return [x for x in self.outcomes if isinstance(x.part, Counterexample)]

    @property
    def unmatched(self) -> list[str]:
        """Hypotheses of the theorem that no counterexample shows to be needed."""
        found = {x.part.hypothesis for x in self.counterexamples if x.ok and isinstance(x.part, Counterexample)}
        return [key for key in self.theorem.needs if key not in found]

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(x.ok for x in self.outcomes) and not self.unmatched

    @property
    def seconds(self) -> float:
        return sum(x.seconds for x in self.outcomes)


Part = Step | Counterexample
Script = Callable[[SimpleNamespace], Iterator[Part]]


@dataclass(frozen=True)
class Proof:
    """The script of one theorem, and the formulas that it claims by name."""

    theorem: Theorem
    claims: dict[str, Any]
    script: Script

    def parts(self, **other: Any) -> list[Part]:
        """The steps and counterexamples; `other` replaces claimed formulas."""
        unknown = other.keys() - self.claims.keys()
        assert not unknown, f"{self.theorem.name} claims {list(self.claims)}, not {unknown}"
        return list(self.script(SimpleNamespace(**{**self.claims, **other})))

    def check(self, tick: Callable[[], None] = lambda: None, *, to_first_failure: bool = False, **other: Any) -> Report:
        """Decide every part, or those up to the first that fails; `tick` is called after each."""
        outcomes = []
        for part in self.parts(**other):
            start = perf_counter()
            verdict = part.decide()
            outcomes.append(Outcome(part, verdict.ok, verdict.note, perf_counter() - start))
            tick()
            if to_first_failure and not verdict.ok:
                break
        return Report(self.theorem, tuple(outcomes))


PROOFS: dict[str, Proof] = {}


def proof(name: str, **claims: Any) -> Callable[[Script], Script]:
    """Register the decorated generator as the proof of this theorem."""

    def register(script: Script) -> Script:
        assert name not in PROOFS, name
        PROOFS[name] = Proof(THEOREMS[name], claims, script)
        return script

    return register


def needed(
    residual_text: str, residual: Callable[[Head], Expr | MatrixBase], cases: dict[str, tuple]
) -> Iterator[Part]:
    """A counterexample for each hypothesis: (text, a head, the change that drops the hypothesis).

    A key may carry a variant behind a colon, "softmax:relu", where one hypothesis has several ways to fail.
    """
    for key, (text, head, change) in cases.items():
        name = key.split(":")[0]
        assert name in HYPOTHESES, name
        yield Counterexample(
            name,
            text,
            residual_text,
            lambda head=head: residual(head),
            lambda head=head, change=change: residual(head.but(**change)),
            f"{head.described()}; dropped by " + ", ".join(f"{field} = {written(x)}" for field, x in change.items()),
        )
