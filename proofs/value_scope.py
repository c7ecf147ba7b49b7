"""V5: where the value bias stops being a shift by b_v, and what it is instead.

V1 needs one thing: that the weights which multiply V sum to one. Where they sum to something else, r_i, the shift is
r_i b_v. Where V or the output goes through something that is not linear, it is no shift at all.
"""

from collections.abc import Iterator

from sympy import Expr, Subs, Symbol, exp, symbols

from minibeft.proofs.notation import a, b, i, j, l, mu, over, p, softmax, table, v, z
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal, exactly
from minibeft.proofs.value_bias import CASES, FOLD, OUTPUT_CASES, SHIFT, P, folded, shifted

D, OTHER = table("D", nonnegative=True), table("z'", real=True)
DROP, LAMBDA = Symbol("ε", positive=True), Symbol("λ", real=True)
SINK = Symbol("S", positive=True)  # exp of the sink's logit
WEIGHT = mu[i, j] * exp(z[i, j])
SUM = over(l, mu[i, l] * exp(z[i, l]))


def moved(weights: Expr) -> Expr:
    """What b_v adds to entry a of row i."""
    return over(j, weights * (v[j, a] + b[a])) - over(j, weights * v[j, a])


WITH_SINK = WEIGHT / (SUM + SINK)
SECOND = softmax(OTHER[i, j])
ANY = table("ω", nonnegative=True)
FOREIGN = over(p, exp(table("x", real=True)[i, p]))
KEPT, LOST = symbols("x y", real=True)  # what an entry of the weights is multiplied by where it is kept, and where not
MEAN = Subs((1 - DROP) * KEPT + DROP * LOST, (KEPT, LOST), (1 / (1 - DROP), 0))
DROPOUT = "Dropout: r_i b_v with E r_i = 1"


@proof(
    "V5",
    dropout=says(DROPOUT, moved(D[i, j] * P), "=", over(j, D[i, j] * P) * b[a]),
    mean=says(DROPOUT, MEAN, "=", 1),
    expected=says(DROPOUT, over(j, MEAN * P), "=", 1),
    sink=says("Sink: (1 − sink mass) b_v", moved(WITH_SINK), "=", (1 - SINK / (SUM + SINK)) * b[a]),
    difference=says("λ-difference: (1 − λ) b_v", moved(P - LAMBDA * SECOND), "=", (1 - LAMBDA) * b[a]),
    foreign=says("", moved(WEIGHT / (SUM + FOREIGN)), "=", (1 - FOREIGN / (SUM + FOREIGN)) * b[a]),
    sigmoid=says("", moved(ANY[i, j]), "=", over(j, ANY[i, j]) * b[a]),
    linear=says("", moved(ANY[i, j] / over(l, ANY[i, l])), "=", b[a]),
    blind=says("Blind row: 0 · b_v", Subs(moved(KEPT), KEPT, 0), "=", 0),
)
def where_b_v_stops_being_a_shift(claim) -> Iterator[Part]:
    yield equal("Dropout D on P: the shift is r_i b_v, r_i = Σ_j D_ij P_ij.", claim.dropout)
    yield exactly("An entry is kept with probability 1 − ε and then scaled by 1/(1 − ε): E D_ij = 1,", claim.mean)
    yield equal("so E r_i = Σ_j E[D_ij] P_ij = 1.", claim.expected)
    yield equal("A sink keeps its mass to itself: the shift is (1 − sink mass) b_v.", claim.sink)
    yield equal("Differential attention, P − λP': the shift is (1 − λ) b_v.", claim.difference)
    yield equal(
        "Foreign values (prefix, add_bias_kv, add_zero_attn) carry no b_v: it is weighed by the mass of the real keys.",
        claim.foreign,
    )
    yield equal("Sigmoid or ReLU weights ω sum to whatever they like: the shift is that sum times b_v.", claim.sigmoid)
    yield equal("Linear attention divides by the sum: there V1 holds.", claim.linear)
    yield equal("A row that sees no key is defined to have weights 0: it gets none of b_v.", claim.blind)
    yield from needed(SHIFT, shifted, CASES)
    yield from needed(FOLD, folded, {"raw-output": OUTPUT_CASES["raw-output"]})
