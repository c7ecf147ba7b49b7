"""Q8 and Q9: b_q's gradient is a covariance, and so bounded; what b_q does to P in nats.

Both come from one fact. As b_q grows along a direction, the logarithm of P_j grows by β_j less the mean of β: a mean
under P then changes by its covariance with β. A covariance is at most a quarter of the product of both ranges (Grüss),
a variance a quarter of the range squared. In the formulas f_j and g_j say where in its range, from 0 to 1, a number is.
"""

from collections.abc import Iterator

from sympy import Derivative, Expr, Max, Rational, Subs, Symbol, exp, log, simplify, symbols

from minibeft.proofs.head import Head
from minibeft.proofs.notation import a, b, beta, e, i, j, k, l, over, put, q, s, share, softmax, table, third, v, z
from minibeft.proofs.query_bias import NULL_CASES, shift
from minibeft.proofs.query_bound import CASES, sigmoid
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

WEIGHTS = softmax(s * over(a, (q[i, a] + b[a]) * k[j, a]))
OUT = over(j, WEIGHTS * v[j, e])  # O_ie
CENTRE = over(l, put(WEIGHTS, j, l) * k[l, third])  # k̄_i
MEAN = over(l, put(WEIGHTS, j, l) * v[l, e])
COVARIANCE = s * over(j, WEIGHTS * (v[j, e] - MEAN) * (k[j, third] - CENTRE))
CALLED = {WEIGHTS: table("P", nonnegative=True)[i, j], put(WEIGHTS, j, l): table("P", nonnegative=True)[i, l]}

P = softmax(z[i, j])
F, H = share("f"), share("g")
WIDE, FAR = symbols("V K", positive=True)  # the ranges of e·v and of u·k over the keys in sight: diam V, diam K
TOP, LOW = symbols("x y", real=True)
PUSH, SPENT = table("N", nonnegative=True), share("h")  # ‖∂L/∂O_i‖; how much of its bound a row's part attains


def mean(number: Expr) -> Expr:
    """Under P, over l."""
    return over(l, put(P * number, j, l))


def gruss(x: Expr, y: Expr) -> Expr:
    """1/4 − Cov(x, y), as a sum of what is not negative where x and y lie between 0 and 1."""
    rest = over(j, P * (mean(y) * x * (1 - y) + mean(1 - y) * y * (1 - x)))
    return (Rational(1, 2) - over(j, P * y)) ** 2 + rest


X, Y = TOP + WIDE * F[j], LOW + FAR * H[j]
BOUND = s / 4 * FAR * WIDE
COVARIES = "∂O_i/∂b_q = s Σ_j P_ij (v_j − O_i)(k_j − k̄_i)ᵀ"
NORM = "of norm ≤ (s/4) diam(K) diam(V)"


@proof(
    "Q8",
    slope=says(COVARIES, Derivative(OUT, b[third]), "=", COVARIANCE),
    above=says(NORM, s * over(j, P * (X - mean(X)) * (Y - mean(Y))), "≤", BOUND),
    below=says(NORM, -s * over(j, P * (X - mean(X)) * (Y - mean(Y))), "≤", BOUND),
    attained=says("attained", Subs(Derivative(sigmoid(s * TOP), TOP), TOP, 0), "=", s / 4),
    loss=says(
        "‖∂L/∂b_q‖ ≤ (s/4) diam(K) diam(V) Σ_i ‖∂L/∂O_i‖",
        over(i, PUSH[i] * BOUND * SPENT[i]),
        "≤",
        BOUND * over(i, PUSH[i]),
    ),
)
def gradient_is_a_covariance(claim) -> Iterator[Part]:
    yield equal(
        "P_ij grows by P_ij times s (k_j − k̄_i), k̄_i = Σ_j P_ij k_j; and those sum to zero.", claim.slope, called=CALLED
    )
    slack = s * FAR * WIDE
    yield bounded(
        "A covariance is at most a quarter of both ranges. For unit vectors, w·v_j = x + V f_j and u·k_j = y + K g_j, "
        "V and K being the diameters.",
        claim.above,
        slack=slack * gruss(F[j], H[j]),
    )
    yield bounded("The same for −x, where 1 − f_j stands for f_j.", claim.below, slack=slack * gruss(1 - F[j], H[j]))
    yield exactly("Keys 0 and 1 with values 0 and 1 attain it, where both have the weight 1/2.", claim.attained)
    yield bounded(
        "L's gradient is a sum over rows, each part at most N_i = ‖∂L/∂O_i‖ times that bound.",
        claim.loss,
        slack=BOUND * over(i, PUSH[i] * (1 - SPENT[i])),
    )
    yield from needed(("s Σ_j P_j (v_j − O)(k_j − k̄)·b_q", "∂O/∂b_q·b_q"), slopes, CASES)


