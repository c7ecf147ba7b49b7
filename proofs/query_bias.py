"""Q1, Q2, Q4 to Q7: the query bias has a limited effect.

b_q adds to the logits one number for each key, β_j, the same for every query. So it can make a key popular, with
everybody at once; it cannot make one query prefer a key that another query does not.
"""

from collections.abc import Iterator
from random import Random

from sympy import (
    Abs,
    Expr,
    IndexedBase,
    Integer,
    KroneckerDelta,
    Limit,
    Matrix,
    MatrixBase,
    Max,
    Rational,
    Symbol,
    exp,
    expand_log,
    limit,
    log,
    oo,
    pi,
    simplify,
    symbols,
    tanh,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.key_scope import dot, turned
from minibeft.proofs.notation import a, b, beta, i, j, k, l, m, over, p, q, r, s, softmax, u, v, z
from minibeft.proofs.statement import Part, Relation, needed, proof
from minibeft.proofs.steps import at_sizes, bounded, equal, exactly, independent

BETA = s * over(a, k[j, a] * b[a])


def logit(bias: bool, key: Expr | None = None) -> Expr:
    key = k[j, a] if key is None else key
    return s * over(a, (q[i, a] + b[a] if bias else q[i, a]) * key)


@proof("Q1", shift=BETA)
def query_bias_adds_one_number_a_key(claim) -> Iterator[Part]:
    yield equal("b_q adds β_j = s k_j·b_q to the logit of key j.", logit(bias=True), logit(bias=False) + claim.shift)
    yield independent("β_j names no query: it is the same for all of them.", claim.shift, i, r)
    key_bias = IndexedBase("b'", real=True)
    raw = IndexedBase("κ", real=True)  # W_kᵀ y_j
    yield equal(
        "With keys κ_j + b_k, three of the four products of q_i + b_q and κ_j + b_k remain or are constant in a row: only "
        "the cross term b_q·κ_j moves P.",
        softmax(logit(bias=True, key=raw[j, a] + key_bias[a])),
        softmax(logit(bias=False, key=raw[j, a]) + s * over(a, b[a] * raw[j, a])),
    )
    yield from needed("Z(b_q) − Z(0) − 1 βᵀ", shift_residual, QUERY_CASES)


@proof("Q2", total=Integer(1))
def outputs_stay_in_the_convex_hull(claim) -> Iterator[Part]:
    weights = softmax(z[i, j])
    yield bounded("Weights are not negative,", 0, weights, weights)
    yield equal("and sum to one:", over(j, weights), claim.total)
    top, below, y = Symbol("M", real=True), IndexedBase("x", nonnegative=True), IndexedBase("y", real=True)
    yield bounded(
        "so in no direction y is an output further out than the furthest value, M = max_j y·v_j, y·v_j = M − x_j.",
        over(j, weights * (top - below[j])),
        top,
        over(j, weights * below[j]),
    )
    yield equal(
        "(y·O_i is the mean of the y·v_j.)",
        over(a, y[a] * over(j, weights * v[j, a])),
        over(j, weights * over(a, y[a] * v[j, a])),
    )
    yield from needed("how far O_i lies outside of [min V, max V]", outside, HULL_CASES)


@proof("Q4", ratio=exp(z[i, j] - z[i, l] - z[r, j] + z[r, l]))
def query_bias_is_blind_to_who_asks(claim) -> Iterator[Part]:
    def preference(shift: bool) -> Expr:
        def weight(query: Symbol, key: Symbol) -> Expr:
            return exp(z[query, key] + (beta[key] if shift else 0)) / over(
                p, exp(z[query, p] + (beta[p] if shift else 0))
            )

        return weight(i, j) / weight(i, l) / (weight(r, j) / weight(r, l))

    yield equal(
        "How much more query i prefers key j to l than query r does: the normalisers cancel,",
        preference(shift=False),
        claim.ratio,
    )
    yield equal(
        "and with b_q the β_j and β_l cancel as well. Its logarithm is the claim.", preference(shift=True), claim.ratio
    )
    yield from needed("change of log P₁₁ − log P₁₂ − log P₂₁ + log P₂₂", blindness, BLIND_CASES)


@proof("Q5", dimension=lambda dims, keys: min(dims, keys - 1), difference=s * over(a, b[a] * (k[j, a] - k[l, a])))
def null_directions(claim) -> Iterator[Part]:
    yield equal("β_j − β_l is b_q against the difference of two keys.", BETA - BETA.xreplace({j: l}), claim.difference)
    shifted, plain = softmax(z[i, j] + beta[j]), softmax(z[i, j])
    gain = shifted / plain
    yield equal(
        "If b_q is orthogonal to all of them β is constant, and P stays (K1).",
        softmax(z[i, j] + Symbol("β̄", real=True)),
        plain,
    )
    yield equal(
        "If P stays, so does every ratio of two weights, so β_j = β_l: no other b_q is invisible.",
        gain / gain.xreplace({j: l}),
        exp(beta[j] - beta[l]),
    )
    yield equal(
        "The m vectors k_j − k̄ sum to zero, so they span at most m − 1 dimensions, and at most d.",
        over(j, k[j, a] - over(l, k[l, a]) / m),
        0,
    )
    random = Random(0)

    def rank(keys: int, dims: int) -> bool:
        some = Matrix(keys, dims, lambda *_: random.randint(-99, 99))
        centred = some - Matrix(keys, keys, lambda *_: Rational(1, keys)) * some
        return centred.rank() == claim.dimension(dims, keys)

    yield at_sizes("Generic keys do span that many.", [Relation("rank(k_j − k̄)", "=", "min(d, m − 1)")], 5, "m d", rank)
    yield from needed("P(b_q) − P(0), b_q orthogonal to k₁ − k₂", weights_residual, NULL_CASES)


T, GAP, OSC = symbols("t Δ osc", positive=True)


@proof("Q6", bound=(m - 1) * exp(OSC - T * GAP), limit=Integer(0))
def saturation(claim) -> Iterator[Part]:
    ratio = lambda key: exp(z[i, key] + T * beta[key])  # noqa: E731
    yield equal(
        "The mass on all keys but j, over the mass on j.",
        (1 - ratio(j) / over(l, ratio(l))) / (ratio(j) / over(l, ratio(l))),
        over(l, (1 - KroneckerDelta(l, j)) * exp(z[i, l] - z[i, j] - T * (beta[j] - beta[l]))),
    )
    x, y = IndexedBase("x", nonnegative=True), IndexedBase("y", nonnegative=True)
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


PAIR = IndexedBase("q'", real=True), IndexedBase("k'", real=True), IndexedBase("b'", real=True)  # the second dims
QUERY, KEY, BIAS = (q[i, u], PAIR[0][i, u]), (k[j, u], PAIR[1][j, u]), (b[u], PAIR[2][u])


@proof("Q7", shift=dot(KEY, turned(*BIAS, i - j)), double=Integer(2))
def query_bias_under_rotary(claim) -> Iterator[Part]:
    plain = dot(turned(*QUERY, i), turned(*KEY, j))
    yield equal(
        "q_i + b_q is turned with its query: β_ij = k_j·R_{i−j} b_q, one number for each key and distance.",
        dot(turned(QUERY[0] + BIAS[0], QUERY[1] + BIAS[1], i), turned(*KEY, j)),
        plain + claim.shift,
    )
    rest = IndexedBase("k°", real=True)
    yield equal(
        "Partial rotary: on the dims that are not turned β_j is the same for every query, as in Q1.",
        plain + over(a, (IndexedBase("q°", real=True)[i, a] + b[a]) * rest[j, a]),
        plain + over(a, IndexedBase("q°", real=True)[i, a] * rest[j, a]) + over(a, b[a] * rest[j, a]),
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


# ---------------------------------------------------------------- residuals and numbers of the counterexamples


def shift(head: Head) -> MatrixBase:
    """β of Q1: from the keys as they are projected, without positions or norms."""
    return head.b_q * head.keys().T


def shift_residual(head: Head) -> MatrixBase:
    return head.logits() - head.rows(head.but(b_q=None).logits(), shift(head))


def weights_residual(head: Head) -> MatrixBase:
    return head.weights() - head.but(b_q=None).weights()


def outside(head: Head) -> Expr:
    """How far the outputs, of one dim, lie outside of the values."""
    values = list(head.values())
    return sum(Max(0, x - max(values)) + Max(0, min(values) - x) for x in head.heads())


def blindness(head: Head) -> Expr:
    """What b_q changes in log P₁₁ − log P₁₂ − log P₂₁ + log P₂₂."""

    def double(p: MatrixBase) -> Expr:
        return log(p[0, 0] * p[1, 1] / (p[0, 1] * p[1, 0]))

    return expand_log(simplify(double(head.weights()) - double(head.but(b_q=None).weights())), force=True)


def saturated(head: Head) -> MatrixBase:
    """lim P(t b_q) minus all of the weight on the (first) key that maximises k_j·b_q."""
    t = Symbol("t", positive=True)
    scores = list(head.b_q * head.k.T)
    best = scores.index(max(scores))
    limits = head.but(b_q=head.b_q * t).weights().applyfunc(lambda x: limit(x, t, oo))
    return limits - Matrix(1, limits.cols, lambda _, to: int(to == best))


FLAT = Head(q=row(0, 0), k=Matrix([[1, 0], [1, 0]]), v=Matrix([1, 0]), b_q=row(1, 0))  # two equal keys
SLOPE = Head(q=row(0, 1), k=Matrix([[1, 0], [1, log(2)]]), v=Matrix([1, 0]), b_q=row(log(2), 0))  # logits 0, log 2
ONE = Head(q=row(0), k=row(1), v=row(1), b_q=row(log(2)))  # one key
TURN = {"turn": pi / 2}
DISTANCE = {"relative_query": {0: row(0, 0), -1: row(1, 0)}}
CONSTANT = {  # β is the same for all keys, and yet P moves
    "unrotated": ("Two equal keys, a quarter turn apart.", FLAT, TURN),
    "no-relative-vectors": ("Two equal keys, and a vector of the distance that multiplies q + b_q.", FLAT, DISTANCE),
    "no-softcap": (
        "Logits 0 and log 2, both raised by log 2; tanh brings them nearer to each other.",
        SLOPE,
        {"softcap": True},
    ),
    "softmax": (
        "One key with logit 0, raised by log 2: a sigmoid goes from 1/2 to 2/3.",
        ONE,
        {"weighting": "sigmoid"},
    ),
    "no-sink": ("One key with logit 0, raised by log 2, next to a sink with logit 0.", ONE, {"sink": 0}),
}
QUERY_CASES = {
    **{key: CONSTANT[key] for key in ("unrotated", "no-relative-vectors", "no-softcap")},
    "no-qk-norm": ("q = 1 and q + b_q = 2 have the same direction.", ONE.but(q=row(1), b_q=row(1)), {"qk_norm": True}),
}
NULL_CASES = {
    **CONSTANT,
    "no-qk-norm": (
        "Keys (0, 1) and (0, −1), b_q at a right angle to both: it turns q away from them.",
        Head(q=row(0, 1), k=Matrix([[0, 1], [0, -1]]), v=Matrix([1, 0]), b_q=row(1, 0)),
        {"qk_norm": True},
    ),
}
ONE_VALUE = Head(q=row(0), k=row(0), v=row(1))
HULL_CASES = {
    "softmax": ("One value 1; a sigmoid gives it weight 1/2.", ONE_VALUE, {"weighting": "sigmoid"}),
    "no-sink": ("One value 1; the sink takes half.", ONE_VALUE, {"sink": 0}),
    "rows-sum-to-one": ("One value 1, kept by dropout at twice its weight.", ONE_VALUE, {"dropout": row(2)}),
    "visible-key": ("One value 1, and a row that does not see it: 0.", ONE_VALUE, {"sees": row(0)}),
    "ungated": ("One value 1, and a gate of 2.", ONE_VALUE, {"gate": 2}),
}
TWO_QUERIES = Head(q=Matrix([0, log(2)]), k=Matrix([1, 0]), v=Matrix([1, 0]), b_q=row(log(2)))
BLIND_CASES = {
    "unrotated": ("Two tokens, equal keys, a quarter turn apart.", FLAT.but(q=Matrix([[0, 0], [0, 0]])), TURN),
    "no-relative-vectors": (
        "Two tokens, equal keys, and a vector of the distance that multiplies q + b_q.",
        FLAT.but(q=Matrix([[0, 0], [0, 0]])),
        {"relative_query": {0: row(1, 0), 1: row(0, 0), -1: row(0, 0)}},
    ),
    "no-qk-norm": (
        "Queries 1 and 2, of one direction; b_q = −3/2 turns the first around.",
        TWO_QUERIES.but(q=Matrix([1, 2]), k=Matrix([1, -1]), b_q=row(Rational(-3, 2))),
        {"qk_norm": True},
    ),
    "no-softcap": (
        "Logits 0, 0 and log 2, 0; the higher one has less room under tanh.",
        TWO_QUERIES,
        {"softcap": True},
    ),
    "softmax": ("The same logits, through a sigmoid.", TWO_QUERIES, {"weighting": "sigmoid"}),
}
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
