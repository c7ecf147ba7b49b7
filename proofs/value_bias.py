"""V1 to V4 and V6: the value bias is a shift.

An output row is a weighted mean of value rows. Add one vector to all the values and the mean moves by that vector,
whatever the weights are, as long as they sum to one. Everything else here follows from that sentence: its derivative,
its form after W_o, and the number of dimensions that b_v reaches.

Where heads share values (GQA), E_ux = 1 says that query head u reads key-value head x; head u then has Σ_x E_ux b_x.
"""

from collections.abc import Iterator
from itertools import combinations
from random import Random

from sympy import (
    Derivative,
    Expr,
    KroneckerDelta,
    Matrix,
    MatrixBase,
    Min,
    Rational,
    Symbol,
    diff,
    eye,
    kronecker_product,
    symbols,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, e, f, i, j, l, mu, o, over, softmax, table, u, v, w, x, z
from minibeft.proofs.relation import MISSES, Quantity, says
from minibeft.proofs.statement import PROVED, Counterexample, Part, needed, proof
from minibeft.proofs.steps import at_sizes, equal, independent

P = softmax(z[i, j])
PLAIN = over(j, P * v[j, a])  # O(0)
W, BO, T = (table(name, real=True) for name in ("W", "b°", "t"))
READS = table("E", integer=True, nonnegative=True)


SHIFT = "O(0) + 1 b_vᵀ", "O(b_v)"
FOLD = "output(0, b_o + W_o b_v)", "output(b_v, b_o)"
SHIFTED = over(j, P * (v[j, a] + b[a]))  # O(b_v)


@proof(
    "V1",
    total=says("", over(j, P), "=", 1),
    output=says("O(b_v) = O(0) + 1 b_vᵀ", SHIFTED, "=", PLAIN + b[a]),
    same=says("the same vector for every token, whatever it attends to", SHIFTED - PLAIN, MISSES, i),
)
def value_bias_is_a_shift(claim) -> Iterator[Part]:
    yield equal("Rows of P sum to one, whatever the mask: μ_ij = exp(M_ij), as long as it shows a key.", claim.total)
    weight = table("ω", positive=True)
    normed = weight[i, j] / over(l, weight[i, l])
    yield equal(
        "Scope: nothing was said about the logits, so rotary, QK-norm, soft-capping and ALiBi do no harm; nor does any "
        "other weighting ω that is divided by its sum (linear attention).",
        over(j, normed * (v[j, a] + b[a])),
        over(j, normed * v[j, a]) + b[a],
    )
    yield equal("So b_v comes out of the sum as it went in,", claim.output)
    yield independent("and what it adds names no token.", claim.same)
    yield from needed(SHIFT, shifted, CASES)


def heads_output(bias: Expr | int, output_bias: Expr | int) -> Expr:
    """Entry (i, o) of O W_oᵀ + 1 b_oᵀ with h heads, `bias` being what head u adds to its values."""
    weights = softmax(z[u, i, j], mask=mu[u, i, j])
    return over(u, over(a, W[o, u, a] * over(j, weights * (v[u, j, a] + bias)))) + output_bias


SHARED = over(x, READS[u, x] * b[x, a])  # b_v repeated over its group


FOLDED = BO[o] + over(u, over(a, W[o, u, a] * SHARED))


@proof(
    "V2",
    one=says("", heads_output(b[u, a], BO[o]), "=", heads_output(0, BO[o] + over(u, over(a, W[o, u, a] * b[u, a])))),
    folded=says(
        "b_o' = b_o + W_o b_v and no b_v give the same output",
        heads_output(SHARED, BO[o]),
        "=",
        heads_output(0, FOLDED),
    ),
)
def value_bias_folds(claim) -> Iterator[Part]:
    yield equal(
        "Every head is shifted by its b_v (V1); W_o is linear, so the output is shifted by W_o b_v, as by b_o.",
        claim.one,
    )
    yield equal("GQA: the same with b_v repeated over its group.", claim.folded)
    yield from needed(FOLD, folded, OUTPUT_CASES)


GRAD, BACK = table("G", real=True), table("H", real=True)  # ∂L/∂O and ∂L/∂output


def through_o(weights: Expr) -> Expr:
    """∂L/∂b_v of any loss with ∂L/∂O = G, in the attention that has these weights."""
    loss = over(i, over(a, GRAD[i, a] * over(j, weights * (v[j, a] + b[a]))))
    return Derivative(loss, b[e])


def through_output(entry: Expr) -> Expr:
    """The derivative by b_v or b_o of any loss with ∂L/∂(O W_oᵀ + b_o) = H."""
    return Derivative(over(i, over(f, BACK[i, f] * (over(a, W[f, a] * SHIFTED) + BO[f]))), entry)


BOTH = "∂L/∂b_v = Σ_i ∂L/∂O_i = W_oᵀ ∂L/∂b_o"
GROUPS = over(u, over(i, over(a, GRAD[u, i, a] * (over(j, P * v[j, a]) + SHARED))))  # a loss over all query heads


@proof(
    "V3",
    each=says("", Derivative(SHIFTED, b[e]), "=", KroneckerDelta(a, e)),
    gradient=says(BOTH, through_o(P), "=", over(i, GRAD[i, e])),
    output=says("", through_output(BO[o]), "=", over(i, BACK[i, o])),
    through=says(BOTH, through_output(b[e]), "=", over(o, W[o, e] * through_output(BO[o]))),
    groups=says("", Derivative(GROUPS, b[w, e]), "=", over(u, READS[u, w] * over(i, GRAD[u, i, e]))),
    attention=says(
        "no backward pass through the attention is needed",
        through_o(P),
        "=",
        through_o(softmax(table("z'", real=True)[i, j], mask=table("μ'", nonnegative=True)[i, j])),
    ),
)
def gradient_of_the_value_bias(claim) -> Iterator[Part]:
    yield equal("Every output row moves with b_v one to one.", claim.each)
    yield equal("With G = ∂L/∂O: a sum over tokens, without the attention weights.", claim.gradient)
    yield equal("So it is the same in every attention.", claim.attention)
    yield equal("GQA: key-value head x′ gets the sum over the query heads that read it.", claim.groups)
    yield equal("With H = ∂L/∂(O W_oᵀ + b_o): b_o gets Σ_i H_i,", claim.output)
    yield equal("and b_v gets W_oᵀ times that.", claim.through)
    yield from needed(("W_oᵀ ∂L/∂b_o", "∂L/∂b_v"), gradients, OUTPUT_CASES)


Y = table("y", real=True)
KEPT = W[o, a] - Y[o] * over(f, Y[f] * W[f, a]) / over(f, Y[f] ** 2)  # any matrix with yᵀW = 0 is of this form
REACHES, IFF = "O reaches exactly O(0) + 1·ℝᵈ", "tuning b_v and tuning b_o reach the same functions iff rank(W_o E) = C"
TO = over(j, P * (v[j, a] + T[a]))


def adjugate(size: int) -> MatrixBase:
    some = Matrix(size, size, lambda at, to: Symbol(f"x{at}{to}"))
    return some * some.adjugate()


def determinant(size: int) -> MatrixBase:
    return Matrix(size, size, lambda at, to: Symbol(f"x{at}{to}")).det() * eye(size)


def generic(rows: int, columns: int) -> MatrixBase:
    return Matrix(rows, columns, lambda at, to: Symbol(f"x{at}{to}"))


def minors(rows: int, columns: int) -> Expr:
    return sum(generic(rows, columns)[:, list(chosen)].det() ** 2 for chosen in combinations(range(columns), rows))


@proof(
    "V4",
    output=says(REACHES, TO, "=", PLAIN + T[a]),
    once=says(REACHES, TO - SHIFTED, "=", T[a] - b[a]),
    gram=says(
        IFF,
        Quantity("det(W Wᵀ)", lambda rows, columns: (generic(rows, columns) * generic(rows, columns).T).det()),
        "=",
        Quantity("Σ (C×C minors of W)²", minors),
    ),
    onto=says(IFF, Quantity("A adj(A)", adjugate), "=", Quantity("det(A)·1", determinant)),
    left=says(IFF, over(o, Y[o] * KEPT), "=", 0),
    still=says(IFF, over(o, Y[o] * over(a, KEPT * b[a])), "=", 0),
    moves=says(
        IFF,
        over(o, Y[o] * heads_output(0, BO[o] + Y[o])),
        "=",
        over(o, Y[o] * heads_output(0, BO[o])) + over(o, Y[o] ** 2),
    ),
)
def reach_of_the_value_bias(claim) -> Iterator[Part]:
    yield equal("Every target O(0) + 1 tᵀ is reached, by b_v = t: unbounded, of full dimension.", claim.output)
    yield equal("And by no other b_v.", claim.once)
    yield at_sizes(
        "If rank W_o = C, then det W_o W_oᵀ, the sum of the squared C×C minors of W_o, is not 0;",
        claim.gram,
        3,
        "C HD",
        lambda rows, columns: rows <= columns,
        PROVED,
    )
    yield at_sizes(
        "so W_o W_oᵀ can be inverted, and W_o maps b_v = W_oᵀ(W_o W_oᵀ)⁻¹ t to t, for any t.",
        claim.onto,
        3,
        "C",
        level=PROVED,
    )
    yield equal("If rank W_o < C there is a direction y that W_o never takes: yᵀ W_o = 0;", claim.left)
    yield equal("b_v moves the output nowhere along it,", claim.still)
    yield equal("while b_o = y does, by ‖y‖².", claim.moves)
    yield from needed(("output(b_o + t)", "output(b_v = W_o⁺t)"), folded, OUTPUT_CASES)
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


def distance(w_o: MatrixBase, target: MatrixBase) -> Expr:
    """‖W b − t‖ at the best b."""
    best = (w_o.T * w_o).inv() * w_o.T * target
    return (w_o * best - target).norm()


def reaching(c: int, group: int, g: int, d: int, rank: int) -> Iterator[MatrixBase]:
    """W_o E for some W_o of this rank: products of random matrices, and one that reads the first inputs alone."""
    random = Random(0)
    repeat = kronecker_product(eye(g), Matrix([1] * group), eye(d))
    for _ in range(2):
        left, right = (Matrix(*shape, lambda *_: random.randint(1, 99)) for shape in ((c, rank), (rank, g * group * d)))
        yield left * right * repeat
    yield (
        Matrix(c, rank, lambda at, to: int(at == to))
        * Matrix(rank, g * group * d, lambda at, to: int(at == to))
        * repeat
    )


SIZES = symbols("C H/G G D ρ")
REACHED = Min(SIZES[0], SIZES[4], SIZES[2] * SIZES[3])  # min(C, rank W_o, G·D)


@proof(
    "V6",
    moved=says("", heads_output(SHARED, BO[o]) - heads_output(0, BO[o]), "=", over(u, over(a, W[o, u, a] * SHARED))),
    dimension=says(
        "The outputs b_v reaches have dimension rank(W_o E) ≤ min(C, rank W_o, G·D), E repeating heads over groups",
        Quantity("largest rank(W E) of a W of rank ρ", lambda *at: max(x.rank() for x in reaching(*at))),
        "=",
        REACHED,
    ),
    unseen=says(
        "b_v is identifiable iff W_o E has rank G·D",
        Quantity("dimension of the x with W E x = 0", lambda *at: min(len(x.nullspace()) for x in reaching(*at))),
        "=",
        SIZES[2] * SIZES[3] - REACHED,
    ),
)
def what_the_value_bias_cannot_reach(claim) -> Iterator[Part]:
    yield equal(
        "b_v adds W_o E b_v to the output, so it reaches the column space of W_o E and nothing else (V2).", claim.moved
    )
    possible = "C H/G G D ρ", lambda c, group, g, d, rank: group * g * d <= 12 and rank <= min(c, group * g * d)
    yield at_sizes(
        "Its dimension is rank(W_o E) ≤ min(C, rank W_o, G·D), attained for every rank ρ of W_o;",
        claim.dimension,
        3,
        *possible,
    )
    yield at_sizes("b_v + x does the same for each of the G·D − rank null directions x.", claim.unseen, 3, *possible)
    yield from needed(("output(0) + W_o E b_v", "output(b_v)"), folded, OUTPUT_CASES)


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


def shifted(head: Head) -> tuple[MatrixBase, MatrixBase]:
    return head.rows(head.but(b_v=None).heads(), head.b_v), head.heads()


def folded(head: Head) -> tuple[MatrixBase, MatrixBase]:
    return head.but(b_v=None, b_o=head.b_o + head.b_v * head.w_o.T).output(), head.output()


def gradients(head: Head) -> tuple[Expr, Expr]:
    """For L = the sum of all outputs and one dim."""
    x, y = symbols("x y", positive=True)
    loss = sum(head.but(b_v=row(x), b_o=row(y)).output())
    return head.w_o[0] * diff(loss, y), diff(loss, x)
