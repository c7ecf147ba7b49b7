"""K4: where the key bias begins to matter, with the exact effect where there is one.

K1 needs that b_k adds the same number to every logit of a row. Rotary positions turn b_k differently for every key; a
competitor that does not carry b_k (a sink, a prefix key) does not take part in the shift. Both effects have a closed
form. How rounding breaks K1 is a story of its own: rounding.py.
"""

from collections.abc import Iterator

from sympy import Expr, Matrix, Rational, Symbol, cos, exp, sin, symbols

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES, row, weights
from minibeft.proofs.measured import measured
from minibeft.proofs.notation import a, b, i, j, k, l, mu, over, p, put, q, s, softmax, table, u, v, z
from minibeft.proofs.relation import says
from minibeft.proofs.rounding import ROUNDING, rounding_error
from minibeft.proofs.statement import Counterexample, Part, needed, proof
from minibeft.proofs.steps import equal, exactly

ANGLE = Symbol("φ", real=True)
OMEGA = table("ω", real=True)  # the frequency of plane u
Q2, K2, B2 = (table(name, real=True) for name in ("q'", "k'", "b'"))  # the second dim of each plane


def turned(x: Expr, y: Expr, position: Expr) -> tuple[Expr, Expr]:
    """Both dims of plane u, turned by the angle of a position."""
    angle = OMEGA[u] * position
    return cos(angle) * x - sin(angle) * y, sin(angle) * x + cos(angle) * y


def dot(x: tuple[Expr, Expr], y: tuple[Expr, Expr]) -> Expr:
    """The product over all planes: interleaved and half-split rotary differ only in where a plane's dims are stored."""
    return over(u, x[0] * y[0] + x[1] * y[1])


QUERY, KEY, BIAS = (q[i, u], Q2[i, u]), (k[j, u], K2[j, u]), (b[u], B2[u])
PLAIN = dot(turned(*QUERY, i), turned(*KEY, j))
TURNED = {PLAIN: Symbol("R_i q·R_j k", real=True), put(PLAIN, j, p): Symbol("R_i q·R_p k", real=True)}
MASS = over(j, mu[i, j] * exp(z[i, j]))  # of the real keys, before normalising
SINK = Symbol("S", positive=True)  # exp of the sink's logit; of foreign keys the sum of theirs
W = MASS / (MASS + SINK)  # w_i, what row i gives to real keys without b_k
NAMES = {MASS: Symbol("A", real=True), put(mu[i, j] * exp(z[i, j]), j, l): table("m", real=True)[i, l]}
C = Symbol("c", real=True)  # c_i = s q_i·b_k
RHO = W / (W + (1 - W) * exp(-C))


def softmax_with(logit: Expr) -> Expr:
    """The weights of the real keys next to a sink."""
    weight = mu[i, j] * exp(logit)
    return weight / (over(l, put(weight, j, l)) + SINK)


FOREIGN_KEY, FOREIGN_VALUE = table("x", real=True), table("y", real=True)
FOREIGN = over(l, exp(FOREIGN_KEY[i, l]))
MIXED = over(l, exp(FOREIGN_KEY[i, l]) * FOREIGN_VALUE[l, a]) / FOREIGN  # F, what foreign keys give alone
TOTAL = over(j, mu[i, j] * exp(z[i, j] + C) * v[j, a]) + over(l, exp(FOREIGN_KEY[i, l]) * FOREIGN_VALUE[l, a])
ALONE = over(j, softmax(z[i, j]) * v[j, a])  # P̂V
TURN = 2 - 2 * cos(ANGLE)  # det(R_φ − 1)
TURNING = Matrix([[cos(ANGLE) - 1, -sin(ANGLE)], [sin(ANGLE), cos(ANGLE) - 1]])  # R_φ − 1
FIRST, SECOND = symbols("x y", real=True)
AWAY = TURNING * Matrix([FIRST, SECOND])


