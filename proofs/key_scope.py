"""K4: where the key bias begins to matter, with the exact effect where there is one.

K1 needs that b_k adds the same number to every logit of a row. Rotary positions turn b_k differently for every key; a
competitor that does not carry b_k (a sink, a prefix key) does not take part in the shift. Both effects have a closed
form. How rounding breaks K1 is a story of its own: rounding.py.
"""

from collections.abc import Iterator

from sympy import Expr, Matrix, Rational, Symbol, cos, exp, sin, symbols

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES, residual, row
from minibeft.proofs.measured import measured
from minibeft.proofs.notation import a, b, i, j, k, l, mu, over, p, q, s, softmax, table, u, v, z
from minibeft.proofs.rounding import GAMMA_4, rounding_error
from minibeft.proofs.statement import Counterexample, Part, needed, proof
from minibeft.proofs.steps import equal, exactly

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
TURNED = {dot(turned(*QUERY, i), turned(*KEY, j)): Symbol("R_i q·R_j k")}  # how it is printed
MASS = over(j, mu[i, j] * exp(z[i, j]))  # of the real keys, before normalising
SINK = Symbol("S", positive=True)  # exp of the sink's logit; of foreign keys the sum of theirs
W = MASS / (MASS + SINK)  # w_i, what row i gives to real keys without b_k
NAMES = {MASS: Symbol("A"), MASS.xreplace({j: l}): Symbol("A")}  # how the steps print it
C = Symbol("c", real=True)  # c_i = s q_i·b_k


@proof(
    "K4",
    rotary=dot(QUERY, turned(*BIAS, j - i)),
    determinant=lambda angle: 2 - 2 * cos(angle),
    share=W / (W + (1 - W) * exp(-C)),
    entry=lambda eta, rho: eta + rho + eta * rho,
    row=lambda error, spread, unit: error + unit * (spread + 2 * error) + GAMMA_4,
    sums=lambda theta, largest: theta * largest,
)
def where_the_key_bias_matters(claim) -> Iterator[Part]:
    yield from rotary(claim)
    yield from competitors(claim)
    yield from rounding_error(claim)
    yield measured()
    yield from needed("P(b_k) − P(0)", residual, CASES)
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
        dot(turned(*QUERY, i), turned(KEY[0] + BIAS[0], KEY[1] + BIAS[1], j)),
        dot(turned(*QUERY, i), turned(*KEY, j)) + claim.rotary,
        called=TURNED,
    )
    angle, x, y = Symbol("φ", real=True), *symbols("x y", real=True)
    turn = Matrix([[cos(angle) - 1, -sin(angle)], [sin(angle), cos(angle) - 1]])
    bias = Matrix([x, y])
    yield exactly(
        "That depends on j for every b_k ≠ 0: for q = (R_φ − 1) b, two keys an angle φ apart see c differ by ‖q‖²,",
        (turn * bias).dot(turn * bias),
        claim.determinant(angle) * (x**2 + y**2),
    )
    yield exactly("which is not 0 unless φ is a full turn,", claim.determinant(angle), 4 * sin(angle / 2) ** 2)
    yield exactly(
        "because R_φ − 1 is invertible: its determinant is the same number.", turn.det(), claim.determinant(angle)
    )
    rotated = dot(turned(*QUERY, i), turned(*KEY, j))
    q_rest, k_rest = table("q°", real=True), table("k°", real=True)
    logit = rotated + over(a, q_rest[i, a] * k_rest[j, a])
    with_bias = rotated + over(a, q_rest[i, a] * (k_rest[j, a] + b[a]))
    yield equal(
        "Partial rotary: a b_k on the dims that are not turned (q°, k°) is still invisible, exactly.",
        softmax(s * with_bias),
        softmax(s * logit),
        called=TURNED | {rotated.xreplace({j: p}): Symbol("R_i q·R_p k")},
    )
    partial = Head(q=row(1, 0, 1), k=Matrix([[0, 0, 0], [0, 0, 1]]), v=Matrix([1, 0]), turn=symbols("φ", positive=True))
    yield exactly(
        "For instance with three dims, two of them turned, and b_k on the third.",
        residual(partial.but(b_k=row(0, 0, 5))).norm(),
        0,
    )


def competitors(claim) -> Iterator[Part]:
    """Sinks, softmax-off-by-one, prefix keys, add_bias_kv, add_zero_attn: what takes part without carrying b_k."""
    shifted = softmax_with(z[i, j] + C)
    without = softmax(z[i, j])
    yield equal(
        "A sink S = e^σ takes 1 − w of a row, w = A/(A + S), A = Σ_j μ_ij exp(z_ij); the rest is as before.",
        softmax_with(z[i, j]),
        W * without,
        called=NAMES,
    )
    yield equal(
        "b_k raises the real keys by e^c against the sink, so w becomes w/(w + (1−w)e^{−c}).",
        over(j, shifted),
        claim.share,
        called=NAMES,
    )
    yield equal(
        "Exact effect on the output: O' = w/(w + (1−w)e^{−c})·P̂V, P̂ the softmax without the sink.",
        over(j, shifted * v[j, a]),
        claim.share * over(j, without * v[j, a]),
        called=NAMES,
    )
    yield equal(
        "Softmax-off-by-one is the sink with logit 0.",
        over(j, shifted).subs(SINK, 1),
        claim.share.subs(SINK, 1),
        called=NAMES,
    )
    key, value = table("x", real=True), table("y", real=True)
    foreign = over(l, exp(key[i, l]))
    mixed = over(l, exp(key[i, l]) * value[l, a]) / foreign
    total = over(j, mu[i, j] * exp(z[i, j] + C) * v[j, a]) + over(l, exp(key[i, l]) * value[l, a])
    yield equal(
        "Foreign keys with logits x_il and values y_l: O' = w'·P̂V + (1−w')·F, w' as before, F what they give alone.",
        total / (over(j, mu[i, j] * exp(z[i, j] + C)) + foreign),
        (claim.share * over(j, without * v[j, a]) + (1 - claim.share) * mixed).subs(SINK, foreign),
        called={**NAMES, foreign: SINK},
    )


def softmax_with(logit: Expr) -> Expr:
    """The weights of the real keys next to a sink."""
    weight = mu[i, j] * exp(logit)
    return weight / (over(l, weight.xreplace({j: l})) + SINK)
