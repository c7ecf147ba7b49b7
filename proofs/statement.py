"""What a proof is made of: a claim, steps and counterexamples, each with a decision that can come out either way.

A proof is a generator registered under its theorem's name together with the formulas that it claims, each with the
words of the catalogue that it stands for. The generator yields its parts from top to bottom; `check` decides every one
of them. The report is good if all parts hold, each claimed formula is what some step decided, the last step's among
them, no word of the claim is left out, and every hypothesis has a counterexample. The claimed formulas are arguments,
so that a test can hand in wrong ones and watch the same code reject them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from sympy import Expr, MatrixBase

from minibeft.proofs.head import Head, is_finite_and_not_zero, is_zero, told, written
from minibeft.proofs.relation import Relation
from minibeft.theory.theorems import HYPOTHESES, THEOREMS, Theorem

EVERY = "every size"
NUMBERS = "all real numbers"
PROVED, TRIED, MEASURED = "proved", "tried", "measured"  # for all instances; on some; in floating point


@dataclass(frozen=True)
class Verdict:
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Step:
    """A sentence, the formula that it says, for which sizes it is decided, and the decision.

    `formulas` are the formulas as printed; `decides` is the formula that is decided, as it was handed in; `given` lists
    what is assumed of the numbers in it; `level` says how general the decision is.
    """

    text: str
    formulas: tuple[Relation, ...]
    scope: str
    decide: Callable[[], Verdict]
    given: tuple[Relation, ...] = ()
    level: str = PROVED
    decides: Relation | None = None


Value = Expr | MatrixBase


@dataclass(frozen=True)
class Counterexample:
    """Numbers on which the claim holds while the hypothesis does, and fails without it.

    `kept` and `dropped` are, with and without the hypothesis, two values that the claim says are equal, one for each of
    the `names`, on the same `numbers` (those that the text does not give); or, with one name, a number that the claim
    says is 0. Where the claim is `undefined` without the hypothesis, they are its denominator: not 0, and 0.
    """

    hypothesis: str
    text: str
    names: str | tuple[str, str]
    kept: Callable[[], Any]
    dropped: Callable[[], Any]
    numbers: str = ""
    undefined: bool = False

    def gap(self, found: Any) -> Value:
        """What the claim says is 0."""
        return found if isinstance(self.names, str) else found[1] - found[0]

    def shown(self, found: Any) -> str:
        pairs = [(self.names, found)] if isinstance(self.names, str) else zip(self.names, found, strict=True)
        return ", ".join(f"{name} = {written(value)}" for name, value in pairs)

    def decide(self) -> Verdict:
        holds, fails = is_zero, is_finite_and_not_zero
        if self.undefined:
            holds, fails = fails, holds
        if not holds(self.gap(self.kept())):
            return Verdict(False, f"the claim fails although the hypothesis '{self.hypothesis}' holds")
        found = self.dropped()
        return Verdict(fails(self.gap(found)), self.shown(found))


@dataclass(frozen=True)
class Outcome:
    """One part of a proof, decided."""

    part: Step | Counterexample
    ok: bool
    note: str
    seconds: float


def decide(part: Step | Counterexample) -> Outcome:
    """The part with its verdict, and how long that took."""
    start = perf_counter()
    verdict = part.decide()
    return Outcome(part, verdict.ok, verdict.note, perf_counter() - start)


JOINTS = {"and", "so", "hence", "with", "is", "it"}  # what may stand between the words that formulas stand for


@dataclass(frozen=True)
class Report:
    """A proof, decided: it holds when every part does, and steps and counterexamples are those of the theorem."""

    theorem: Theorem
    outcomes: tuple[Outcome, ...]
    claims: tuple[Relation, ...]

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

    def concluded(self, claim: Relation) -> list[tuple[int, Step]]:
        """The steps that decided this formula, with their numbers."""
        steps = [(at, x.ok, x.part) for at, x in enumerate(self.steps, 1) if isinstance(x.part, Step)]
        return [(at, step) for at, ok, step in steps if ok and step.decides is not None and step.decides.same(claim)]

    @property
    def unsaid(self) -> list[str]:
        """Words of the claim that no formula expresses. A measured statement's words are about one model."""
        text = self.theorem.claim
        for words in sorted({x.says for x in self.claims if x.says}, key=len, reverse=True):
            text = text.replace(words, " ", 1)
        return [] if self.theorem.measured else [x for x in re.findall(r"\w+", text) if x not in JOINTS]

    @property
    def loose(self) -> list[str]:
        """The places where steps and claim do not match."""
        found = [f"no step decides {x.says or 'a lemma'}" for x in self.claims if not self.concluded(x)]
        found += [f"the claim does not say: {x.says}" for x in self.claims if x.says not in self.theorem.claim]
        if self.unsaid:
            found.append(f"no formula stands for: {' '.join(self.unsaid)}")
        last = self.steps[-1].part if self.steps else None
        if not (isinstance(last, Step) and last.decides and any(last.decides.same(x) for x in self.claims)):
            found.append("the last step decides no part of the claim")
        return found

    @property
    def ok(self) -> bool:
        return all(x.ok for x in self.outcomes) and not self.unmatched and not self.loose

    @property
    def level(self) -> str:
        """The weakest level among the parts of the claim, each by the strongest step that decides it."""
        levels = (PROVED, TRIED, MEASURED)
        best = [min((levels.index(step.level) for _, step in self.concluded(x)), default=0) for x in self.claims]
        return levels[max(best, default=0)]

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

    def check(self, tick: Callable[[], None] = lambda: None, **other: Any) -> Report:
        """Decide every part; `tick` is called after each."""
        outcomes = []
        for part in self.parts(**other):
            outcomes.append(decide(part))
            tick()
        return self.report(tuple(outcomes), **other)

    def report(self, outcomes: tuple[Outcome, ...], **other: Any) -> Report:
        """What was decided, held against the claim."""
        claims = {**self.claims, **other}.values()
        return Report(self.theorem, outcomes, tuple(x for x in claims if isinstance(x, Relation)))


PROOFS: dict[str, Proof] = {}


def proof(name: str, **claims: Any) -> Callable[[Script], Script]:
    """Register the decorated generator as the proof of this theorem."""

    def register(script: Script) -> Script:
        assert name not in PROOFS, name
        PROOFS[name] = Proof(THEOREMS[name], claims, script)
        return script

    return register


def needed(names: str | tuple[str, str], values: Callable[[Head], Any], cases: dict[str, tuple]) -> Iterator[Part]:
    """A counterexample for each hypothesis: (text, a head, the change that drops the hypothesis).

    A key may carry a variant behind a colon, "softmax:relu", where one hypothesis has several ways to fail.
    """
    for key, (text, head, change) in cases.items():
        name = key.split(":")[0]
        assert name in HYPOTHESES, name
        yield Counterexample(
            name,
            text,
            names,
            lambda head=head: values(head),
            lambda head=head, change=change: values(head.but(**change)),
            f"{head.described()}; now " + ", ".join(told(field, x) for field, x in change.items()),
        )