@proof(
    "K4",
    rotary=says(
        "Rotary: q_i·R_{j−i} b_k",
        dot(turned(*QUERY, i), turned(KEY[0] + BIAS[0], KEY[1] + BIAS[1], j)),
        "=",
        PLAIN + dot(QUERY, turned(*BIAS, j - i)),
    ),
    differ=says("", AWAY.dot(AWAY), "=", TURN * (FIRST**2 + SECOND**2)),
    determinant=says("", TURNING.det(), "=", TURN),
    mass=says("", over(j, softmax_with(z[i, j] + C)), "=", RHO),
    sink=says("F = 0 for a sink", over(j, softmax_with(z[i, j] + C) * v[j, a]), "=", RHO * ALONE),
    foreign=says(
        "Sink or foreign keys: O' = ρP̂V + (1−ρ)F, ρ = w/(w + (1−w)e^{−c})",
        TOTAL / (over(j, mu[i, j] * exp(z[i, j] + C)) + FOREIGN),
        "=",
        (RHO * ALONE + (1 - RHO) * MIXED).subs(SINK, FOREIGN),
    ),
    **ROUNDING,
)
def where_the_key_bias_matters(claim) -> Iterator[Part]:
    yield from rotary(claim)
    yield from competitors(claim)
    yield measured()
    yield from rounding_error(claim)
    yield from needed(("P(0)", "P(b_k)"), weights, CASES)
    yield Counterexample(
        "in-range",
        "q = 256 and keys 0 and 256 in float16: 65536 is beyond its largest number and becomes ∞, whatever the bound.",
        "1/(computed logit) − 1/(exact logit)",
        lambda: 1 / overflow.logits()[1] - Rational(1, 2**16),
        lambda: 1 / overflow.but(largest=65504).logits()[1] - Rational(1, 2**16),
    )


overflow = Head(q=row(256), k=Matrix([0, 256]), v=Matrix([1, 0]))


def rotary(claim) -> Iterator[Part]:
    yield equal(
        "Rotary: b_k is turned with its key, so it enters the logit as q_i·R_{j−i} b_k, summed over planes.",
        claim.rotary,
        called=TURNED,
    )
    yield exactly(
        "That depends on j for every b_k ≠ 0: for q = (R_φ − 1) b, two keys an angle φ apart see c differ by ‖q‖²,",
        claim.differ,
    )
    yield exactly("which is not 0 unless φ is a full turn,", TURN, 4 * sin(ANGLE / 2) ** 2)
    yield exactly("because R_φ − 1 is invertible: its determinant is the same number.", claim.determinant)
    q_rest, k_rest = table("q°", real=True), table("k°", real=True)
    logit = PLAIN + over(a, q_rest[i, a] * k_rest[j, a])
    with_bias = PLAIN + over(a, q_rest[i, a] * (k_rest[j, a] + b[a]))
    yield equal(
        "Partial rotary: a b_k on the dims that are not turned (q°, k°) is still invisible, exactly.",
        softmax(s * with_bias),
        softmax(s * logit),
        called=TURNED,
    )


def competitors(claim) -> Iterator[Part]:
    """Sinks, softmax-off-by-one, prefix keys, add_bias_kv, add_zero_attn: what takes part without carrying b_k."""
    yield equal(
        "A sink S = e^σ takes 1 − w of a row, w = A/(A + S), A = Σ_j μ_ij exp(z_ij); the rest is as before.",
        softmax_with(z[i, j]),
        W * softmax(z[i, j]),
        called=NAMES,
    )
    yield equal(
        "b_k raises the real keys by e^c against the sink, so w becomes ρ = w/(w + (1−w)e^{−c}).",
        claim.mass,
        called=NAMES,
    )
    yield equal(
        "Exact effect on the output: O' = ρ·P̂V, P̂ the softmax without the sink.",
        claim.sink,
        called=NAMES,
    )
    yield equal(
        "Softmax-off-by-one is the sink with logit 0.",
        claim.mass.left.subs(SINK, 1),
        claim.mass.right.subs(SINK, 1),
        called=NAMES,
    )
    yield equal(
        "Foreign keys with logits x_il and values y_l: O' = ρ·P̂V + (1−ρ)·F, ρ as before, F what they give alone.",
        claim.foreign,
        called={**NAMES, FOREIGN: SINK},
    )
