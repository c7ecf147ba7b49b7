"""K2 and K3: the key bias gets no gradient, and so training it is training without it.

The gradient of any loss with respect to the logits of a row sums to zero, because adding the same number to all of
them changes nothing. And b_k does nothing else than add the same number to all of them.
"""

from collections.abc import Iterator

from sympy import (
    Derivative,
    Expr,
    Function,
    Integer,
    KroneckerDelta,
    Matrix,
    Max,
    Rational,
    Subs,
    Symbol,
    sign,
    simplify,
    sqrt,
    symbols,
)

from minibeft.proofs.head import Head, fl
from minibeft.proofs.key_bias import CASES, logit, row
from minibeft.proofs.notation import G, a, b, e, i, j, k, l, over, put, q, s, softmax, table, v, z
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Counterexample, Part, needed, proof
from minibeft.proofs.steps import equal, exactly

DELTA = KroneckerDelta(l, j)
P_J = softmax(z[i, j])
P_L = softmax(z[i, l], l)
SMOOTH = {key: case for key, case in CASES.items() if key != "exact"}  # rounding has no derivative


def key_gradient(entry: Symbol) -> Expr:
    """∂L/∂b_k of any loss L with ∂L/∂P_il = G_il, before it is simplified to zero."""
    return Derivative(over(i, over(l, G[i, l] * softmax(put(logit(bias=True), j, l), l))), b[entry])


BIAS, FIRST, SECOND, SLOPE_B = symbols("b m v g", real=True)  # b_k's entry, Adam's moments of it, its gradient
RATES = dict(zip(("lr", "b1", "b2", "eps"), symbols("η β₁ β₂ ε", positive=True), strict=True))
STEP = Symbol("t", integer=True, positive=True)


USUAL = Rational(9, 10), Rational(999, 1000)  # β₁ and β₂


def adam(bias, first, second, gradient, step=1, *, lr, b1=USUAL[0], b2=USUAL[1], eps=1, decay=0):
    """One step of Adam; of AdamW with decay. Returns the bias and both moments."""
    first = b1 * first + (1 - b1) * gradient
    second = b2 * second + (1 - b2) * gradient**2
    update = first / (1 - b1**step) / (sqrt(second / (1 - b2**step)) + eps)
    return bias - lr * decay * bias - lr * update, first, second


def at_rest(which: int) -> Expr:
    """The bias, or its first or second moment, after one step of Adam from moments 0 with the gradient 0."""
    return Subs(adam(BIAS, FIRST, SECOND, SLOPE_B, STEP, **RATES)[which], (FIRST, SECOND, SLOPE_B), (0, 0, 0))


RESTS = "Adam leaves b_k where it was"


@proof(
    "K2",
    jacobian=says("", Derivative(P_L, z[i, j]), "=", P_L * (DELTA - P_J)),
    row_sum=says("Σ_j ∂L/∂z_ij = 0 in every row", over(j, Derivative(over(l, G[i, l] * P_L), z[i, j])), "=", 0),
    gradient=says("∂L/∂b_k = 0 for every loss", key_gradient(e), "=", 0),
    first=says(RESTS, at_rest(1), "=", 0),
    second=says(RESTS, at_rest(2), "=", 0),
    bias=says(RESTS, at_rest(0), "=", BIAS),
)
def key_bias_gets_no_gradient(claim) -> Iterator[Part]:
    yield equal("The derivative of the weight of key l by the logit of key j.", claim.jacobian)
    yield equal("With G_il = ∂L/∂P_il for any loss L, the gradients by the logits of a row sum to zero.", claim.row_sum)
    yield equal("b_k enters the logit of every key j alike, by s q_i.", Derivative(logit(bias=True), b[e]), s * q[i, e])
    yield equal("So ∂L/∂b_k, a sum of those zeros, is zero;", claim.gradient)
    yield equal(
        "and its Fisher information, the mean squared gradient.",
        over(e, key_gradient(e) ** 2),
        0,
        called={key_gradient(e): table("g", real=True)[e]},
    )
    yield exactly("Adam, induction step: from moments 0 and gradient 0 the first moment stays 0,", claim.first)
    yield exactly("the second too,", claim.second)
    yield exactly("and the bias stays where it is.", claim.bias)
    yield from needed("∂O/∂b_k", derivative, SMOOTH)
    yield rounded_weights()
    bias, lr, decay = Integer(1), Rational(1, 10), Rational(1, 10)
    yield Counterexample(
        "no-weight-decay",
        "AdamW at learning rate 1/10 and weight decay 1/10 moves b_k = 1 although its gradient is zero.",
        "b_k after one step − b_k",
        lambda: adam(bias, 0, 0, 0, lr=lr)[0] - bias,
        lambda: adam(bias, 0, 0, 0, lr=lr, decay=decay)[0] - bias,
    )


def derivative(head: Head) -> Matrix:
    """How the output moves as b_k leaves zero in the direction of the head's own b_k."""
    x = Symbol("x", positive=True)
    moved = head.but(b_k=head.b_k * x).heads()
    return moved.diff(x).subs(x, 0)


