"""V8: a linear read-out cannot tell b_v, and b_q can turn its ranking around.

b_v moves every output by the same vector (V1), so it moves the score that a linear reader gives by the same number,
for every example. What compares examples with each other, a ranking or the area under its ROC curve, does not see it.
"""

from collections.abc import Iterator

from sympy import Expr, Function, Matrix, MatrixBase, Rational, diag, log

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, i, j, mu, o, over, put, r, softmax, table, u, v, x, z
from minibeft.proofs.relation import MISSES, Quantity, says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal, exactly, independent
from minibeft.proofs.value_bias import BO, READS, W

READER, MOVED, OUT = (table(name, real=True) for name in ("r'", "t", "y"))
POSITIVE, NEGATIVE = (table(name, integer=True, nonnegative=True) for name in ("p⁺", "p⁻"))  # 1 for such an example
BEFORE = Function("f", real=True)  # 1 of what is positive, 1/2 of 0, 0 of what is negative
SHARED = over(x, READS[u, x] * b[x, a])  # b_v repeated over its group


def score(bias: Expr | int) -> Expr:
    """Of example i, by the row that is read: r'·y with y = W_o o + b_o. Each has queries and values of its own."""
    weights = softmax(z[u, i, j], mask=mu[u, i, j])
    out = over(u, over(a, W[o, u, a] * over(j, weights * (v[i, u, j, a] + bias)))) + BO[o]
    return over(o, READER[o] * out)


def read(shift: Expr | int) -> Expr:
    """The score of example i, whose output is y_i, and by how much it is moved."""
    return over(o, READER[o] * (OUT[i, o] + shift))


def auc(shift: Expr | int) -> Expr:
    """How many pairs of a positive and a negative example are in order."""
    pairs = POSITIVE[i] * NEGATIVE[r] * BEFORE(read(shift) - put(read(shift), i, r))
    return over(i, over(r, pairs)) / (over(i, POSITIVE[i]) * over(i, NEGATIVE[i]))


@proof(
    "V8",
    shift=says(
        "A linear read-out r of the outputs gives O(b_v) the score of O(0) plus r·W_o b_v",
        score(SHARED),
        "=",
        score(0) + over(o, READER[o] * over(u, over(a, W[o, u, a] * SHARED))),
    ),
    same=says("the same for every example", score(SHARED) - score(0), MISSES, i),
    ranking=says(
        "no ranking of examples depends on b_v",
        read(MOVED[o]) - put(read(MOVED[o]), i, r),
        "=",
        read(0) - put(read(0), i, r),
    ),
    auc=says("no AUC does", auc(MOVED[o]), "=", auc(0)),
    reversed=says(
        "b_q alone can reverse one",
        Quantity("(score A − score B at b_q = 0)·(score A − score B)", lambda: reversal()),
        "=",
        Rational(-1, 9),
    ),
)
def a_linear_reader_cannot_tell_the_value_bias(claim) -> Iterator[Part]:
    yield equal("The output moves by W_o b_v (V2), and the score r'·y by r'·W_o b_v,", claim.shift)
    yield independent("which names no example;", claim.same)
    total = table("ω", positive=True)
    pooled = lambda shift: over(i, total[i] * read(shift)) / over(i, total[i])  # noqa: E731
    yield equal(
        "Scope: nor does it depend on which tokens are pooled, by weights ω that are divided by their sum.",
        pooled(MOVED[o]),
        pooled(0) + over(o, READER[o] * MOVED[o]),
    )
    yield equal("so with t = W_o b_v two examples are as far apart as before,", claim.ranking)
    yield equal(
        "and as many pairs of a positive (p⁺ = 1) and a negative example (p⁻ = 1) are in order: f is 1 of what is "
        "positive, 1/2 of 0, 0 else, or any other function of how far two scores are apart.",
        claim.auc,
    )
    yield exactly(
        "b_q reverses a ranking: two keys ±log(2)/2, of which A has the value (1, 0) and B (0, 1); the query −1 is "
        "turned around by b_q = 2, and A goes from 1/3 to 2/3, B from 2/3 to 1/3.",
        claim.reversed,
        scope="exact numbers",
    )
    yield from needed(("score A − score B at b_v = 0", "score A − score B"), apart, CASES)


def reversal() -> Expr:
    """How far A is ahead of B without b_q, times how far it is with it."""
    keys = Matrix([log(2) / 2, -log(2) / 2])
    ahead = [Head(q=row(-1), k=keys, v=Matrix([1, -1]), b_q=b_q).heads()[0] for b_q in (row(0), row(2))]
    return ahead[0] * ahead[1]


def apart(head: Head) -> tuple[Expr, Expr]:
    """How far the first row, read as example A, is ahead of the second, without and with b_v."""

    def ahead(outputs: MatrixBase) -> Expr:
        return outputs[0] - outputs[1]

    return ahead(head.but(b_v=None).output()), ahead(head.output())


# Two examples: two rows, with W_o = 1.
ALIKE = Head(q=Matrix([0, log(2)]), k=row(1), v=row(1), b_v=row(1), w_o=row(1))
EACH = ALIKE.but(k=Matrix([0, 0]), v=Matrix([1, -2]), sees=Matrix([[1, 0], [0, 1]]), b_v=row(3))  # A sees 1, B sees −2
CASES = {
    "no-sink": ("One key with logits 0 and log 2, and a sink that takes 1/2 and 1/3.", ALIKE, {"sink": 0}),
    "rows-sum-to-one": ("One key, kept by dropout in the first row alone.", ALIKE, {"dropout": Matrix([2, 0])}),
    "rows-sum-to-one:sigmoid": ("One key, and sigmoids of 0 and log 2.", ALIKE, {"weighting": "sigmoid"}),
    "visible-key": ("The second row sees no key.", ALIKE, {"sees": Matrix([1, 0])}),
    "raw-values": ("Values 1 and −2, normalised: 1 and −1, and with b_v = 3 both 1.", EACH, {"value_norm": True}),
    "ungated": ("A gate of 1 in the first row and of 2 in the second.", ALIKE, {"gate": diag(1, 2)}),
    "no-foreign-values": (
        "One key with logits 0 and log 2, and a foreign one with value 0.",
        ALIKE,
        {"foreign": (row(0), row(0))},
    ),
    "raw-output": ("Outputs 1 and −2, normalised before W_o.", EACH, {"output_norm": True}),
}
