"""Q6 and Q7: the query bias at its extremes: grown without limit, and under rotary positions.

What it can do, it does for every query alike (Q1); so a large b_q sends all of them to one key. Rotary positions turn
b_q with its query: then the number that it adds to a key depends on how far away the query is.
"""

from collections.abc import Iterator

from sympy import KroneckerDelta, Limit, Matrix, MatrixBase, Symbol, exp, limit, oo, pi, symbols, tanh

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.key_scope import dot, turned
from minibeft.proofs.notation import a, b, beta, i, j, k, l, m, over, put, q, s, softmax, table, u, z
from minibeft.proofs.query_bias import BELOW, BLIND_CASES, FLAT, TOP, TURN, blindness
from minibeft.proofs.query_bound import VARIATION, B, at_most_tanh
from minibeft.proofs.relation import Quantity, says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

T, GAP, OSC = symbols("t Δ osc", positive=True)


RISEN = exp(z[i, j] + T * beta[j])
WON = RISEN / over(l, put(RISEN, j, l))  # P_ij at t b_q
NOT_J = 1 - KroneckerDelta(l, j)
UNDER, BEHIND = table("x", nonnegative=True), table("y", nonnegative=True)
OTHERS = over(l, NOT_J * exp(OSC - UNDER[l] - T * (GAP + BEHIND[l])))  # the mass on all other keys over that on j


@proof(
    "Q6",
    ratio=says("", (1 - WON) / WON, "=", over(l, NOT_J * exp(z[i, l] - z[i, j] - T * (beta[j] - beta[l])))),
    bound=says("1 − P_ij* ≤ (m−1) e^{osc(z_i) − tΔ}", 1 - 1 / (1 + OTHERS), "≤", (m - 1) * exp(OSC - T * GAP)),
    limit=says(
        "As t → ∞, every query attends to the maximiser j* of k_j·b_q alone",
        Limit((m - 1) * exp(OSC - T * GAP), T, oo),
        "=",
        0,
    ),
)
def saturation(claim) -> Iterator[Part]:
    yield equal(
        "The mass on all keys but j, over the mass on j.", claim.ratio, called={WON: table("P", real=True)[i, j]}
    )
    slack = over(l, NOT_J * exp(OSC - T * GAP) * (1 - exp(-UNDER[l] - T * BEHIND[l]))) + OTHERS**2 / (1 + OTHERS)
    yield bounded(
        "z_il − z_ij = osc(z_i) − x_l and β_j − β_l = Δ + y_l with x, y ≥ 0; and 1 − P_ij = 1 − 1/(1 + that ratio).",
        claim.bound,
        slack=slack,
    )
    yield exactly("So P_ij → 1 as t grows, for every query i.", claim.limit)
    yield from needed(("claimed lim P(t b_q)", "lim P(t b_q)"), saturated, SATURATION_CASES)


PAIR = table("q'", real=True), table("k'", real=True), table("b'", real=True)  # the second dims
QUERY, KEY, BIAS = (q[i, u], PAIR[0][i, u]), (k[j, u], PAIR[1][j, u]), (b[u], PAIR[2][u])


PLAIN = dot(turned(*QUERY, i), turned(*KEY, j))
ROWS = table("β", real=True)  # any β_ij
MOVED = softmax(z[i, j] + ROWS[i, j])
HOLD = "Q2, and Q3 with osc taken row by row, hold"
TURNED_HEAD = BLIND_CASES["unrotated"][1].but(turn=pi / 2)
DOUBLE = "change of log P₁₁ − log P₁₂ − log P₂₁ + log P₂₂"


@proof(
    "Q7",
    shift=says(
        "β_ij = s k_j·R_{i−j} b_q depends on i − j",
        s * dot(turned(QUERY[0] + BIAS[0], QUERY[1] + BIAS[1], i), turned(*KEY, j)),
        "=",
        s * PLAIN + s * dot(KEY, turned(*BIAS, i - j)),
    ),
    double=says("Q4 fails", Quantity(DOUBLE, lambda: blindness(TURNED_HEAD)), "=", 2),
    hull=says(HOLD, over(j, MOVED * (TOP - BELOW[j])), "≤", TOP),
    bound=says(HOLD, VARIATION, "≤", tanh(B / 4)),
)
def query_bias_under_rotary(claim) -> Iterator[Part]:
    yield equal("q_i + b_q is turned with its query: one number for each key and distance.", claim.shift)
    rest = table("k°", real=True)
    yield equal(
        "Partial rotary: on the dims that are not turned β_j is the same for every query, as in Q1.",
        PLAIN + over(a, (table("q°", real=True)[i, a] + b[a]) * rest[j, a]),
        PLAIN + over(a, table("q°", real=True)[i, a] * rest[j, a]) + over(a, b[a] * rest[j, a]),
    )
    yield exactly(
        "Q4 fails: two tokens, a quarter turn apart, with q = 0 and equal keys.", claim.double, scope="exact numbers"
    )
    yield bounded(
        "Q2 holds, whatever is added to the logits (M − x_j is a value in some direction, M the largest),",
        claim.hull,
        slack=over(j, MOVED * BELOW[j]),
    )
    yield at_most_tanh("and Q3, where φ_ij may be another in each row.", claim.bound)


# ---------------------------------------------------------------- residual and numbers of the counterexamples


def saturated(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """All of the weight on the (first) key that maximises k_j·b_q, and lim P(t b_q)."""
    t = Symbol("t", positive=True)
    scores = list(head.b_q * head.k.T)
    best = scores.index(max(scores))
    limits = head.but(b_q=head.b_q * t).weights().applyfunc(lambda x: limit(x, t, oo))
    return Matrix(1, limits.cols, lambda _, to: int(to == best)), limits


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
