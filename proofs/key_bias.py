"""K1: the key bias has no effect.

A query q_i scores a key k_j + b_k by s q_i·(k_j + b_k). The second part does not depend on the key: it is
one number c_i for the whole row. A softmax compares the keys of a row with each other, so c_i cancels. That is all;
what remains is to see how far the argument holds, and where it breaks.
"""

from collections.abc import Iterator

from sympy import Expr, Matrix, MatrixBase, log, pi

from minibeft.proofs.head import Head
from minibeft.proofs.notation import a, b, e, i, j, k, over, q, s, softmax, table, u, v, w, z
from minibeft.proofs.relation import MISSES, says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal, independent


def logit(bias: bool, scale: Expr = s) -> Expr:
    """z_ij, with or without b_k."""
    return scale * over(a, q[i, a] * (k[j, a] + b[a] if bias else k[j, a]))


C = table("c", real=True)
SHIFT = s * over(a, q[i, a] * b[a])
ADDS = "b_k adds s q_i·b_k to every logit of row i"


@proof(
    "K1",
    shift=says(ADDS, logit(bias=True), "=", logit(bias=False) + SHIFT),
    every=says(ADDS, SHIFT, MISSES, j),
    shared=says("a softmax ignores what its row shares", softmax(z[i, j] + C[i]), "=", softmax(z[i, j])),
    weights=says("P(b_k) = P(0)", softmax(logit(bias=True)), "=", softmax(logit(bias=False))),
)
def key_bias_has_no_effect(claim) -> Iterator[Part]:
    yield equal("b_k enters each logit of row i as one more term, c_i.", claim.shift)
    yield independent("c_i names no key: it is the same number for every j.", claim.every)
    yield equal(
        "A softmax ignores what a row shares: exp(c_i) leaves the sum and cancels. μ_ij = exp(M_ij) is any mask.",
        claim.shared,
    )
    yield from scope()
    yield equal("So P(b_k) = P(0), everything written out.", claim.weights)
    yield from needed(("P(0)", "P(b_k)"), weights, CASES)


def scope() -> Iterator[Part]:
    """How far it carries."""
    tau = table("τ", positive=True)
    yield equal(
        "Scope: every temperature, also one for each query.",
        softmax(logit(bias=True, scale=tau[i])),
        softmax(logit(bias=False, scale=tau[i])),
    )
    x, y = table("y", real=True), table("W", real=True)
    keys = over(e, x[j, e] * y[e, a])
    yield equal(
        "Scope: cross-attention. The keys k_j = y_j W_k may come from anywhere.",
        softmax(s * over(a, q[i, a] * (keys + b[a]))),
        softmax(s * over(a, q[i, a] * keys)),
    )
    yield equal(
        "Scope: GQA and MQA. Query head u reads key-value head x′, for whichever pair.",
        softmax(s * over(a, q[u, i, a] * (k[w, j, a] + b[w, a]))),
        softmax(s * over(a, q[u, i, a] * k[w, j, a])),
    )
    drop = table("D", nonnegative=True)
    yield equal(
        "Scope: dropout. Whatever factors D_ij the weights are multiplied by, the output is the same.",
        over(j, drop[i, j] * softmax(logit(bias=True)) * v[j, e]),
        over(j, drop[i, j] * softmax(logit(bias=False)) * v[j, e]),
    )


def weights(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """The weights without and with b_k."""
    return head.but(b_k=None).weights(), head.weights()


def row(*entries) -> Matrix:
    return Matrix([list(entries)])


ONE_KEY = Head(q=row(1), k=row(0), v=row(1), b_k=row(log(2)))
TWO_KEYS = Head(q=row(1), k=Matrix([0, log(2)]), v=Matrix([1, 0]), b_k=row(log(2)))

# The smallest that there are: one query, and two keys, since a softmax over one key is 1; one dim, if angles allow.
CASES = {
    "unrotated": (
        "Two equal keys, and a quarter turn from one position to the next: b_k arrives at the second key turned away.",
        Head(q=row(log(2), 0), k=Matrix([[0, 0], [0, 0]]), v=Matrix([1, 0]), b_k=row(1, 0)),
        {"turn": pi / 2},
    ),
    "no-relative-vectors": (
        "Two equal keys, and a vector E_{i−j} that multiplies k_j + b_k: E_0 = 0, E_{−1} = log 2.",
        Head(q=row(0), k=Matrix([0, 0]), v=Matrix([1, 0]), b_k=row(1)),
        {"relative_key": {0: row(0), -1: row(log(2))}},
    ),
    "no-qk-norm": (
        "Two keys at a right angle; after b_k the angle is half as large.",
        Head(q=row(1, 0), k=Matrix([[1, 0], [0, 1]]), v=Matrix([1, 0]), b_k=row(1, 0)),
        {"qk_norm": True},
    ),
    "no-softcap": (
        "Two keys with logits 0 and log 2; tanh brings them nearer to each other once both are raised.",
        TWO_KEYS,
        {"softcap": True},
    ),
    "softmax": ("One key with logit 0; a sigmoid of it rises from 1/2 to 2/3.", ONE_KEY, {"weighting": "sigmoid"}),
    "softmax:relu": (
        "One key with logit 1; ReLU of it rises by log 2.",
        ONE_KEY.but(k=row(1)),
        {"weighting": "relu"},
    ),
    "softmax:linear": (
        "Two keys 1 and 2; linear attention weighs them by φ(q)·φ(k), φ = elu + 1.",
        TWO_KEYS.but(k=Matrix([1, 2]), b_k=row(1)),
        {"weighting": "linear"},
    ),
    "no-sink": (
        "One key with logit 0, and a sink with logit 0 (softmax-off-by-one), which b_k does not raise.",
        ONE_KEY,
        {"sink": 0},
    ),
    "no-foreign-keys": (
        "One key 0, and another, 0, that b_k is not added to (add_zero_attn).",
        ONE_KEY,
        {"foreign": (row(0), row(0))},
    ),
    "no-foreign-keys:prefix": (
        "One key 0, and a prefix key log 2 with a value of its own.",
        ONE_KEY,
        {"foreign": (row(log(2)), row(3))},
    ),
    "exact": (
        "Keys 0 and 1, b_k = 16, and numbers of three binary digits, where 17 = 16: the keys become equal.",
        TWO_KEYS.but(k=Matrix([0, 1]), b_k=row(16)),
        {"bits": 3},
    ),
}