def slopes(head: Head) -> tuple[Expr, Expr]:
    """The covariance, and the derivative of the first output, as b_q leaves 0 in the direction of the head's b_q."""
    t = Symbol("t", positive=True)
    still = head.but(b_q=None)
    weights, values, pull = still.weights().row(0), still.values(), still.keys() * head.b_q.T
    mean_value, mean_pull = (weights * values)[0], (weights * pull)[0]
    found = sum(weights[at] * (values[at, 0] - mean_value) * (pull[at] - mean_pull) for at in range(len(weights)))
    return simplify(found), head.but(b_q=head.b_q * t).heads()[0].diff(t).subs(t, 0)


T = Symbol("t", real=True)
TILTED = softmax(z[i, j] + T * beta[j])  # P with the logits moved by tβ
GROWN = over(j, P * exp(T * beta[j]))  # M(t), the mean of e^{tβ} under P
UNDER = over(j, TILTED * beta[j])  # the mean of β under P with tβ
START = over(j, P * beta[j])
AFTER = softmax(z[i, j] + beta[j])
OSC = Symbol("B", positive=True)
NATS = "KL(P(0)‖P(b_q)) and KL(P(b_q)‖P(0)) ≤ osc(β)²/8"
PULLED = LOW + OSC * F[j]


@proof(
    "Q9",
    ratio=says(NATS, P / AFTER, "=", over(l, put(P, j, l) * exp(beta[l])) * exp(-beta[j])),
    back=says(NATS, over(j, AFTER * exp(-beta[j])), "=", 1 / over(j, P * exp(beta[j]))),
    first=says(NATS, Derivative(log(GROWN) - T * START - T**2 * OSC**2 / 8, T), "=", UNDER - START - T * OSC**2 / 4),
    second=says(
        NATS, Derivative(UNDER, T), "=", over(j, TILTED * (beta[j] - over(l, put(TILTED, j, l) * beta[l])) ** 2)
    ),
    variance=says(NATS, over(j, P * (PULLED - mean(PULLED)) ** 2), "≤", OSC**2 / 4),
)
def nats(claim) -> Iterator[Part]:
    yield equal(
        "log P_j/P'_j is log M − β_j, where M = Σ_j P_j e^{β_j}; so KL(P‖P') = log M − Σ_j P_j β_j.", claim.ratio
    )
    yield equal("KL(P'‖P) is the same with P' for P and −β for β, where M becomes 1/M.", claim.back)
    yield equal(
        "With tβ for β, KL less t² B²/8 is 0 at t = 0. So is its derivative, in which the mean of β is that under P "
        "with tβ.",
        claim.first,
    )
    yield equal("That mean grows by the variance of β,", claim.second)
    yield bounded(
        "which is at most B²/4, B = osc(β), as all β_j = y + B f_j. So for t > 0 neither derivative "
        "is positive, and at t = 1 KL(P‖P') ≤ B²/8.",
        claim.variance,
        slack=OSC**2 * gruss(F[j], F[j]),
    )
    yield from needed("what KL(P(0)‖P(b_q)), the row's rest included, has over osc(β)²/8", excess, NULL_CASES)


def excess(head: Head) -> Expr:
    """Of the first row."""
    pull = list(shift(head))
    before, after = (list(x.weights().row(0)) for x in (head.but(b_q=None), head))
    rest = [simplify(1 - sum(row)) for row in (before, after)]
    pairs = [*zip(before, after, strict=True), rest]
    spent = sum(x * log(x / y) for x, y in pairs if x not in (0, y))
    return Max(0, spent - (max(pull) - min(pull)) ** 2 / 8)
