"""K11 and K12: what the key bias is where it does something: beside a sink, under sigmoid weights, in linear attention.

In each case b_k adds c_i = s (q_i + b_q)·b_k to the logits of row i (K1). A softmax over these keys alone ignores c_i.
A sink does not get c_i, so c_i lowers the sink relative to the keys. A sigmoid does not compare keys, so c_i changes
every weight. Where the logits themselves are the weights, c_i is added to the weight of every key.
"""

from collections.abc import Iterator

from sympy import Matrix, MatrixBase, Symbol, exp, log, pi

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES, row
from minibeft.proofs.key_scope import MASS, NAMES
from minibeft.proofs.notation import a, b, i, j, k, l, mu, over, put, q, s, softmax, table, v, z
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal

C, SIGMA = table("c", real=True)[i], Symbol("σ", real=True)
QUERY_BIAS = table("b'", real=True)


def logit(bias: bool):
    """z_ij with b_q, with or without b_k."""
    return s * over(a, (q[i, a] + QUERY_BIAS[a]) * (k[j, a] + b[a] if bias else k[j, a]))


SHIFT = s * over(a, (q[i, a] + QUERY_BIAS[a]) * b[a])
ADDED = says("c_i = s (q_i + b_q)·b_k", logit(bias=True), "=", logit(bias=False) + SHIFT)


def beside(shift, sink):
    """The weights of keys whose logits are raised by `shift`, beside a sink of this logit."""
    weight = mu[i, j] * exp(z[i, j] + shift)
    return weight / (over(l, put(weight, j, l)) + exp(sink))


def sigmoid(x):
    return 1 / (1 + exp(-x))


KEPT = sigmoid(z[i, j])


@proof(
    "K11",
    added=ADDED,
    sink=says(
        "Beside a sink of logit σ, b_k is a sink logit of the query's own, σ − c_i",
        beside(C, SIGMA),
        "=",
        beside(0, SIGMA - C),
    ),
    gate=says(
        "row i is P(0), the sink left out, times the gate sigmoid(ln Σ_j e^{z_ij} − σ + c_i)",
        beside(C, SIGMA),
        "=",
        sigmoid(log(MASS) - SIGMA + C) * softmax(z[i, j]),
    ),
    sigmoid=says(
        "Under sigmoid attention each weight w becomes w/(w + (1−w) e^{−c_i})",
        sigmoid(z[i, j] + C),
        "=",
        KEPT / (KEPT + (1 - KEPT) * exp(-C)),
    ),
)
def what_the_key_bias_is_beside_a_sink(claim) -> Iterator[Part]:
    yield equal("b_k enters each logit of row i as one more term, c_i, which is linear in the query.", claim.added)
    yield equal("e^{c_i} is taken off keys and sink alike: the keys stay, the sink is σ − c_i.", claim.sink)
    yield equal(
        "Of a softmax without sink the keys keep 1/(1 + e^{σ − c_i}/A), A = Σ_j μ_ij e^{z_ij}: a gate for the whole "
        "row, the sigmoid of a number linear in the query.",
        claim.gate,
        called=NAMES,
    )
    yield equal("A sigmoid weighs each key alone.", claim.sigmoid, called={KEPT: table("w", real=True)[i, j]})
    yield from needed(("P at σ − c_i without b_k", "P(b_k)"), own_sink, SINK_CASES)


ROW = over(j, mu[i, j] * z[i, j])  # n_i
SEEN = over(j, mu[i, j])  # m
SHARE = SEEN * C / (ROW + SEEN * C)  # λ_i
MIXED = (
    "b_k mixes in the mean of the values: O_i(b_k) = (1−λ_i) O_i(0) + λ_i v̄, λ_i = m c_i/(n_i + m c_i), n_i = Σ_j z_ij"
)


@proof(
    "K12",
    added=ADDED,
    total=says("", over(j, mu[i, j] * (z[i, j] + C)), "=", ROW + SEEN * C),
    mixed=says(
        f"Under linear attention with identity features, {MIXED}",
        over(j, mu[i, j] * (z[i, j] + C) * v[j, a]) / over(l, mu[i, l] * (z[i, l] + C)),
        "=",
        (1 - SHARE) * over(j, mu[i, j] * z[i, j] * v[j, a]) / ROW + SHARE * over(j, mu[i, j] * v[j, a]) / SEEN,
    ),
)
def what_the_key_bias_is_in_linear_attention(claim) -> Iterator[Part]:
    yield equal("b_k adds c_i to each logit of row i,", claim.added)
    yield equal("so m c_i to what the row is divided by, of m keys in sight (μ_ij is 1 for them, else 0).", claim.total)
    yield equal(
        "Each value gets c_i more of it, and Σ_j v_j is m times their mean v̄.",
        claim.mixed,
    )
    yield from needed(("(1 − λ) O(0) + λ v̄", "O(b_k)"), mixture, LINEAR_CASES)


def shift(head: Head) -> MatrixBase:
    """c_i of Q1's kind: from queries and b_k as they are projected, without positions or norms."""
    return head.rows(head.q, head.b_q) * head.b_k.T


def own_sink(head: Head) -> tuple[MatrixBase, MatrixBase]:
    return head.but(b_k=None, sink=head.sink - shift(head)[0]).weights(), head.weights()


def mixture(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """What the claim says, and the output, of the first row."""
    plain, c = head.but(b_k=None), shift(head)[0]
    values = head.values()
    total, size = sum(plain.logits().row(0)), values.rows
    share = size * c / (total + size * c)
    mean = sum(values) / size
    return (1 - share) * plain.heads().row(0) + Matrix([[share * mean]]), head.heads().row(0)


# The cases of K1, beside a sink of logit 0.
SINK_CASES = {
    key: (text, head.but(sink=0), change)
    for key, (text, head, change) in CASES.items()
    if key in ("unrotated", "no-relative-vectors", "no-qk-norm", "no-softcap", "no-foreign-keys")
}
LINE = Head(q=row(1), k=Matrix([1, 2]), v=Matrix([3, 0]), b_k=row(1), weighting="identity")  # logits 1, 2
PLANE = Head(
    q=row(1, 0), k=Matrix([[1, 0], [1, 0]]), v=Matrix([3, 0]), b_k=row(1, 0), weighting="identity"
)  # two equal keys
LINEAR_CASES = {
    "unrotated": ("Two equal keys, a quarter turn apart.", PLANE, {"turn": pi / 3}),
    "no-relative-vectors": (
        "Logits 1 and 2, and a vector E_{−1} = 1 that multiplies the second key and b_k with it.",
        LINE,
        {"relative_key": {0: row(0), -1: row(1)}},
    ),
    "no-qk-norm": (
        "Keys 1, 2, −1, and b_k = 2, which makes all of them 1 once they are normalised.",
        LINE.but(k=Matrix([1, 2, -1]), v=Matrix([3, 0, 0]), b_k=row(2)),
        {"qk_norm": True},
    ),
    "no-softcap": ("Logits 1 and 2, through tanh.", LINE, {"softcap": True}),
    "identity-features": ("The features elu + 1 of q, k and k + b_k.", LINE.but(b_k=row(-2)), {"weighting": "linear"}),
    "no-sink": ("A sink with logit 0 adds 1 to what the row is divided by.", LINE, {"sink": 0}),
    "no-foreign-keys": ("Another key, 1, that b_k is not added to, with value 3.", LINE, {"foreign": (row(1), row(3))}),
    "rows-sum-to-one": ("Dropout keeps the first key alone, at twice its weight.", LINE, {"dropout": row(2, 0)}),
    "ungated": ("A gate of 2.", LINE, {"gate": 2}),
}
