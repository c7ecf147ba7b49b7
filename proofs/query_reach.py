"""Q11: which mean keys b_q reaches, and how often each.

Σ_j P_ij k_j is the slope of ln Σ_j e^{z_ij + s b·k_j} in b, up to the factor s. The slopes of that convex function are
the relative interior of the keys' convex hull, and it bends in every direction that is not null: the same map from
natural parameters to means as in every exponential family.
"""

from collections.abc import Iterator
from random import Random

import mpmath
from sympy import Derivative, Expr, Integer, Matrix, MatrixBase, Rational, S, Symbol, exp, log, symbols

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, beta, e, i, j, k, l, mu, over, put, s, softmax, table, z
from minibeft.proofs.query_bias import CONSTANT, DISTANCE, NULL_CASES, TURN
from minibeft.proofs.relation import Quantity, says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import at_sizes, bounded, equal, positive

TARGET, OMEGA = table("x", real=True), table("ω", positive=True)
P = softmax(z[i, j])
LIFT = over(a, b[a] * k[j, a])  # b·k_j
TOTAL = over(j, mu[i, j] * exp(z[i, j] + s * LIFT))
CUMULANT = log(TOTAL) - s * over(a, b[a] * TARGET[a])  # F(b)
MEAN = over(j, softmax(z[i, j] + s * LIFT) * k[j, e])
SHARE = OMEGA[j] / over(l, OMEGA[l])
INSIDE = over(l, OMEGA[l] * k[l, a]) / over(l, OMEGA[l])  # x = Σ_j w_j k_j with w > 0
T = Symbol("t", real=True)
LINE = softmax(z[i, j] + T * beta[j])  # P on the way from one b_q to another, β_j = s (b − b')·k_j
AVERAGE = over(l, put(LINE, j, l) * beta[l])
SPREAD = over(j, LINE * (beta[j] - AVERAGE) ** 2)
REACH = "The mean keys Σ_j P_ij k_j that b_q gives one query are exactly the relative interior of conv{k_j}"
ONCE = "Each belongs to one P"
GAIN = softmax(z[i, j] + beta[j]) / P
KEYS, DIMS = symbols("m d")


def missed(keys: int, dims: int) -> Expr:
    """How far the mean key stays from a point inside, where Newton's method minimises F; 0 for less than 10⁻⁹."""
    random = Random(f"{keys} {dims}")
    points = [mpmath.matrix([mpmath.mpf(random.randint(-9, 9)) / 4 for _ in range(dims)]) for _ in range(keys)]
    logits, inside = ([mpmath.mpf(random.randint(1, 9)) / 4 for _ in range(keys)] for _ in range(2))
    target = sum((w * x for w, x in zip(inside, points, strict=True)), mpmath.zeros(dims, 1)) / mpmath.fsum(inside)
    from_target = [x - target for x in points]

    def at(b: mpmath.matrix) -> tuple[mpmath.mpf, mpmath.matrix, mpmath.matrix]:
        """F, its slope and how it bends."""
        terms = [mpmath.exp(z + (b.T * x)[0]) for z, x in zip(logits, from_target, strict=True)]
        weights = [term / mpmath.fsum(terms) for term in terms]
        slope = sum((w * x for w, x in zip(weights, from_target, strict=True)), mpmath.zeros(dims, 1))
        bend = mpmath.eye(dims) * mpmath.mpf(10) ** -12
        for w, x in zip(weights, from_target, strict=True):
            bend += w * (x - slope) * (x - slope).T
        return mpmath.log(mpmath.fsum(terms)), slope, bend

    b = mpmath.zeros(dims, 1)
    for _ in range(60):
        height, slope, bend = at(b)
        step, length = mpmath.lu_solve(bend, slope), mpmath.mpf(1)
        while at(b - length * step)[0] > height and length > 1e-9:
            length /= 2
        b -= length * step
    left = mpmath.norm(at(b)[1])
    return Integer(0) if left < 1e-9 else Rational(str(left))


@proof(
    "Q11",
    total=says(REACH, over(j, P), "=", 1),
    slope=says(REACH, Derivative(CUMULANT, b[e]), "=", s * (MEAN - TARGET[e])),
    balance=says(REACH, over(j, SHARE * over(a, b[a] * (k[j, a] - INSIDE))), "=", 0),
    reached=says(REACH, Quantity("distance of Newton's mean key from a point inside", missed), "=", 0),
    bends=says(ONCE, Derivative(over(j, LINE * beta[j]), T), "=", SPREAD),
    sign=says(ONCE, 0, "≤", SPREAD),
    null=says("so to one b_q up to null directions (Q5)", GAIN / put(GAIN, j, l), "=", exp(beta[j] - beta[l])),
)
def what_the_query_bias_reaches(claim) -> Iterator[Part]:
    yield equal("The mean key is a mean of the keys,", claim.total)
    yield positive(
        "and every key in sight has its part in it: it lies in the relative interior.", softmax(z[i, j], mask=S.One)
    )
    yield equal(
        "Conversely, take x in the relative interior, and F(b) = ln Σ_j μ_ij e^{z_ij + s b·k_j} − s b·x. Where F is "
        "least its slope is 0, and the mean key is x.",
        claim.slope,
    )
    yield equal(
        "F has a least value: x = Σ_j w_j k_j with w > 0, so in each direction b that is not null some key has "
        "b·(k_j − x) > 0, as their mean is 0; so F grows without limit, and a continuous function that does in every "
        "direction of a space has a minimum there (Weierstrass).",
        claim.balance,
    )
    yield at_sizes("Tried: Newton's method finds it, for random keys, logits and x.", claim.reached, 4, "m d")
    yield equal(
        "Two b_q: on the straight way from one to the other, β_j = s (b − b')·k_j, the mean of β has the slope",
        claim.bends,
    )
    yield bounded(
        "which is 0 only where β is the same for all keys in sight, and then P stays. So two mean keys are equal only "
        "if P is,",
        claim.sign,
        slack=SPREAD,
    )
    yield equal("and if P is, β_j − β_l is 0: b − b' is a null direction.", claim.null)
    yield from needed(("mean key", "mean key after a null b_q"), means, CASES)


def means(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """The first query's mean key, of the keys as they are projected, without and with b_q."""
    weights = (head.but(b_q=None).weights(), head.weights())
    first, second = (x.row(0)[:, : head.k.rows] * head.k for x in weights)
    return first, second


APART = Head(q=row(0, 0), k=Matrix([[1, 1], [1, 0]]), v=Matrix([1, 0]), b_q=row(1, 0))  # b_q is null
CASES = {
    "unrotated": ("b_q at a right angle to the difference of the keys, which are a quarter turn apart.", APART, TURN),
    "no-relative-vectors": (
        "The same b_q, and a vector of the distance that multiplies q + b_q.",
        APART,
        DISTANCE,
    ),
    "no-qk-norm": NULL_CASES["no-qk-norm"],
    "no-softcap": CONSTANT["no-softcap"],
    "softmax": CONSTANT["softmax"],
    "no-sink": CONSTANT["no-sink"],
}
