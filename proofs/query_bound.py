"""Q3: how far the query bias can move the attention weights: tanh(osc(β)/4), and not less.

Moving the logits of a row by β turns P_j into P_j e^{β_j}/Σ_l P_l e^{β_l}. The weight that the gaining keys win in all
is bounded in one step, by an identity whose slack is never negative; two keys of equal odds attain the bound.
"""

from collections.abc import Callable, Iterator
from random import Random

import mpmath
from sympy import (
    Abs,
    Expr,
    Matrix,
    Max,
    Rational,
    Symbol,
    exp,
    lambdify,
    log,
    tanh,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import beta, i, j, l, mu, over, p, put, share, softmax, table, v, z
from minibeft.proofs.query_bias import CONSTANT, ONE_VALUE, shift
from minibeft.proofs.relation import Relation, says
from minibeft.proofs.statement import TRIED, Part, Step, Verdict, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

B = Symbol("B", positive=True)  # osc(β)


def sigmoid(x: Expr) -> Expr:
    return 1 / (1 + exp(-x))


LIFTED, WINS = share("φ"), share("A")
PULL = exp(B) * (1 - exp(-B))  # W = e^osc − 1
BEFORE = softmax(z[i, j])
WEIGHT = mu[i, j] * exp(z[i, j]) * (1 + PULL * LIFTED[i, j])
AFTER = WEIGHT / over(p, put(WEIGHT, j, p))
CALLED = {AFTER: table("P'", real=True)[i, j]}
VARIATION = over(j, (2 * WINS[j] - 1) * (AFTER - BEFORE)) / 2
GAIN, LOSS = table("x", positive=True), table("y", positive=True)
DIAMETER, NEAR, USED = Symbol("D", positive=True), share("φ"), share("φ'")[i]
PAIRS = over(j, over(l, GAIN[j] * LOSS[l] * DIAMETER * NEAR[j, l])) / (over(j, GAIN[j]) * over(l, LOSS[l]))


@proof(
    "Q3",
    moved=says(
        "",
        softmax(z[i, j] + beta[j]),
        "=",
        BEFORE * exp(beta[j]) / over(l, put(BEFORE, j, l) * exp(beta[l])),
    ),
    bound=says("TV(P_i(0), P_i(b_q)) ≤ tanh(osc(β)/4)", VARIATION, "≤", tanh(B / 4)),
    attained=says("attained", sigmoid(B / 2) - sigmoid(-B / 2), "=", tanh(B / 4)),
    output=says(
        "‖O_i(b_q) − O_i(0)‖ ≤ diam(V)·tanh(osc(β)/4)", tanh(B / 4) * USED * PAIRS, "≤", DIAMETER * tanh(B / 4)
    ),
)
def weights_move_at_most_so_far(claim) -> Iterator[Part]:
    bound = lambda osc: claim.bound.right.subs(B, osc)  # noqa: E731
    yield equal("P'_j is P_j e^{β_j}, normalised.", claim.moved)
    yield at_most_tanh(
        "With e^{β_j} = e^{β⁻}(1 + Wφ_j), W = e^osc − 1 and φ_j in [0, 1], P' is as follows; and A_j = 1 for the keys "
        "that gain, 0 for the others, makes the sum the total variation. For all A_j in [0, 1] and any mask:",
        claim.bound,
    )
    yield search(bound)
    yield exactly("Two keys attain it: P₁ = σ(−osc/4) goes to σ(osc/4).", claim.attained)
    yield from outputs(claim)
    yield from needed("excess of TV, and of ‖O − O'‖ over the bound", lambda head: excess(head, bound), CASES)


def at_most_tanh(text: str, claim: Relation) -> Step:
    """The slack has two terms, never negative: G is the mean of 1 + Wφ, γ the mean of φ, x = e^{osc/2}."""
    mean = over(l, put(BEFORE * LIFTED[i, j], j, l))
    missing = over(l, put(BEFORE * (1 - LIFTED[i, j]), j, l))  # 1 − γ
    spread = 1 + PULL * mean
    won = (1 - WINS[j]) * LIFTED[i, j] * missing + WINS[j] * (1 - LIFTED[i, j]) * mean
    slack = (spread - exp(B / 2)) ** 2 / (spread * PULL) + PULL / spread * over(j, BEFORE * won)
    return bounded(text, claim, slack=slack, called=CALLED)


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


def outputs(claim) -> Iterator[Step]:
    """‖O' − O‖ ≤ diam(V)·TV."""
    gain = table("x", nonnegative=True)
    lost = LOSS[l] * over(j, gain[j]) / over(p, LOSS[p])  # of key l; in all as much as is gained
    yield equal(
        "The output moves by Σ (P'_j − P_j) v_j: gains x_j and losses λ_l ∝ y_l of equal total, paired up.",
        over(j, gain[j] * v[j]) - over(l, lost * v[l]),
        over(j, over(l, gain[j] * LOSS[l] * (v[j] - v[l]))) / over(p, LOSS[p]),
    )
    yield bounded(
        "The gains are TV = φ' tanh(osc(β)/4) in all, and no pair is further apart than D = diam(V).",
        claim.output,
        slack=DIAMETER * tanh(B / 4) * (1 - USED)
        + tanh(B / 4)
        * USED
        * over(j, over(l, GAIN[j] * LOSS[l] * DIAMETER * (1 - NEAR[j, l])))
        / (over(j, GAIN[j]) * over(l, LOSS[l])),
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
