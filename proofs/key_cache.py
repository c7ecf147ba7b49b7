"""K9 and K10: keys as they are multiplied with q, and what is left of K1 when rotary positions turn b_k with its key.

A vector added to all keys after they were turned acts like b_k in K1, and does nothing (K9). One added before adds to
the logits a wave in the distance, one per plane (K10); if a plane hardly turns over the keys that the query sees, its
wave changes almost nothing.
"""

from collections.abc import Iterator

from sympy import Abs, Derivative, Expr, Integer, Max, Min, cos, simplify, sin, sqrt, symbols, tanh

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES, weights
from minibeft.proofs.key_scope import BIAS, KEY, OMEGA, QUERY, dot, turned
from minibeft.proofs.notation import a, b, i, j, k, over, q, s, share, softmax, table, u
from minibeft.proofs.query_bound import VARIATION, at_most_tanh
from minibeft.proofs.query_bound import B as OSC
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

PULL = s * over(a, q[i, a] * k[j, a])
TAKEN = s * over(a, q[i, a] * (k[j, a] - b[a]))
ANY = "With keys as they are multiplied with q, taking one vector c off all of them leaves P as it is, for every c"
ROTATED = s * dot(QUERY, turned(*KEY, j))  # the query, turned as well, is any vector
ROTATED_TAKEN = s * dot(QUERY, tuple(x - y for x, y in zip(turned(*KEY, j), BIAS, strict=True)))


@proof(
    "K9",
    logit=says(ANY, TAKEN, "=", PULL - s * over(a, q[i, a] * b[a])),
    rotary=says(ANY, softmax(ROTATED_TAKEN), "=", softmax(ROTATED)),
    weights=says(ANY, softmax(TAKEN), "=", softmax(PULL)),
)
def cached_keys_may_be_shifted(claim) -> Iterator[Part]:
    yield equal("c, here b, takes the same number off every logit of row i,", claim.logit)
    yield equal("also where queries and keys are turned first, and c is taken off behind the turn.", claim.rotary)
    yield equal("So P stays (K1).", claim.weights)
    yield from needed(("P(K)", "P(K − 1cᵀ)"), weights, CACHE_CASES)


CACHE_CASES = {
    name: ("With c = −b_k: " + text[0].lower() + text[1:], head, change)
    for name, (text, head, change) in CASES.items()
    if name not in ("unrotated", "no-qk-norm")
}

ALPHA, BETA = table("α", real=True), table("β", real=True)
WAVES = "b_k adds a learned wave of the distance a plane"
COSINE = QUERY[0] * BIAS[0] + QUERY[1] * BIAS[1]
SINE = QUERY[1] * BIAS[0] - QUERY[0] * BIAS[1]
ANGLE = OMEGA[u] * (j - i)
X, Y, ONE, TWO, FIRST, SECOND = symbols("x y α β b b'", real=True)
LENGTH = X**2 + Y**2
PHI, PSI, STEP = symbols("φ ψ τ", real=True)
LONG, BIG, REACH, PART = (table(name, nonnegative=True) for name in ("Q", "B", "M", "p"))
SHARE, LIMIT = share("f"), "TV(P(0), P(b_k)) ≤ tanh(¼ s Σ_u ‖q^u‖ ‖b_k^u‖ min(2, ω_u W))"


def moved(angle: Expr) -> tuple[Expr, Expr]:
    """(b, b') turned by an angle."""
    return cos(angle) * FIRST - sin(angle) * SECOND, sin(angle) * FIRST + cos(angle) * SECOND


APART = tuple(x - y for x, y in zip(moved(PHI), moved(PSI), strict=True))
BEYOND = f"{LIMIT} where the keys in sight lie within W positions"


@proof(
    "K10",
    waves=says(WAVES, dot(QUERY, turned(*BIAS, j - i)), "=", over(u, COSINE * cos(ANGLE) + SINE * sin(ANGLE))),
    amplitude=says(
        "any amplitude and phase",
        X * (X * ONE + Y * TWO) / LENGTH + Y * (Y * ONE - X * TWO) / LENGTH,
        "=",
        ONE,
    ),
    phase=says(
        "any amplitude and phase",
        Y * (X * ONE + Y * TWO) / LENGTH - X * (Y * ONE - X * TWO) / LENGTH,
        "=",
        TWO,
    ),
    apart=says(BEYOND, APART[0] ** 2 + APART[1] ** 2, "=", 4 * sin((PHI - PSI) / 2) ** 2 * (FIRST**2 + SECOND**2)),
    cauchy=says(BEYOND, (X * ONE + Y * TWO) ** 2, "=", LENGTH * (ONE**2 + TWO**2) - (X * TWO - Y * ONE) ** 2),
    rise=says(BEYOND, Derivative(STEP - sin(STEP), STEP), "=", 2 * sin(STEP / 2) ** 2),
    spread=says(
        BEYOND, s * over(u, LONG[u] * BIG[u] * REACH[u] * SHARE[u]), "≤", s * over(u, LONG[u] * BIG[u] * REACH[u])
    ),
    bound=says(BEYOND, VARIATION, "≤", tanh(OSC / 4)),
)
def key_bias_under_rotary(claim) -> Iterator[Part]:
    yield equal("q_i·R_{j−i} b_k in each plane: a cosine and a sine of the distance.", claim.waves)
    yield exactly(
        "With b = (qα + q'β)/‖q‖² and b' = (q'α − qβ)/‖q‖², q = (x, y), the cosine has the amplitude α", claim.amplitude
    )
    yield exactly("and the sine β, whichever they are.", claim.phase)
    yield exactly("Two turns of b, by φ and by ψ, lie 2 |sin((φ−ψ)/2)| ‖b‖ apart,", claim.apart)
    yield exactly("|sin τ| ≤ 1; and sin τ ≤ τ for τ ≥ 0: both are 0 at 0, and τ grows faster.", claim.rise)
    yield exactly(
        "so that is at most min(2, ω_u W) ‖b‖; and q's product with it, q = (x, y), is at most ‖q‖ times as much.",
        claim.cauchy,
    )
    yield bounded(
        "Over all planes two keys' logits are moved apart by at most this: Q_u = ‖q^u‖, B_u = ‖b_k^u‖, M_u = "
        "min(2, ω_u W), and f_u is what a plane attains.",
        claim.spread,
        slack=s * over(u, LONG[u] * BIG[u] * REACH[u] * (1 - SHARE[u])),
    )
    yield at_most_tanh("So B = osc of what is added is bounded, and Q3 holds whatever is added.", claim.bound)
    yield from needed("excess of TV(P(0), P(b_k)) over its bound, W = 1 position", beyond, ROTARY_CASES)


def beyond(head: Head) -> Expr:
    """Of the first row, two keys one position apart; a sink or a foreign key counts as the rest of the row."""
    still, now = (x.weights().row(0)[: head.k.rows] for x in (head.but(b_k=None), head))
    change = [simplify(y - x) for x, y in zip(still, now, strict=True)]
    plane = lambda x: sqrt(x[0] ** 2 + x[1] ** 2) if len(x) > 1 else Integer(0)  # noqa: E731
    angle = Min(2, head.turn)
    allowed = tanh(plane(head.q.row(0)) * plane(head.b_k) * angle / 4)
    return Max(0, (sum(Abs(x) for x in change) + Abs(simplify(sum(change)))) / 2 - allowed)


ROTARY_CASES = {
    name: (text, head, change)
    for name, (text, head, change) in CASES.items()
    if name.split(":")[0]
    in ("no-relative-vectors", "no-qk-norm", "no-softcap", "softmax", "no-sink", "no-foreign-keys")
}
