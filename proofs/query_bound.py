"""Q3: how far the query bias can move the attention weights: tanh(osc(β)/4), and not less.

Moving the logits of a row by β turns P_j into P_j e^{β_j}/Σ_l P_l e^{β_l}. Some keys gain, the others lose. Give all
the winners the largest β and all the losers the smallest: they win and lose even more, and now there are only two kinds
of key. Two keys are a matter of calculus.
"""

from collections.abc import Callable, Iterator
from random import Random

import mpmath
from sympy import (
    Abs,
    Derivative,
    Expr,
    Matrix,
    Max,
    Rational,
    Symbol,
    cosh,
    exp,
    lambdify,
    log,
    sinh,
    tanh,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import beta, i, j, l, over, p, share, softmax, table, v, z
from minibeft.proofs.query_bias import CONSTANT, ONE_VALUE, shift
from minibeft.proofs.statement import TRIED, Part, Relation, Step, Verdict, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

B = Symbol("B", positive=True)  # osc(β)
X = Symbol("x", real=True)  # the two logits are x − B/2 apart before, x + B/2 after


def sigmoid(x: Expr) -> Expr:
    return 1 / (1 + exp(-x))


@proof("Q3", bound=lambda osc: tanh(osc / 4), moved=softmax(z[i, j] + beta[j]))
def weights_move_at_most_so_far(claim) -> Iterator[Part]:
    yield from two_keys(claim)
    yield from reduction(claim)
    yield search(claim.bound)
    yield from outputs()
    yield from needed("excess of TV, and of ‖O − O'‖ over the bound", lambda head: excess(head, claim.bound), CASES)


def two_keys(claim) -> Iterator[Step]:
    """With two keys P₁ = σ(x − B/2) goes to σ(x + B/2)."""
    gain = sinh(B / 2) / (cosh(X) + cosh(B / 2))
    yield exactly("Two keys: the first one gains", sigmoid(X + B / 2) - sigmoid(X - B / 2), gain)
    slope = -sinh(B / 2) * sinh(X) / (cosh(X) + cosh(B / 2)) ** 2
    yield exactly(
        "which rises up to x = 0 and falls from there on: sinh x has the sign of x.", Derivative(gain, X), slope
    )
    yield exactly(
        "So the most it can gain is its value there, the bound, and that is attained.", gain.subs(X, 0), claim.bound(B)
    )
    slack = sinh(B / 2) * 2 * sinh(X / 2) ** 2 / ((cosh(X) + cosh(B / 2)) * (1 + cosh(B / 2)))
    yield bounded("(The same without calculus.)", gain, sinh(B / 2) / (1 + cosh(B / 2)), slack)


def reduction(claim) -> Iterator[Step]:
    """From m keys to two. A_j = 1 for a key that gains, 0 for one that loses; a key not seen has P_j = 0 throughout."""
    before = softmax(z[i, j])
    seen = table("P", nonnegative=True)
    yield equal(
        "m keys: P'_j is P_j e^{β_j}, normalised.",
        claim.moved,
        before * exp(beta[j]) / over(l, softmax(z[i, l], l) * exp(beta[l])),
    )
    wins = share("A")[j]
    change = softmax(z[i, j] + beta[j]) - before
    yield equal(
        "Total variation is half the sum of |P'_j − P_j| = (2A_j − 1)(P'_j − P_j): what the winners gain.",
        over(j, (2 * wins - 1) * change) / 2,
        over(j, wins * change),
    )
    won, lost = over(j, wins * seen[j] * exp(beta[j])), over(j, (1 - wins) * seen[j] * exp(beta[j]))
    yield equal(
        "The winners end up with X/(X + Y), X and Y their and the others' share of Σ P_j e^{β_j}.",
        over(j, wins * seen[j] * exp(beta[j])) / over(l, seen[l] * exp(beta[l])),
        won / (won + lost),
    )
    high, low = Symbol("β⁺", real=True), Symbol("β⁻", real=True)
    below, above = table("x", nonnegative=True), table("y", nonnegative=True)
    yield bounded(
        "X grows if every winner gets the largest β, β_j = β⁺ − x_j,",
        over(j, wins * seen[j] * exp(high - below[j])),
        over(j, wins * seen[j]) * exp(high),
        over(j, wins * seen[j] * exp(high) * (1 - exp(-below[j]))),
    )
    yield bounded(
        "Y shrinks if every loser gets the smallest, β_j = β⁻ + y_j,",
        over(j, (1 - wins) * seen[j]) * exp(low),
        over(j, (1 - wins) * seen[j] * exp(low + above[j])),
        over(j, (1 - wins) * seen[j] * exp(low + above[j]) * (1 - exp(-above[j]))),
    )
    x, y = (Symbol(name, positive=True) for name in "XY")
    more, less = (Symbol(name, nonnegative=True) for name in ("s", "t"))
    yield bounded(
        "and X/(X + Y) grows with X and falls with Y,",
        x / (x + y + less),
        (x + more) / (x + more + y),
        (x * less + more * y + more * less) / ((x + y + less) * (x + more + y)),
    )
    weight = sigmoid(X - B / 2)  # any weight of the winners is of this form
    yield exactly(
        "so the winners gain no more than one key with weight p = σ(x − B/2) and β = B against one with β = 0.",
        weight * exp(B) / (weight * exp(B) + 1 - weight) - weight,
        sigmoid(X + B / 2) - sigmoid(X - B / 2),
    )


def search(bound: Callable[[Expr], Expr]) -> Step:
    """The reduction, tried: no climb among m keys gets over the bound, and each comes close to it."""

    def climb(keys: int, random: Random) -> float:
        allowed = lambdify(B, bound(B), "math")

        def ratio(point: list[float]) -> float:
            logits, shifts = point[:keys], point[keys:]
            before, after = (
                [mpmath.exp(x) for x in row] for row in (logits, [x + y for x, y in zip(logits, shifts, strict=True)])
            )
            gap = sum(abs(x / sum(before) - y / sum(after)) for x, y in zip(before, after, strict=True)) / 2
            return float(gap) / allowed(max(shifts) - min(shifts))

        best = [random.gauss(0, 1) for _ in range(2 * keys)]
        top, step = ratio(best), 1.0
        for _ in range(600):
            trial = [x + random.gauss(0, step) * (random.random() < 0.5) for x in best]
            if (new := ratio(trial)) > top:
                best, top = trial, new
            else:
                step = max(step * 0.99, 1e-3)
        return top

    def decide() -> Verdict:
        tops = [climb(keys, Random(keys)) for keys in (2, 3, 4, 5)]
        note = ", ".join(f"m = {keys}: {top:.4f}" for keys, top in zip((2, 3, 4, 5), tops, strict=True))
        return Verdict(all(0.95 < top <= 1 + 1e-12 for top in tops), f"largest TV/bound found: {note}")

    formula = Relation("TV(P, P')", "≤", bound(B))
    return Step("Tried by hill climbing over logits and β.", (formula,), "m = 2, 3, 4, 5 keys", decide, level=TRIED)


def outputs() -> Iterator[Step]:
    """‖O' − O‖ ≤ diam(V)·TV."""
    gain, loss = table("x", nonnegative=True), table("y", positive=True)
    total = over(j, gain[j])
    lost = loss[l] * total / over(p, loss[p])  # what key l loses, written so that losses and gains are the same in all
    yield equal(
        "The output moves by Σ (P'_j − P_j) v_j: gains x_j and losses λ_l ∝ y_l of equal total, paired up.",
        over(j, gain[j] * v[j]) - over(l, lost * v[l]),
        over(j, over(l, gain[j] * loss[l] * (v[j] - v[l]))) / over(p, loss[p]),
    )
    diameter, part = Symbol("D", positive=True), share("φ")
    pairs = over(j, over(l, gain[j] * loss[l] * diameter * part[j, l])) / over(l, loss[l])
    slack = over(j, over(l, gain[j] * loss[l] * diameter * (1 - part[j, l]))) / over(l, loss[l])
    yield bounded(
        "No pair is further apart than D = diam(V), so it moves by at most D·TV.", pairs, diameter * total, slack
    )


def excess(head: Head, bound: Callable[[Expr], Expr]) -> Expr:
    """What TV, and the change of the one-dimensional output, have over their bounds; of the first row."""
    beta = list(shift(head))
    allowed = bound(max(beta) - min(beta))
    still = head.but(b_q=None)
    change = head.mixing(head.logits()) - still.mixing(still.logits())
    values = list(head.values())
    moved = Abs((head.heads() - still.heads())[0])
    return Max(0, sum(Abs(x) for x in change) / 2 - allowed) + Max(0, moved - (max(values) - min(values)) * allowed)


UNEVEN = Head(q=row(0), k=Matrix([log(4), 0]), v=Matrix([1, 0]), b_q=row(1))
CASES = {
    **CONSTANT,
    "no-qk-norm": (
        "q = 2 and keys ±1/8; b_q = −3 turns q around, though β = ∓3/8 is small.",
        ONE_VALUE.but(q=row(2), k=Matrix([Rational(1, 8), Rational(-1, 8)]), v=Matrix([1, 0]), b_q=row(-3)),
        {"qk_norm": True},
    ),
    "rows-sum-to-one": (
        "Two equal values: their mean never moves, but dropout leaves only the first, at twice its weight.",
        UNEVEN.but(v=Matrix([1, 1])),
        {"dropout": row(2, 0)},
    ),
    "ungated": ("A gate of 2 doubles the change of the output.", UNEVEN, {"gate": 2}),
}
