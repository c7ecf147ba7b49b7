"""V1 to V4 and V6: the value bias is a shift.

An output row is a weighted mean of value rows. Add one vector to all the values and the mean moves by that vector:
whatever the weights are, as long as they sum to one. Everything else here is that sentence, differentiated, pushed
through W_o, and counted.

Where heads share values (GQA), E_ux = 1 says that query head u reads key-value head x; head u then has Σ_x E_ux b_x.
"""

from collections.abc import Iterator
from itertools import combinations
from random import Random

from sympy import (
    Expr,
    KroneckerDelta,
    Matrix,
    MatrixBase,
    Rational,
    Symbol,
    diff,
    expand,
    eye,
    kronecker_product,
    symbols,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, e, f, i, j, l, mu, o, over, softmax, table, u, v, w, x, z
from minibeft.proofs.statement import PROVED, Counterexample, Part, Relation, Step, needed, proof
from minibeft.proofs.steps import at_sizes, equal

P = softmax(z[i, j])
PLAIN = over(j, P * v[j, a])  # O(0)
W, BO, T = (table(name, real=True) for name in ("W", "b°", "t"))
READS = table("E", integer=True, nonnegative=True)


@proof("V1", output=PLAIN + b[a])
def value_bias_is_a_shift(claim) -> Iterator[Part]:
    yield equal("Rows of P sum to one, whatever the mask: μ_ij = exp(M_ij).", over(j, P), 1)
    yield equal("So b_v comes out of the sum as it went in.", over(j, P * (v[j, a] + b[a])), claim.output)
    weight = table("ω", positive=True)
    normed = weight[i, j] / over(l, weight[i, l])
    yield equal(
        "Scope: nothing was said about the logits, so rotary, QK-norm, soft-capping and ALiBi do no harm; nor does any "
        "other weighting ω that is divided by its sum (linear attention).",
        over(j, normed * (v[j, a] + b[a])),
        over(j, normed * v[j, a]) + b[a],
    )
    yield from needed("O(b_v) − O(0) − 1 b_vᵀ", shift_residual, CASES)


def heads_output(bias: Expr | int, output_bias: Expr | int) -> Expr:
    """Entry (i, o) of O W_oᵀ + 1 b_oᵀ with h heads, `bias` being what head u adds to its values."""
    weights = softmax(z[u, i, j], mask=mu[u, i, j])
    return over(u, over(a, W[o, u, a] * over(j, weights * (v[u, j, a] + bias)))) + output_bias


SHARED = over(x, READS[u, x] * b[x, a])  # b_v repeated over its group


@proof("V2", folded=BO[o] + over(u, over(a, W[o, u, a] * SHARED)))
def value_bias_folds(claim) -> Iterator[Part]:
    yield equal(
        "Every head is shifted by its b_v (V1); W_o is linear, so the output is shifted by W_o b_v, as by b_o.",
        heads_output(b[u, a], BO[o]),
        heads_output(0, BO[o] + over(u, over(a, W[o, u, a] * b[u, a]))),
    )
    yield equal(
        "GQA: the same with b_v repeated over its group.", heads_output(SHARED, BO[o]), heads_output(0, claim.folded)
    )
    yield from needed("output(b_v, b_o) − output(0, b_o + W_o b_v)", fold_residual, OUTPUT_CASES)


@proof("V3", gradient=over(i, table("G", real=True)[i, e]), through=lambda back: over(o, W[o, e] * over(i, back)))
def gradient_of_the_value_bias(claim) -> Iterator[Part]:
    grad, back = table("G", real=True), table("H", real=True)  # ∂L/∂O and ∂L/∂output
    yield equal(
        "Every output row moves with b_v one to one.", diff(over(j, P * (v[j, a] + b[a])), b[e]), KroneckerDelta(a, e)
    )
    yield equal(
        "Chain rule with G = ∂L/∂O: a sum over tokens, without the attention weights.",
        over(i, over(a, grad[i, a] * diff(over(j, P * (v[j, a] + b[a])), b[e]))),
        claim.gradient,
    )
    output = over(a, W[o, a] * over(j, P * (v[j, a] + b[a]))) + BO[o]
    yield equal(
        "With H = ∂L/∂(O W_oᵀ + b_o): b_o gets Σ_i H_i,",
        over(i, over(o, back[i, o] * diff(output, BO[f]))),
        over(i, back[i, f]),
    )
    yield equal(
        "and b_v gets W_oᵀ times that.",
        over(i, over(o, back[i, o] * diff(output, b[e]))),
        claim.through(back[i, o]),
    )
    heads = over(j, P * v[j, a]) + SHARED
    yield equal(
        "GQA: key-value head x′ gets the sum over the query heads that read it.",
        over(u, over(i, over(a, grad[u, i, a] * diff(heads, b[w, e])))),
        over(u, READS[u, w] * over(i, grad[u, i, e])),
    )
    yield from needed("∂L/∂b_v − W_oᵀ ∂L/∂b_o", gradient_residual, OUTPUT_CASES)


@proof("V4", output=PLAIN + T[a], left=0)
def reach_of_the_value_bias(claim) -> Iterator[Part]:
    yield equal(
        "Every target O(0) + 1 tᵀ is reached, by b_v = t: unbounded, of full dimension.",
        over(j, P * (v[j, a] + T[a])),
        claim.output,
    )
    other = over(j, P * (v[j, a] + T[a])) - over(j, P * (v[j, a] + b[a]))
    yield equal("And by no other b_v.", other, T[a] - b[a])
    yield from onto()
    y = table("y", real=True)
    kept = W[o, a] - y[o] * over(f, y[f] * W[f, a]) / over(f, y[f] ** 2)  # any matrix with yᵀW = 0 is of this form
    yield equal(
        "If rank W_o < C there is a direction y that W_o never takes: yᵀ W_o = 0;", over(o, y[o] * kept), claim.left
    )
    yield equal("b_v moves the output nowhere along it,", over(o, y[o] * over(a, kept * b[a])), claim.left)
    yield equal("while b_o = y does, by ‖y‖².", over(o, y[o] * y[o]), over(o, y[o] ** 2))
    yield from needed("output(b_v = W_o⁺t) − output(b_o + t)", fold_residual, OUTPUT_CASES)
    both, target = Matrix([[1, 0], [0, 1]]), Matrix([0, 1])
    yield Counterexample(
        "full-rank-output",
        "One head of one dim in a model of two: W_o = (1, 0)ᵀ, and b_o = (0, 1)ᵀ is out of reach.",
        "distance of b_o from the reach of b_v",
        lambda: distance(both, target),
        lambda: distance(both[:, :1], target),
    )
    yield Counterexample(
        "full-rank-output",
        "W_o of full rank, but two query heads share one value head: b_v moves both dims alike.",
        "distance of b_o from the reach of b_v",
        lambda: distance(both, target),
        lambda: distance(both * Matrix([1, 1]), target),
    )


def onto() -> Iterator[Step]:
    """W_o of rank C is onto: b_v = W_oᵀ(W_o W_oᵀ)⁻¹ t does what b_o + t does."""

    def adjugate(size: int) -> bool:
        some = Matrix(size, size, lambda at, to: Symbol(f"x{at}{to}"))
        return (some * some.adjugate() - some.det() * eye(size)).expand().is_zero_matrix

    def cauchy_binet(rows: int, columns: int) -> bool:
        some = Matrix(rows, columns, lambda at, to: Symbol(f"x{at}{to}"))
        minors = [some[:, list(chosen)].det() for chosen in combinations(range(columns), rows)]
        return expand((some * some.T).det() - sum(minor**2 for minor in minors)) == 0

    yield at_sizes(
        "If rank W_o = C, then det W_o W_oᵀ, the sum of the squared C×C minors of W_o, is not 0;",
        [Relation("det(W Wᵀ)", "=", "Σ (C×C minors of W)²")],
        3,
        "C HD",
        cauchy_binet,
        lambda rows, columns: rows <= columns,
        PROVED,
    )
    yield at_sizes(
        "so W_o W_oᵀ can be inverted, and W_o maps b_v = W_oᵀ(W_o W_oᵀ)⁻¹ t to t, for any t.",
        [Relation("A adj(A)", "=", "det(A)·1")],
        3,
        "C",
        adjugate,
        level=PROVED,
    )


def distance(w_o: MatrixBase, target: MatrixBase) -> Expr:
    """‖W b − t‖ at the best b."""
    best = (w_o.T * w_o).inv() * w_o.T * target
    return (w_o * best - target).norm()


@proof("V6", bound=lambda c, rank, shared: min(c, rank, shared))
def what_the_value_bias_cannot_reach(claim) -> Iterator[Part]:
    yield equal(
        "b_v adds W_o E b_v to the output, so it reaches the column space of W_o E and nothing else (V2).",
        heads_output(SHARED, BO[o]) - heads_output(0, BO[o]),
        over(u, over(a, W[o, u, a] * SHARED)),
    )
    random = Random(0)

    def ranks(c: int, group: int, g: int, d: int) -> bool:
        repeat = kronecker_product(eye(g), Matrix([1] * group), eye(d))
        generic = Matrix(c, group * g * d, lambda *_: random.randint(1, 99))
        deficient = Matrix([list(generic.row(0))] * c)
        within = all((w_o * repeat).rank() <= claim.bound(c, w_o.rank(), g * d) for w_o in (generic, deficient))
        attained = (generic * repeat).rank() == claim.bound(c, min(generic.shape), g * d)
        unseen = (generic * repeat).nullspace()
        return within and attained and len(unseen) == g * d - (generic * repeat).rank()

    yield at_sizes(
        "Its dimension is rank(W_o E) ≤ min(C, rank W_o, G·D), attained by a generic W_o; b_v + x does the same for "
        "each of the G·D − rank null directions x.",
        [Relation("rank(W E)", "≤", "min(C, rank W, G·D)")],
        3,
        "C H/G G D",
        ranks,
        lambda c, group, g, d: group * g * d <= 12,
    )
    yield from needed("output(b_v) − output(0) − W_o E b_v", fold_residual, OUTPUT_CASES)


ONE = Head(q=row(1), k=row(0), v=row(1), b_v=row(1))
CASES = {
    "no-sink": ("One key, and a sink that takes half of the row.", ONE, {"sink": 0}),
    "rows-sum-to-one": ("One key, and dropout that keeps it at twice its weight.", ONE, {"dropout": row(2)}),
    "rows-sum-to-one:difference": ("One key, and a λ-difference with λ = 1/2.", ONE, {"lam": Rational(1, 2)}),
    "rows-sum-to-one:sigmoid": ("One key with logit 0: a sigmoid gives it 1/2.", ONE, {"weighting": "sigmoid"}),
    "visible-key": ("A row that sees no key: its output stays 0.", ONE, {"sees": row(0)}),
    "raw-values": ("One value 1, normalised: 1 with and without b_v = 1.", ONE, {"value_norm": True}),
    "ungated": ("One key, and a gate of 2.", ONE, {"gate": 2}),
    "no-foreign-values": ("One key, and a foreign one as strong, with value 0.", ONE, {"foreign": (row(0), row(0))}),
}
WITH_OUTPUT = {"w_o": row(3), "b_o": row(0)}
OUTPUT_CASES = {key: (text, head.but(**WITH_OUTPUT), change) for key, (text, head, change) in CASES.items()} | {
    "raw-output": (
        "One value 1, and a norm before W_o, which maps 1 and 2 to 1.",
        ONE.but(**WITH_OUTPUT),
        {"output_norm": True},
    )
}


def shift_residual(head: Head) -> MatrixBase:
    return head.heads() - head.rows(head.but(b_v=None).heads(), head.b_v)


def fold_residual(head: Head) -> MatrixBase:
    return head.output() - head.but(b_v=None, b_o=head.b_o + head.b_v * head.w_o.T).output()


def gradient_residual(head: Head) -> Expr:
    """For L = the sum of all outputs and one dim."""
    x, y = symbols("x y", positive=True)
    loss = sum(head.but(b_v=row(x), b_o=row(y)).output())
    return diff(loss, x) - head.w_o[0] * diff(loss, y)