def rounded_weights() -> Counterexample:
    """Backpropagation through a computed softmax sums P̂_j (G_j − Σ_l P̂_l G_l), which is 0 only if Σ P̂ = 1."""

    def gradient(weights: list[Expr]) -> Expr:
        mean = sum(weights)  # G_j = 1
        return sum(weight * (1 - mean) for weight in weights)

    third = Rational(1, 3)
    return Counterexample(
        "exact",
        "Three equal keys; 1/3 in three binary digits is 5/16, the weights sum to 15/16, and G_j = 1.",
        "∂L/∂b_k",
        lambda: gradient([third] * 3),
        lambda: gradient([fl(third, 3)] * 3),
    )


def output(bias: Expr | int) -> Expr:
    """An entry of O_i at this key bias, with dropout factors D_ij on the weights."""
    weights = softmax(s * over(a, q[i, a] * (k[j, a] + bias)))
    return over(j, table("D", nonnegative=True)[i, j] * weights * v[j, e])


THETA = Symbol("θ", real=True)
ONWARD, SLOPE = Function("U", real=True), Function("ℓ'", real=True)  # the optimiser's step, and ∂L/∂θ; both unknown


MADE = SLOPE(THETA, output(b[a]))  # the head's gradient next to a b_k
PLAIN = SLOPE(THETA, output(0))
NORM = MADE**2 + over(e, key_gradient(e) ** 2)  # the joint norm, squared
NAMES = {
    output(b[a]): Symbol("O(b_k)", real=True),
    output(0): Symbol("O(0)", real=True),
    key_gradient(e): table("g", real=True)[e],
}


@proof(
    "K3",
    shrunk=says("", output(Symbol("ρ", positive=True) * b[a]), "=", output(0)),
    alone=says("without a head nothing moves", output(b[a]), "=", output(0)),
    same=says(
        "Fine-tuning {b_k, head} and {head} follows the same trajectory of the head",
        ONWARD(THETA, MADE, NORM),
        "=",
        ONWARD(THETA, PLAIN, PLAIN**2),
    ),
)
def training_b_k_is_training_without_it(claim) -> Iterator[Part]:
    yield equal(
        "With the same dropout D, the output is the one without b_k (K1): the zero-shot one.",
        claim.alone,
        called={output(0): NAMES[output(0)]},
    )
    yield equal("So the head, whatever it is, gets the same gradient.", MADE, PLAIN, called=NAMES)
    yield equal(
        "b_k, whose gradient is g, adds nothing (K2) to the joint gradient norm, by which gradients are clipped.",
        NORM,
        MADE**2,
        called=NAMES,
    )
    yield equal("Scope: AdamW shrinks b_k to ρ b_k, which the output does not see either.", claim.shrunk)
    yield equal(
        "Induction step: an optimiser U that sees the head, its gradient and the joint norm keeps both heads the same.",
        claim.same,
        called=NAMES,
    )
    yield from needed(("prediction after a step of {head}", "of {b_k, head}"), two_runs, SMOOTH)
    yield Counterexample(
        "exact",
        "Keys 0, 0, 1 in three binary digits: the weights sum to 17/16, so a gradient of noise moves b_k by Adam's 16, "
        "and there 17 = 16.",
        "O after one step, {b_k, head} − {head}",
        lambda: noisy_step(None),
        lambda: noisy_step(3),
    )
    yield Counterexample(
        "no-weight-decay",
        "A penalty in the loss gives b_k the gradient 4, the head has 3: clipped to joint norm 1 it is 3/5, else 1.",
        "step of the head, {b_k, head} − {head}",
        lambda: clipped(Integer(3), Integer(0)) - clipped(Integer(3), Integer(0)),
        lambda: clipped(Integer(3), Integer(4)) - clipped(Integer(3), Integer(0)),
    )
    drops = Matrix([[2, 0]]), Matrix([[0, 2]])
    pair = Head(q=row(1), k=Matrix([0, 0]), v=Matrix([1, 0]), dropout=drops[0])
    yield Counterexample(
        "same-randomness",
        "Two equal keys with values 1 and 0: one run drops the second, the other the first.",
        "O of one run − O of the other",
        lambda: pair.heads() - pair.heads(),
        lambda: pair.heads() - pair.but(dropout=drops[1]).heads(),
    )


def two_runs(head: Head) -> tuple[Expr, Expr]:
    """Prediction θ·O without and with b_k; target 0, half the squared error, steps of 1/2 from θ = 1, b_k = 0."""
    start, rate = head.but(b_k=None).heads()[0], Rational(1, 2)
    theta = 1 - rate * start**2
    moved = -rate * start * simplify(derivative(head)[0])
    return theta * start, theta * head.but(b_k=head.b_k * moved).heads()[0]


def noisy_step(bits: int | None) -> Matrix:
    """One step of Adam with learning rate 16 on b_k, eps negligible: 16 against the sign of the computed gradient."""
    head = Head(q=row(1), k=Matrix([0, 0, 1]), v=Matrix([1, 0, 0]), bits=bits)
    weights = head.weights()
    mean = (weights * head.v)[0]
    gradient = simplify(sum(weights[at] * (head.v[at] - mean) for at in range(3)))
    return head.but(b_k=row(-16 * sign(gradient))).heads() - head.heads()


def clipped(head: Expr, bias: Expr) -> Expr:
    """The head's gradient after clipping the joint norm to 1."""
    return head / Max(1, sqrt(head**2 + bias**2))
