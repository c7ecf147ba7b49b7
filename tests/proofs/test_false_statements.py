"""Planted falsehoods: each is false, or says nothing, and the kind of step that it is written as rejects it.

They cover the ways in which a checker can be fooled: an index that a sum captures, 0/0 that agrees with everything, a
property that stays attached to a name, a square that need not be positive, a residual that is not a number, an example
that is taken for a proof. For each of these there are true twins, which the same step accepts.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from sympy import (
    Abs,
    Derivative,
    Function,
    I,
    Integer,
    KroneckerDelta,
    Limit,
    Matrix,
    Max,
    Rational,
    Sum,
    Symbol,
    acos,
    cos,
    cosh,
    exp,
    log,
    nan,
    oo,
    sin,
    sqrt,
    symbols,
    tanh,
)

from minibeft.proofs import PROOFS
from minibeft.proofs.notation import (
    G,
    Refused,
    a,
    b,
    beta,
    d,
    e,
    i,
    j,
    k,
    l,
    m,
    mu,
    n,
    over,
    p,
    q,
    s,
    share,
    softmax,
    table,
    u,
    v,
    z,
)
from minibeft.proofs.numbers import agree, tried
from minibeft.proofs.query_bound import search
from minibeft.proofs.relation import MISSES, Quantity, says
from minibeft.proofs.statement import MEASURED, PROVED, TRIED, Counterexample, Step
from minibeft.proofs.steps import at_sizes, bounded, equal, exactly, independent, positive

c, t = table("c", real=True), Symbol("t", real=True)
X, Y = symbols("x y", positive=True)
ANY = Symbol("ζ")  # may be complex
COMPLEX = table("ζ")
SIGN = Symbol("ξ", real=True)
A, PHI = share("A"), share("φ")
NEVER = table("ν", nonnegative=True)
P, P_L = softmax(z[i, j]), softmax(z[i, l], l)
ROW = Derivative(softmax(z[i, l], l), z[i, j])  # ∂P_l/∂z_j


def alone(expr, index) -> Step:
    """The expression does not contain the index."""
    return independent("", says("", expr, MISSES, index))


FALSE: dict[str, Callable[[], Step]] = {
    # an index captured by a sum
    "capture: ∂ Σ z² by a term of it, captured": lambda: equal(
        "", Derivative(over(j, z[i, j] ** 2), z[i, j]), 2 * over(j, z[i, j])
    ),
    "capture: ∂ Σ z by a term of it, m times": lambda: equal("", Derivative(over(j, z[i, j]), z[i, j]), m),
    "capture: ∂ Σ exp by a term of it": lambda: equal(
        "", Derivative(over(j, exp(z[i, j])), z[i, j]), over(j, exp(z[i, j]))
    ),
    "capture: Jacobian of the softmax by the index of its sum": lambda: equal(
        "", Derivative(P_L, z[i, p]), -P_L * (1 - KroneckerDelta(l, p))
    ),
    "capture: the softmax rises with its own sum": lambda: equal("", Derivative(P_L, z[i, p]), P_L * (1 - P_L)),
    "capture: a softmax ignores what names its sum": lambda: equal("", softmax(z[i, j] + c[p]), softmax(z[i, j])),
    "capture: a factor for each key": lambda: equal("", softmax(z[i, j] + beta[j] - beta[p]), softmax(z[i, j])),
    "capture: a mask over its sum": lambda: equal("", softmax(z[i, j], mask=mu[i, p]), softmax(z[i, j])),
    "capture: one sum within another over the same index": lambda: equal(
        "", over(j, over(j, z[i, j]) * z[i, j]), over(j, z[i, j] ** 2)
    ),
    "capture: square of a sum over one index": lambda: equal(
        "", over(j, z[i, j] * over(j, z[i, j])), over(j, z[i, j]) ** 2
    ),
    "capture: independent of an index that is put into a sum over it": lambda: independent(
        "", says("", over(l, (z[i, l] - z[i, j]) * 0 + z[i, l]) + over(l, z[j, l] - z[l, l]), MISSES, j)
    ),
    "capture: independent, though its term is a difference": lambda: independent(
        "", says("", over(l, v[l, a] - v[j, a]), MISSES, j)
    ),
    "capture: ∂ of a mean of logits by the logit of its sum": lambda: equal(
        "", Derivative(over(p, P_L * z[i, p]), z[i, p]), P_L * m
    ),
    # calculus, held against small differences
    "calculus: Jacobian without the other keys": lambda: equal("", ROW, P_L * KroneckerDelta(l, j)),
    "calculus: Jacobian with the wrong sign": lambda: equal("", ROW, P_L * (P - KroneckerDelta(l, j))),
    "calculus: rows of the Jacobian sum to one": lambda: equal("", over(l, ROW), 1),
    "calculus: tanh rises with slope one": lambda: exactly("", Derivative(tanh(t), t), 1),
    "calculus: slope of a cosine": lambda: exactly("", Derivative(cos(t), t), sin(t)),
    "calculus: slope of log(1 + x)": lambda: exactly("", Derivative(log(1 + X), X), 1 / X),
    "calculus: second derivative": lambda: exactly("", Derivative(t**3, t, 2), 3 * t**2),
    "calculus: limit at infinity": lambda: exactly("", Limit(X / (1 + X), X, oo), 2),
    "calculus: limit at zero": lambda: exactly("", Limit(sin(X) / X, X, 0), 0),
    "calculus: by an index": lambda: equal("", Derivative(over(a, b[a]) * j, j), over(a, b[a])),
    "calculus: softmax by a bias": lambda: equal("", Derivative(over(a, q[i, a] * b[a]), b[e]), q[i, a]),
    # 0/0
    "0/0: a row that never sees a key sums to one": lambda: equal(
        "", over(j, softmax(z[i, j], mask=Integer(0) * mu[i, j])), 1
    ),
    "0/0: zero over zero is two": lambda: exactly("", (t - t) / (X - X), 2),
    "0/0: x²/x² at 0": lambda: equal("", over(j, 0 * z[i, j]) / over(j, 0 * z[i, j]), 7),
    "0/0: a denominator that is 0 in every draw": lambda: equal(
        "", 1 / over(j, z[i, j] - z[i, j]), 2 / over(j, z[i, j] - z[i, j])
    ),
    "0/0: ≤ with a value that does not exist": lambda: bounded("", 1 / (over(j, mu[i, j]) - over(l, mu[i, l])), 0, 0),
    "0/0: infinite on both sides": lambda: exactly("", oo, oo),
    "0/0: no number at all": lambda: exactly("", nan, 1),
    "0/0: logarithm of nothing": lambda: exactly("", log(t - t), 2 * log(t - t)),
    # a property that sticks to a name
    "share: a table that shares its name with a share": lambda: bounded(
        "", table("A", real=True)[j], 1, 1 - table("A", real=True)[j]
    ),
    "share: a nonnegative table of that name": lambda: bounded(
        "", table("φ", nonnegative=True)[j], 1, 1 - table("φ", nonnegative=True)[j]
    ),
    "share: a sum of shares": lambda: bounded("", over(j, A[j]), 1, 1 - over(j, A[j])),
    "share: twice a share": lambda: bounded("", 2 * A[j], 1, 1 - 2 * A[j]),
    "share: a share and a table under one name": lambda: equal("", A[j] - table("A", nonnegative=True)[j], 0),
    "share: a share is 0 or 1": lambda: equal("", A[j] ** 2, A[j]),
    "share: one symbol, two meanings": lambda: equal(
        "", Symbol("w", positive=True) * b[a], Symbol("w", real=True) * b[a]
    ),
    # squares and exponentials of what need not be real, signs that were not declared
    "sign: a square of what may be complex": lambda: bounded("", 0, ANY**2, ANY**2),
    "sign: the square of an imaginary number": lambda: bounded("", 0, (I * SIGN) ** 2, (I * SIGN) ** 2),
    "sign: an exponential of what may be complex": lambda: bounded("", 0, exp(ANY), exp(ANY)),
    "sign: a sum of squares of what may be complex": lambda: bounded(
        "", 0, over(j, COMPLEX[j] ** 2), over(j, COMPLEX[j] ** 2)
    ),
    "sign: an unknown function may be complex": lambda: bounded(
        "", 0, Function("f")(SIGN) ** 2, Function("f")(SIGN) ** 2
    ),
    "sign: any number": lambda: bounded("", 0, SIGN, SIGN),
    "sign: a cube": lambda: bounded("", 0, SIGN**3, SIGN**3),
    "sign: 1 − exp(+x)": lambda: bounded("", 0, 1 - exp(X), 1 - exp(X)),
    "sign: positive, and only nonnegative": lambda: positive("", Symbol("y", nonnegative=True)),
    "sign: positive, and any number": lambda: positive("", SIGN),
    "sign: a difference of positive numbers": lambda: positive("", X - Y),
    "sign: a root of a square": lambda: exactly("", sqrt(SIGN**2), SIGN),
    "sign: an absolute value dropped": lambda: equal("", over(a, Abs(b[a])), over(a, b[a])),
    "sign: the square of a root of any number": lambda: bounded("", 0, (sqrt(SIGN) + 1) ** 2, (sqrt(SIGN) + 1) ** 2),
    "sign: the square of a logarithm of any number": lambda: bounded("", 0, log(SIGN) ** 2, log(SIGN) ** 2),
    "sign: an exponential of a root of any number": lambda: bounded("", 0, exp(sqrt(SIGN)), exp(sqrt(SIGN))),
    "sign: the square of an arc": lambda: bounded("", 0, acos(SIGN) ** 2, acos(SIGN) ** 2),
    # names and ranges
    "names: a number that is called as a size is": lambda: equal("", over(j, Symbol("m", real=True)), m**2),
    "names: a number that is called as an index is": lambda: equal("", over(j, Symbol("j", real=True)), over(j, j)),
    "names: a sum from the second key on": lambda: equal("", Sum(v[j, a], (j, 2, m)), over(j, v[j, a])),
    "names: a sum over another range": lambda: equal("", Sum(v[j, a], (j, 1, n)), over(j, v[j, a])),
    "names: an abbreviation that is taken": lambda: equal(
        "", over(j, P * v[j, a]) + SIGN, over(l, P_L * v[l, a]) + SIGN, called={over(j, P * v[j, a]): SIGN}
    ),
    # slack
    "slack: not the difference": lambda: bounded("", X, X + Y, 2 * Y),
    "slack: of the wrong side": lambda: bounded("", X + Y, X, Y),
    "slack: the mean above the largest value": lambda: bounded(
        "", over(j, P * (t + NEVER[j])), t, over(j, P * NEVER[j])
    ),
    # identities of sums
    "sums: product of sums": lambda: equal("", over(j, z[i, j] * q[i, j]), over(j, z[i, j]) * over(j, q[i, j])),
    "sums: Σ 1 is the other size": lambda: equal("", over(j, Integer(1)), n),
    "sums: reciprocal of a sum": lambda: equal("", 1 / over(j, exp(z[i, j])), over(j, exp(-z[i, j]))),
    "sums: exp of a sum": lambda: equal("", exp(over(a, b[a])), over(a, exp(b[a]))),
    "sums: true for one key alone": lambda: equal("", softmax(z[i, j]), 1),
    "sums: true for one query alone": lambda: equal("", over(i, G[i, a]), G[i, a]),
    "sums: true for up to two keys": lambda: equal("", (m - 1) * (m - 2) * over(j, mu[i, j]), 0),
    "sums: true for up to three keys": lambda: equal("", (m - 1) * (m - 2) * (m - 3) * over(j, mu[i, j]), 0),
    "sums: true for three entries alone": lambda: equal("", (d - 1) * (d - 2) * (d - 3) * over(a, b[a] ** 2), 0),
    "sums: diagonal": lambda: equal("", over(j, over(l, KroneckerDelta(j, l) * z[i, j])), m * over(j, z[i, j])),
    "sums: mean of squares": lambda: equal("", over(a, b[a] ** 2) / d, (over(a, b[a]) / d) ** 2),
    "sums: mask left out": lambda: equal("", softmax(z[i, j]), softmax(z[i, j], mask=Integer(1))),
    "sums: one query's softmax is another's": lambda: alone(softmax(z[i, j]), i),
    "sums: heads share a softmax": lambda: alone(softmax(z[u, i, j], mask=mu[u, i, j]), j),
    "sums: scale left out": lambda: equal("", softmax(s * z[i, j]), softmax(z[i, j])),
    "sums: largest of two": lambda: exactly("", Max(X, Y), X),
    "sums: cosh is one at most": lambda: bounded("", cosh(SIGN), 1, 1 - cosh(SIGN)),
    "sums: keys instead of queries": lambda: equal("", over(a, q[i, a] * b[a]), over(a, k[j, a] * b[a])),
}

TRUE: dict[str, Callable[[], Step]] = {
    "∂ Σ z² by another entry": lambda: equal("", Derivative(over(j, z[i, j] ** 2), z[i, l]), 2 * z[i, l]),
    "Jacobian of the softmax": lambda: equal("", ROW, P_L * (KroneckerDelta(l, j) - P)),
    "rows of the Jacobian sum to zero": lambda: equal("", over(l, ROW), 0),
    "a softmax ignores what its row shares": lambda: equal("", softmax(z[i, j] + c[i]), P),
    "slope of tanh": lambda: exactly("", Derivative(tanh(t), t), 1 - tanh(t) ** 2),
    "limit": lambda: exactly("", Limit(X / (1 + X), X, oo), 1),
    "a square of a real number": lambda: bounded("", 0, SIGN**2, SIGN**2),
    "an exponential of a real number": lambda: bounded("", 0, exp(SIGN), exp(SIGN)),
    "a share is at most one": lambda: bounded("", A[j], 1, 1 - A[j]),
    "a product of shares": lambda: bounded(
        "", A[j] * PHI[l], 1, 1 - A[j] * PHI[l]
    ),
    "independent of an index": lambda: alone(over(a, q[i, a] * b[a]), j),
    "positive by its form": lambda: positive("", X / (1 + X)),
    "a row that sees a key sums to one": lambda: equal("", over(j, P), 1),
}  # fmt: skip


def rejected(make: Callable[[], Step]) -> bool:
    """By the formula itself, which cannot be written, or by the decision."""
    try:
        step = make()
    except Refused:
        return True
    return not step.decide().ok


@pytest.mark.parametrize("name", FALSE)
def test_a_false_statement_is_rejected(name: str):
    assert rejected(FALSE[name]), f"accepted: {name}"


@pytest.mark.parametrize("name", TRUE)
def test_a_true_statement_is_accepted(name: str):
    verdict = TRUE[name]().decide()
    assert verdict.ok, f"{name}: {verdict.note}"


def test_there_are_sixty():
    assert len(FALSE) >= 60


# ---------------------------------------------------------------- the guard counts


def test_zero_over_zero_is_neither_agreement_nor_disagreement():
    zero = over(j, mu[i, j]) - over(l, mu[i, l])
    assert agree(1 / zero, Integer(2), {n: 1, m: 1}) is None
    assert agree(Integer(2), Integer(2), {n: 1, m: 1}) is True
    assert agree(Integer(2), Integer(3), {n: 1, m: 1}) is False
    assert tried(agree, 1 / zero, Integer(2))[0] is False


def test_the_guard_says_how_much_it_compared_and_skipped():
    ok, note = tried(agree, over(j, P), Integer(1))
    assert ok
    compared, skipped = (int(word) for word in note.split() if word.isdigit())
    assert compared >= 2 * 9
    assert skipped > 0, "a mask may hide every key"


# ---------------------------------------------------------------- what is assumed is said


def said(step: Step) -> set[str]:
    return {f"{x.left} {x.sign} {x.right}" for x in step.given}


def test_declared_signs_are_printed_as_hypotheses():
    assert said(positive("", X / (1 + X))) == {"x > 0"}
    assert said(bounded("", A[j], 1, 1 - A[j])) == {"A in [0, 1]"}
    assert "μ ≥ 0" in said(equal("", over(j, mu[i, j] * z[i, j]), over(l, mu[i, l] * z[i, l])))
    assert said(equal("", over(j, z[i, j] + 1), over(j, z[i, j]) + m)) == set()


def test_a_denominator_that_may_vanish_is_printed_as_a_hypothesis():
    assert said(equal("", over(j, P), 1)) == {"some μ of each row > 0", "μ ≥ 0"}
    assert said(equal("", over(j, softmax(z[i, j], mask=Integer(1))), 1)) == set()
    assert said(exactly("", Derivative(log(SIGN), SIGN), 1 / SIGN)) == {"ξ ≠ 0"}


# ---------------------------------------------------------------- examples are no proofs


def test_one_instance_of_each_size_is_tried_and_never_proved():
    full = Quantity("rank of an n×n matrix", lambda size: Matrix(size, size, lambda i, j: (i + 1) ** j).rank())
    step = at_sizes("every matrix is invertible", says("", full, "=", Symbol("n")), 3, "n")
    assert step.decide().ok
    assert step.level == TRIED
    assert search(lambda osc: tanh(osc / 4)).level == TRIED
    ranks = {
        "LoRA reaches no rank",
        "And every rank",
        "and reaches a set",
        "and reaches no dimension",
        "Its dimension is",
        "Generic keys",
    }
    found = {x.text: x.level for name in ("R1", "V6", "Q5") for x in PROOFS[name].parts() if isinstance(x, Step)}
    assert all(any(text.startswith(start) and level == TRIED for text, level in found.items()) for start in ranks)
    measured = [x for x in PROOFS["K4"].parts() if isinstance(x, Step) and x.text.startswith("Measured")]
    assert [x.level for x in measured] == [MEASURED]
    assert equal("", over(j, P), 1).level == PROVED


# ---------------------------------------------------------------- counterexamples that show nothing

ZERO, ONE = lambda: Integer(0), lambda: Integer(1)
SHOWS = Counterexample("exact", "", "residual", ZERO, ONE)
x = Symbol("x", positive=True)
root = sqrt(2) + sqrt(3)
NOTHING: dict[str, Counterexample] = {
    "a residual that is 0": replace(SHOWS, dropped=ZERO),
    "a residual that is nan": replace(SHOWS, dropped=lambda: nan),
    "a residual that is infinite": replace(SHOWS, dropped=lambda: oo),
    "a residual that is not real": replace(SHOWS, dropped=lambda: I),
    "0 that resists simplification": replace(SHOWS, dropped=lambda: root - sqrt(5 + 2 * sqrt(6))),
    "0 as an unevaluated function": replace(
        SHOWS, dropped=lambda: Function("f")(x) * 0 + cos(x) ** 2 + sin(x) ** 2 - 1
    ),
    "an unknown function": replace(SHOWS, dropped=lambda: Function("f")(x)),
    "identically 0 in a symbol": replace(SHOWS, dropped=lambda: log(exp(x)) - x),
    "0 for large numbers alone": replace(SHOWS, kept=lambda: Rational(1, 10**9)),
    "the claim fails with the hypothesis too": replace(SHOWS, kept=ONE),
    "the claim is nan with the hypothesis": replace(SHOWS, kept=lambda: nan),
    "the claim may be 0 with the hypothesis": replace(SHOWS, kept=lambda: Function("f")(x)),
    "undefined with the hypothesis too": replace(SHOWS, undefined=True),
    "defined without the hypothesis": replace(SHOWS, kept=ONE, dropped=ONE, undefined=True),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_counterexample_that_shows_nothing_is_rejected(name: str):
    assert not NOTHING[name].decide().ok


def test_a_counterexample_is_accepted():
    assert SHOWS.decide().ok
    assert replace(SHOWS, kept=ONE, dropped=ZERO, undefined=True).decide().ok
    assert replace(SHOWS, dropped=lambda: x).decide().ok
