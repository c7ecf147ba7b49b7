"""Q6 and Q7: the query bias at its extremes: grown without limit, and under rotary positions.

What it can do, it does for every query alike (Q1); so a large b_q sends all of them to one key. Rotary positions turn
b_q with its query: then the number that it adds to a key depends on how far away the query is.
"""

from collections.abc import Iterator

from sympy import (
    Abs,
    Integer,
    KroneckerDelta,
    Limit,
    Matrix,
    MatrixBase,
    Max,
    Symbol,
    exp,
    limit,
    oo,
    pi,
    symbols,
    tanh,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.key_scope import dot, turned
from minibeft.proofs.notation import a, b, beta, i, j, k, l, m, over, q, table, u, z
from minibeft.proofs.query_bias import BLIND_CASES, FLAT, TURN, blindness, outside
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

T, GAP, OSC = symbols("t Δ osc", positive=True)


@proof("Q6", bound=(m - 1) * exp(OSC - T * GAP), limit=Integer(0))
def saturation(claim) -> Iterator[Part]:
    ratio = lambda key: exp(z[i, key] + T * beta[key])  # noqa: E731
    yield equal(
        "The mass on all keys but j, over the mass on j.",
        (1 - ratio(j) / over(l, ratio(l))) / (ratio(j) / over(l, ratio(l))),
        over(l, (1 - KroneckerDelta(l, j)) * exp(z[i, l] - z[i, j] - T * (beta[j] - beta[l]))),
    )
    x, y = table("x", nonnegative=True), table("y", nonnegative=True)
    others = over(l, (1 - KroneckerDelta(l, j)) * exp(OSC - x[l] - T * (GAP + y[l])))
    slack = over(l, (1 - KroneckerDelta(l, j)) * exp(OSC - T * GAP) * (1 - exp(-x[l] - T * y[l])))
    yield bounded(
        "z_il − z_ij = osc(z_i) − x_l and β_j − β_l = Δ + y_l with x, y ≥ 0; and 1 − P_ij is at most that ratio.",
        others,
        claim.bound,
        slack,
    )
    share_ = Symbol("P", positive=True)
    yield exactly(
        "(1 − P ≤ (1 − P)/P for 0 < P ≤ 1: the difference is (1 − P)²/P.)",
        (1 - share_) / share_ - (1 - share_),
        (1 - share_) ** 2 / share_,
    )
    yield exactly("So P_ij → 1 as t grows, for every query i.", Limit(claim.bound, T, oo), claim.limit)
    yield from needed("lim P(t b_q) − e_j*", saturated, SATURATION_CASES)


PAIR = table("q'", real=True), table("k'", real=True), table("b'", real=True)  # the second dims
QUERY, KEY, BIAS = (q[i, u], PAIR[0][i, u]), (k[j, u], PAIR[1][j, u]), (b[u], PAIR[2][u])


@proof("Q7", shift=dot(KEY, turned(*BIAS, i - j)), double=Integer(2))
def query_bias_under_rotary(claim) -> Iterator[Part]:
    plain = dot(turned(*QUERY, i), turned(*KEY, j))
    yield equal(
        "q_i + b_q is turned with its query: β_ij = k_j·R_{i−j} b_q, one number for each key and distance.",
        dot(turned(QUERY[0] + BIAS[0], QUERY[1] + BIAS[1], i), turned(*KEY, j)),
        plain + claim.shift,
    )
    rest = table("k°", real=True)
    yield equal(
        "Partial rotary: on the dims that are not turned β_j is the same for every query, as in Q1.",
        plain + over(a, (table("q°", real=True)[i, a] + b[a]) * rest[j, a]),
        plain + over(a, table("q°", real=True)[i, a] * rest[j, a]) + over(a, b[a] * rest[j, a]),
    )
    head = BLIND_CASES["unrotated"][1].but(turn=pi / 2)
    yield exactly(
        "Q4 fails: two tokens, a quarter turn apart, with q = 0 and equal keys.",
        blindness(head),
        claim.double,
        "exact numbers",
        shown="change of log P₁₁ − log P₁₂ − log P₂₁ + log P₂₂",
    )
    yield exactly(
        "Q2 holds, as nothing was said there about the logits; on the same head,",
        outside(head),
        0,
        "exact numbers",
        shown="how far O lies outside of [min V, max V]",
    )
    moved, still = head.weights(), head.but(b_q=None).weights()
    gaps = head.logits() - head.but(b_q=None).logits()
    variation = sum(Abs(x) for x in (moved - still).row(0)) / 2
    allowed = tanh((max(gaps.row(0)) - min(gaps.row(0))) / 4)
    yield exactly(
        "and Q3 with the osc of its own row (it was proved for any β_ij).",
        Max(0, variation - allowed),
        0,
        "exact numbers",
        shown="excess of TV over tanh(osc(β_i)/4)",
    )


# ---------------------------------------------------------------- residual and numbers of the counterexamples


def saturated(head: Head) -> MatrixBase:
    """lim P(t b_q) minus all of the weight on the (first) key that maximises k_j·b_q."""
    t = Symbol("t", positive=True)
    scores = list(head.b_q * head.k.T)
    best = scores.index(max(scores))
    limits = head.but(b_q=head.b_q * t).weights().applyfunc(lambda x: limit(x, t, oo))
    return limits - Matrix(1, limits.cols, lambda _, to: int(to == best))


RISING = Head(q=row(0), k=Matrix([1, 2]), v=Matrix([1, 0]), b_q=row(1))
SATURATION_CASES = {
    "unrotated": (
        "Keys 1 and 2 in the direction of b_q, but the second a quarter turn away.",
        FLAT.but(k=Matrix([[1, 0], [2, 0]])),
        TURN,
    ),
    "no-relative-vectors": (
        "Keys 1 and 2, and E_0 = 2 lifts the first.",
        RISING,
        {"relative_query": {0: row(2), -1: row(0)}},
    ),
    "no-qk-norm": ("Keys 1 and 2 have the same direction.", RISING.but(q=row(1)), {"qk_norm": True}),
    "no-softcap": ("Under tanh both logits end at 1.", RISING, {"softcap": True}),
    "softmax": ("Both sigmoids end at 1.", RISING, {"weighting": "sigmoid"}),
    "no-sink": ("One key with k·b_q < 0: in the end the sink has it all.", RISING.but(k=row(-1)), {"sink": 0}),
    "unique-maximiser": ("Both keys 2: the weight is shared.", RISING, {"k": Matrix([2, 2])}),
}
