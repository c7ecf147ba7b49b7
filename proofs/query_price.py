"""Q10: the price of moving attention: how long b_q must be to move a row so far, and how long is enough.

Q3 and Q6 in the other direction. How far a row has moved gives a lower bound on osc(β), and the length of b_q bounds
osc(β) from above. A b_q that favours one key over the others by some gap gives that key nearly all weight once b_q is
long enough.
"""

from collections.abc import Iterator

from sympy import Abs, Expr, Matrix, Max, Symbol, exp, log, sqrt, tanh

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import row
from minibeft.proofs.notation import a, b, e, i, j, k, l, over, share
from minibeft.proofs.query_bias import CONSTANT
from minibeft.proofs.query_bound import CASES as BOUND_CASES
from minibeft.proofs.query_bound import VARIATION, B, at_most_tanh
from minibeft.proofs.query_limits import BEHIND, GAP, NOT_J, OSC, OTHERS, UNDER, T
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import bounded, equal, exactly

APART = k[j, a] - k[l, a]
ALONG = over(a, b[a] * APART)  # b_q·(k_j − k_l)
LENGTHS = over(a, b[a] ** 2) * over(a, APART**2)
MOVED = share("τ")[i]
TV = MOVED * (exp(B / 2) - 1) / (exp(B / 2) + 1)  # any part of tanh(B/4)
REST, EPS = Symbol("m°", positive=True), Symbol("ε", positive=True)  # m − 1
PRICE = OSC + log(REST / EPS)
NEEDED = "A b_q that moves row i by TV has s ‖b_q‖ diam(K) ≥ 4 artanh(TV)"
ENOUGH = "To leave all keys but j* at most ε, s ‖b_q‖ gap = osc(z_i) + ln((m−1)/ε) is enough"


@proof(
    "Q10",
    length=says(NEEDED, ALONG**2, "≤", LENGTHS),
    bound=says(NEEDED, VARIATION, "≤", tanh(B / 4)),
    tanh=says(NEEDED, (exp(B / 2) - 1) / (exp(B / 2) + 1), "=", tanh(B / 4)),
    inverse=says(NEEDED, (1 + TV) / (1 - TV), "≤", exp(B / 2)),
    others=says(ENOUGH, 1 - 1 / (1 + OTHERS), "≤", over(l, NOT_J) * exp(OSC - T * GAP)),
    enough=says(ENOUGH, log(REST) + OSC - PRICE, "=", log(EPS)),
)
def the_price_of_moving_attention(claim) -> Iterator[Part]:
    cross = over(a, over(e, (b[a] * (k[j, e] - k[l, e]) - b[e] * APART) ** 2))
    yield bounded(
        "β_j − β_l = s b_q·(k_j − k_l) is at most s ‖b_q‖ ‖k_j − k_l‖ (Cauchy and Schwarz), so osc(β) is at most "
        "B = s ‖b_q‖ diam(K).",
        claim.length,
        slack=cross / 2,
    )
    yield at_most_tanh(
        "So Q3 holds with B in place of osc(β): e^{β_j} = e^{β⁻}(1 + Wφ_j) with W = e^B − 1.", claim.bound
    )
    yield equal("With tanh written out,", claim.tanh)
    lost = exp(B / 2) * (1 - MOVED) + 1 + MOVED
    yield bounded(
        "TV = τ tanh(B/4) with τ in [0, 1] has (1 + TV)/(1 − TV) ≤ e^{B/2}: its logarithm is 2 artanh(TV) ≤ B/2.",
        claim.inverse,
        slack=exp(B) * (1 - exp(-B)) * (1 - MOVED) / lost,
    )
    slack = over(l, NOT_J * exp(OSC - T * GAP) * (1 - exp(-UNDER[l] - T * BEHIND[l]))) + OTHERS**2 / (1 + OTHERS)
    yield bounded(
        "Q6: the other keys keep at most (m − 1) e^{osc(z_i) − tΔ}, and tΔ is s ‖b_q‖ gap.", claim.others, slack=slack
    )
    yield exactly(
        "Where tΔ is osc(z_i) + ln(m°/ε), m° = m − 1, that is ε: its logarithm is ln m° + osc(z_i) − tΔ.", claim.enough
    )
    yield from needed("excess of TV over tanh(s ‖b_q‖ diam(K)/4)", excess, CASES)


def excess(head: Head) -> Expr:
    """By how much the first row moves further than b_q is long enough for."""
    keys = head.keys()
    pairs = [keys.row(x) - keys.row(y) for x in range(keys.rows) for y in range(keys.rows)]
    diameter = max(sqrt(x.dot(x)) for x in pairs)
    still = head.but(b_q=None)
    change = (head.mixing(head.logits()) - still.mixing(still.logits())).row(0)
    allowed = tanh(sqrt(head.b_q.dot(head.b_q)) * diameter / 4)
    return Max(0, sum(Abs(x) for x in change) / 2 - allowed)


NARROW = Head(
    q=row(0, 10), k=Matrix([[1, 0], [1, log(2) / 10]]), v=Matrix([1, 0]), b_q=row(log(2), 0)
)  # logits 0, log 2
CASES = {
    **{key: CONSTANT[key] for key in ("unrotated", "no-relative-vectors", "softmax", "no-sink")},
    "no-softcap": (
        "Logits 0 and log 2 of keys close together, both raised by log 2; tanh brings the logits nearer to each other.",
        NARROW,
        {"softcap": True},
    ),
    "no-qk-norm": BOUND_CASES["no-qk-norm"],
}
