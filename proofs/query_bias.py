"""Q1, Q2, Q4, Q5: the query bias has a limited effect.

b_q adds to the logits one number for each key, β_j, the same for every query. So it can make a key popular, with
everybody at once; it cannot make one query prefer a key that another query does not.
"""

from collections.abc import Iterator
from random import Random

from sympy import (
    Expr,
    Integer,
    Matrix,
    MatrixBase,
    Max,
    Rational,
    Symbol,
    exp,
    expand_log,
    log,
    pi,
    simplify,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, beta, i, j, k, l, m, over, p, q, r, s, softmax, table, v, z
from minibeft.proofs.statement import Part, Relation, needed, proof
from minibeft.proofs.steps import at_sizes, bounded, equal, independent

BETA = s * over(a, k[j, a] * b[a])


def logit(bias: bool, key: Expr | None = None) -> Expr:
    key = k[j, a] if key is None else key
    return s * over(a, (q[i, a] + b[a] if bias else q[i, a]) * key)


@proof("Q1", shift=BETA)
def query_bias_adds_one_number_a_key(claim) -> Iterator[Part]:
    yield equal("b_q adds β_j = s k_j·b_q to the logit of key j.", logit(bias=True), logit(bias=False) + claim.shift)
    yield independent("β_j names no query: it is the same for all of them.", claim.shift, i, r)
    key_bias = table("b'", real=True)
    raw = table("κ", real=True)  # W_kᵀ y_j
    yield equal(
        "With keys κ_j + b_k, b_q·b_k and q_i·b_k are constant in a row: of what b_q adds, only the cross term b_q·κ_j "
        "moves P.",
        softmax(logit(bias=True, key=raw[j, a] + key_bias[a])),
        softmax(logit(bias=False, key=raw[j, a]) + s * over(a, b[a] * raw[j, a])),
    )
    yield from needed("Z(b_q) − Z(0) − 1 βᵀ", shift_residual, QUERY_CASES)


@proof("Q2", total=Integer(1))
def outputs_stay_in_the_convex_hull(claim) -> Iterator[Part]:
    weights = softmax(z[i, j])
    yield bounded("Weights are not negative,", 0, weights, weights)
    yield equal("and sum to one:", over(j, weights), claim.total)
    top, below, y = Symbol("M", real=True), table("x", nonnegative=True), table("y", real=True)
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
