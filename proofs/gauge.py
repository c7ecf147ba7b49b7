"""G2 and G1: the gradients of one head agree, and what weight decay makes of that.

A head's logits hold W_q and W_k in the product W_qᵀ W_k alone, and its output W_o and W_v in W_o W_v alone. So one may
be traded against the other (a gauge), and both gradients, each taken with its own matrix, are the same.

In the formulas Q, K and V are W̃_q, W̃_k and W̃_v, where W̃ = [W b]: a bias is one more column, and each token has an
entry 1 there; O is W_o. G is the gradient of any loss with respect to the logits (for b_k, to the weights), H the one
with respect to the output.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sympy import Derivative, Expr, Matrix, MatrixBase, Symbol, pi

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import logit, row
from minibeft.proofs.notation import G, a, b, e, f, i, j, l, last, mu, o, over, put, softmax, table, third, u, v, y, z
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal
from minibeft.proofs.training import SMOOTH, derivative, rounded_weights
from minibeft.proofs.value_bias import OUTPUT_CASES, gradients

X, Y = table("x", real=True), table("y", real=True)  # what queries and keys are read from
Q, K, V, O = (table(name, real=True) for name in "QKVO")  # noqa: E741
BV, BO = table("b", real=True), table("b'", real=True)
BACK, WEIGHT, DECAY = table("H", real=True), table("P", real=True), Symbol("λ", real=True)


def logits(*head: Symbol) -> Expr:
    """z_ij of a query head, whose scale belongs to the loss here; the group has its keys in common."""
    query, key = over(f, Q[*head, third, f] * X[i, f]), over(f, K[third, f] * Y[j, f])
    return over(third, query * key)


def added(*head: Symbol) -> Expr:
    """What a query head adds to entry f of token i; the group has its values in common."""
    mixed = over(j, WEIGHT[*head, i, j] * over(last, V[third, last] * Y[j, last]))
    return over(third, O[f, *head, third] * mixed)


LOGITS = over(i, over(j, G[i, j] * logits()))
GROUP = over(y, over(i, over(j, G[y, i, j] * logits(y))))
OUTPUT = over(i, over(f, BACK[i, f] * added()))
SHARED = over(y, over(i, over(f, BACK[i, f] * added(y))))


def against(loss: Expr, matrix: Any, *at: Symbol) -> Expr:
    """(G̃ W̃ᵀ) at (a, e): the loss by row a of W̃, times row e of it."""
    *head, one, other = at
    return over(o, Derivative(loss, matrix[*head, one, o]) * matrix[*head, other, o])


def by_output(loss: Expr, *at: Symbol) -> Expr:
    """(W_oᵀ G_o) at (a, e)."""
    *head, one, other = at
    return over(o, O[o, *head, one] * Derivative(loss, O[o, *head, other]))


def rate(loss: Expr, matrix: Any) -> Expr:
    """That of W̃ W̃ᵀ at (a, e) as each entry moves by −∂L."""
    return -against(loss, matrix, a, e) - against(loss, matrix, e, a)


ALIKE = "With W̃ = [W b] and G̃ its gradient: G̃_q W̃_qᵀ = W̃_k G̃_kᵀ"
GROUPED = "query heads that share keys and values are summed over"


@proof(
    "G2",
    logits=says(ALIKE, against(LOGITS, Q, a, e), "=", against(LOGITS, K, e, a)),
    output=says("G̃_v W̃_vᵀ = W_oᵀ G_o, for every loss", against(OUTPUT, V, a, e), "=", by_output(OUTPUT, a, e)),
    keys=says(GROUPED, over(u, against(GROUP, Q, u, a, e)), "=", against(GROUP, K, e, a)),
    values=says(GROUPED, against(SHARED, V, a, e), "=", over(u, by_output(SHARED, u, a, e))),
    flow=says("Gradient flow keeps W̃_q W̃_qᵀ − W̃_k W̃_kᵀ", rate(LOGITS, Q), "=", rate(LOGITS, K)),
    flow_out=says("W̃_v W̃_vᵀ − W_oᵀ W_o", rate(OUTPUT, V), "=", -by_output(OUTPUT, a, e) - by_output(OUTPUT, e, a)),
)
def gradients_of_a_head_agree(claim) -> Iterator[Part]:
    yield equal("Both are Σ_ij G_ij k_j q_iᵀ, whatever made G of the logits: any mask, cap or weighting.", claim.logits)
    yield equal("Both are Σ_i (W_oᵀ H_i) (P V)_i, whatever the weights P are.", claim.output)
    yield equal("GQA: the h query heads of a group, which have keys in common,", claim.keys)
    yield equal("and values.", claim.values)
    yield equal("As each entry moves by −∂L, W̃ W̃ᵀ moves by −(G̃ W̃ᵀ + W̃ G̃ᵀ): W̃_q as W̃_k,", claim.flow)
    yield equal("and W̃_v as W_oᵀ.", claim.flow_out)
    yield from needed(("G̃_q W̃_qᵀ", "W̃_k G̃_kᵀ"), traded, LOGIT_CASES)
    yield from needed(("G̃_v W̃_vᵀ", "W_oᵀ G_o"), traded_out, VALUE_CASES)


KEY_LOSS = over(i, over(l, G[i, l] * softmax(put(logit(bias=True), j, l), l))) + DECAY / 2 * over(a, b[a] ** 2)
ROWS = softmax(z[y, i, j], mask=mu[y, i, j])
MIXED = over(y, over(a, O[f, y, a] * over(j, ROWS * (v[y, j, a] + BV[a]))))
VALUE_LOSS = over(i, over(f, BACK[i, f] * (MIXED + BO[f]))) + DECAY / 2 * (over(a, BV[a] ** 2) + over(f, BO[f] ** 2))
LOGIT_LOSS = GROUP + DECAY / 2 * over(third, over(f, over(y, Q[y, third, f] ** 2) + K[third, f] ** 2))
OUTPUT_LOSS = SHARED + DECAY / 2 * over(third, over(f, over(y, O[f, y, third] ** 2) + V[third, f] ** 2))


def squares(matrix: Any, *at: Symbol) -> Expr:
    """(W̃ W̃ᵀ) at (a, e)."""
    *head, one, other = at
    return over(o, matrix[*head, one, o] * matrix[*head, other, o])


WHERE = "Where L + λ/2 ‖θ‖² is stationary and λ ≠ 0: b_k = 0"


@proof(
    "G1",
    key=says(WHERE, Derivative(KEY_LOSS, b[e]), "=", DECAY * b[e]),
    value=says(
        "b_v = W_oᵀ b_o",
        Derivative(VALUE_LOSS, BV[e]) - DECAY * BV[e],
        "=",
        over(u, over(o, O[o, u, e] * (Derivative(VALUE_LOSS, BO[o]) - DECAY * BO[o]))),
    ),
    logits=says(
        "[W_q b_q][W_q b_q]ᵀ = W_k W_kᵀ",
        over(u, against(LOGIT_LOSS, Q, u, a, e) - DECAY * squares(Q, u, a, e)),
        "=",
        against(LOGIT_LOSS, K, e, a) - DECAY * squares(K, a, e),
    ),
    output=says(
        "[W_v b_v][W_v b_v]ᵀ = W_oᵀ W_o",
        against(OUTPUT_LOSS, V, a, e) - DECAY * squares(V, a, e),
        "=",
        over(u, by_output(OUTPUT_LOSS, u, a, e) - DECAY * over(o, O[o, u, a] * O[o, u, e])),
    ),
)
def weight_decay_fixes_the_gauge(claim) -> Iterator[Part]:
    yield equal("L has no slope along b_k (K2): where the whole has none, λ b_k = 0.", claim.key)
    yield equal(
        "L's slope along b_v is W_oᵀ times that along b_o (V3): where the whole has none, λ b_v = W_oᵀ λ b_o. The sum "
        "over u is that over the query heads of a group.",
        claim.value,
    )
    yield equal("In the same way W̃_q and W̃_k (G2), and with b_k = 0 the latter is W_k;", claim.logits)
    yield equal("and W̃_v and W_o.", claim.output)
    yield from needed("∂(L + λ/2 ‖θ‖²)/∂b_k at b_k = 0", derivative, SMOOTH)
    yield replace(rounded_weights(), names="∂(L + λ/2 ‖θ‖²)/∂b_k at b_k = 0")
    yield from needed(("λ W_oᵀ b_o where L + λ/2 ‖θ‖² is stationary", "λ b_v"), at_rest, OUTPUT_CASES)


# ---------------------------------------------------------------- numbers of the counterexamples


def generic(like: Any, name: str) -> Any:
    return Matrix(like.rows, like.cols, lambda at, to: Symbol(f"{name}{at}{to}", positive=True))


def slopes(loss: Any, entries: Any, at: dict) -> Any:
    return entries.applyfunc(lambda x: loss.diff(x)).subs(at)


def traded(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """For L = the first output, and tokens that are unit vectors: rows of q and k are columns of W_q and W_k."""
    queries, keys = generic(head.q, "q"), generic(head.k, "k")
    at = dict(zip([*queries, *keys], [*head.q, *head.k], strict=True))
    loss = head.but(q=queries, k=keys).heads()[0]
    return slopes(loss, queries, at).T * head.q, head.k.T * slopes(loss, keys, at)


def traded_out(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """The same for values and W_o."""
    values, output = generic(head.v, "v"), generic(head.w_o, "o")
    at = dict(zip([*values, *output], [*head.v, *head.w_o], strict=True))
    loss = head.but(v=values, w_o=output).output()[0]
    return slopes(loss, values, at).T * head.v, head.w_o.T * slopes(loss, output, at)


def at_rest(head: Head) -> tuple[Expr, Expr]:
    """λ W_oᵀ b_o = −W_oᵀ ∂L/∂b_o, and λ b_v = −∂L/∂b_v."""
    through, direct = gradients(head)
    return -through, -direct


PAIR = Head(q=row(1, 0), k=Matrix([[1, 0], [0, 1]]), v=Matrix([1, 0]))
LOGIT_CASES = {
    "unrotated": ("Two tokens, a quarter turn apart.", PAIR, {"turn": pi / 2}),
    "no-relative-vectors": (
        "E_0 = E_{−1} = (1, 0) multiplies k, and so gives W_k a gradient that W_q does not have.",
        PAIR,
        {"relative_key": {0: row(1, 0), -1: row(1, 0)}},
    ),
    "no-relative-vectors:query": (
        "The same for q.",
        PAIR,
        {"relative_query": {0: row(1, 0), -1: row(0, 1)}},
    ),
    "no-qk-norm": (
        "q = (1, 1) and keys of lengths 1 and 2: no length gets a gradient.",
        PAIR.but(q=row(1, 1), k=Matrix([[1, 0], [0, 2]])),
        {"qk_norm": True},
    ),
    "no-foreign-keys": (
        "A foreign key (2, 0) gives W_q a gradient, and W_k none.",
        PAIR,
        {"foreign": (row(2, 0), row(0))},
    ),
}
WIDE = Head(q=row(0), k=Matrix([0]), v=row(1, 2), w_o=row(1, 1))
VALUE_CASES = {
    "raw-values": ("One value (1, 2), normalised: its length gets no gradient.", WIDE, {"value_norm": True}),
    "ungated": ("A gate for each dim, (2, 1).", WIDE, {"gate": row(2, 1)}),
    "no-foreign-values": (
        "A foreign value (3, 0) gives W_o a gradient, and W_v none.",
        WIDE,
        {"foreign": (row(0), row(3, 0))},
    ),
    "raw-output": ("O normalised before W_o.", WIDE, {"output_norm": True}),
}
