"""Q1, Q2, Q4, Q5: the query bias has a limited effect.

b_q adds to the logits one number for each key, β_j, the same for every query. So it can make a key attract more weight
from all queries at once; it cannot change how much more one query prefers a key than another query does.
"""

from collections.abc import Iterator
from random import Random

from sympy import (
    Expr,
    Matrix,
    MatrixBase,
    Max,
    Min,
    Rational,
    Symbol,
    exp,
    expand_log,
    log,
    pi,
    simplify,
    symbols,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, beta, i, j, k, l, m, over, p, put, q, r, s, softmax, table, v, z
from minibeft.proofs.relation import MISSES, Quantity, says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import at_sizes, bounded, equal, independent

BETA = s * over(a, k[j, a] * b[a])


def logit(bias: bool, key: Expr | None = None) -> Expr:
    key = k[j, a] if key is None else key
    return s * over(a, (q[i, a] + b[a] if bias else q[i, a]) * key)


KEY_BIAS = table("b'", real=True)
RAW = table("κ", real=True)  # W_kᵀ y_j


@proof(
    "Q1",
    shift=says("z_ij(b_q) = z_ij(0) + β_j with β_j = s k_j·b_q", logit(bias=True), "=", logit(bias=False) + BETA),
    same=says("the same for every query", BETA, MISSES, i),
    cross=says(
        "In a softmax without sink or foreign keys only the part s b_q·W_k y_j of it moves P",
        softmax(logit(bias=True, key=RAW[j, a] + KEY_BIAS[a])),
        "=",
        softmax(logit(bias=False, key=RAW[j, a]) + s * over(a, b[a] * RAW[j, a])),
    ),
)
def query_bias_adds_one_number_a_key(claim) -> Iterator[Part]:
    yield equal("b_q adds β_j = s k_j·b_q to the logit of key j.", claim.shift)
    yield independent("β_j names no query: it is the same for all of them.", claim.same)
    yield equal(
        "With keys κ_j + b_k, b_q·b_k and q_i·b_k are constant in a row: of what b_q adds, only the cross term b_q·κ_j "
        "moves P.",
        claim.cross,
    )
    yield from needed(("Z(0) + 1 βᵀ", "Z(b_q)"), shifted, QUERY_CASES)


WEIGHTS = softmax(z[i, j])
TOP, BELOW, ALONG = Symbol("M", real=True), table("x", nonnegative=True), table("y", real=True)
HULL = "Every row of O is a convex combination of the rows of V, whatever b_q is"


@proof(
    "Q2",
    sign=says(HULL, 0, "≤", WEIGHTS),
    total=says(HULL, over(j, WEIGHTS), "=", 1),
    mean=says(
        HULL, over(a, ALONG[a] * over(j, WEIGHTS * v[j, a])), "=", over(j, WEIGHTS * over(a, ALONG[a] * v[j, a]))
    ),
    inside=says(HULL, over(j, WEIGHTS * (TOP - BELOW[j])), "≤", TOP),
)
def outputs_stay_in_the_convex_hull(claim) -> Iterator[Part]:
    yield bounded("Weights are not negative,", claim.sign, slack=WEIGHTS)
    yield equal("and sum to one:", claim.total)
    yield equal("y·O_i is the mean of the y·v_j,", claim.mean)
    yield bounded(
        "so in no direction y is an output further out than the furthest value, M = max_j y·v_j, y·v_j = M − x_j.",
        claim.inside,
        slack=over(j, WEIGHTS * BELOW[j]),
    )
    yield from needed("how far O_i lies outside of [min V, max V]", outside, HULL_CASES)


def preference(shift: bool) -> Expr:
    """How much more query i prefers key j to l than query r does."""

    def weight(query: Symbol, key: Symbol) -> Expr:
        return exp(z[query, key] + (beta[key] if shift else 0)) / over(p, exp(z[query, p] + (beta[p] if shift else 0)))

    return weight(i, j) / weight(i, l) / (weight(r, j) / weight(r, l))


@proof(
    "Q4",
    ratio=says("", preference(shift=False), "=", exp(z[i, j] - z[i, l] - z[r, j] + z[r, l])),
    blind=says(
        "log P_ij − log P_il − log P_rj + log P_rl does not depend on b_q",
        preference(shift=True),
        "=",
        preference(shift=False),
    ),
)
def query_bias_is_blind_to_who_asks(claim) -> Iterator[Part]:
    yield equal("How much more query i prefers key j to l than query r does: the normalisers cancel,", claim.ratio)
    yield equal("and with b_q the β_j and β_l cancel as well. Its logarithm is the claim.", claim.blind)
    yield from needed("change of log P₁₁ − log P₁₂ − log P₂₁ + log P₂₂", blindness, BLIND_CASES)


GAIN = softmax(z[i, j] + beta[j]) / WEIGHTS
KEYS, DIMS = symbols("m d")
NULL = "b_q leaves P as it is iff it is orthogonal to span{k_j − k̄}"
SPAN = "a space of dimension at most min(d, m − 1)"


def spanned(keys: int, dims: int) -> int:
    """The rank of k_j − k̄ for keys drawn at random."""
    random = Random(0)
    some = Matrix(keys, dims, lambda *_: random.randint(-99, 99))
    return (some - Matrix(keys, keys, lambda *_: Rational(1, keys)) * some).rank()


@proof(
    "Q5",
    difference=says(NULL, BETA - put(BETA, j, l), "=", s * over(a, b[a] * (k[j, a] - k[l, a]))),
    stays=says(NULL, softmax(z[i, j] + Symbol("β̄", real=True)), "=", WEIGHTS),
    moves=says(NULL, GAIN / put(GAIN, j, l), "=", exp(beta[j] - beta[l])),
    centred=says(SPAN, over(j, k[j, a] - over(l, k[l, a]) / m), "=", 0),
    dimension=says(SPAN, Quantity("largest rank(k_j − k̄)", spanned), "=", Min(DIMS, KEYS - 1)),
    output=says(
        "O may stay besides, as where all values are equal",
        over(j, softmax(z[i, j] + beta[j]) * ALONG[a]),
        "=",
        over(j, WEIGHTS * ALONG[a]),
    ),
)
def null_directions(claim) -> Iterator[Part]:
    yield equal("β_j − β_l is b_q against the difference of two keys.", claim.difference)
    yield equal("If b_q is orthogonal to all of them β is constant, and P stays (K1).", claim.stays)
    yield equal("If P stays, so does every ratio of two weights, so β_j = β_l: no other b_q is invisible.", claim.moves)
    yield equal(
        "The m vectors k_j − k̄ sum to zero, so they span at most m − 1 dimensions, and at most d.", claim.centred
    )
    yield at_sizes("Generic keys do span that many.", claim.dimension, 5, "m d")
    yield equal("Where all values are one y, O is y whatever b_q does to P.", claim.output)
    yield from needed(("P(0)", "P(b_q)"), weights, NULL_CASES)


# ---------------------------------------------------------------- residuals and numbers of the counterexamples


def shift(head: Head) -> MatrixBase:
    """β of Q1: from the keys as they are projected, without positions or norms."""
    return head.b_q * head.keys().T


def shifted(head: Head) -> tuple[MatrixBase, MatrixBase]:
    return head.rows(head.but(b_q=None).logits(), shift(head)), head.logits()


def weights(head: Head) -> tuple[MatrixBase, MatrixBase]:
    return head.but(b_q=None).weights(), head.weights()


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
