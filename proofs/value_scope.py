"""V5: where the value bias stops being a shift by b_v, and what it is instead.

V1 needs one thing: that the weights which multiply V sum to one. Where they sum to something else, r_i, the shift is
r_i b_v. Where V or the output goes through something that is not linear, it is no shift at all.
"""

from collections.abc import Iterator

from sympy import Expr, Integer, Symbol, exp

from minibeft.proofs.notation import a, b, i, j, l, mu, over, p, softmax, table, v, z
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal, exactly
from minibeft.proofs.value_bias import CASES, OUTPUT_CASES, P, fold_residual, shift_residual

D, OTHER = table("D", nonnegative=True), table("z'", real=True)
DROP, LAMBDA = Symbol("p", positive=True), Symbol("λ", real=True)
SINK = Symbol("S", positive=True)  # exp of the sink's logit
WEIGHT = mu[i, j] * exp(z[i, j])
SUM = over(l, mu[i, l] * exp(z[i, l]))


def moved(weights: Expr) -> Expr:
    """What b_v adds to entry a of row i."""
    return over(j, weights * (v[j, a] + b[a])) - over(j, weights * v[j, a])


@proof(
    "V5",
    dropout=over(j, D[i, j] * P),
    expected=Integer(1),
    sink=1 - SINK / (SUM + SINK),
    difference=1 - LAMBDA,
    blind=Integer(0),
)
def where_b_v_stops_being_a_shift(claim) -> Iterator[Part]:
    yield equal("Dropout D on P: the shift is r_i b_v, r_i = Σ_j D_ij P_ij.", moved(D[i, j] * P), claim.dropout * b[a])
    yield exactly(
        "An entry is kept with probability 1 − p and then scaled by 1/(1 − p): E D_ij = 1,",
        (1 - DROP) * (1 / (1 - DROP)) + DROP * 0,
        1,
        shown="(1 − p)·1/(1 − p) + p·0",
    )
    yield equal("so E r_i = Σ_j E[D_ij] P_ij = 1.", claim.dropout.xreplace({D[i, j]: Integer(1)}), claim.expected)
    with_sink = WEIGHT / (SUM + SINK)
    yield equal(
        "A sink keeps its mass to itself: the shift is (1 − sink mass) b_v.", moved(with_sink), claim.sink * b[a]
    )
    second = softmax(OTHER[i, j])
    yield equal(
        "Differential attention, P − λP': the shift is (1 − λ) b_v.",
        moved(P - LAMBDA * second),
        claim.difference * b[a],
    )
    foreign = table("x", real=True)
    mass = over(p, exp(foreign[i, p]))
    yield equal(
        "Foreign values (prefix, add_bias_kv, add_zero_attn) carry no b_v: it is weighed by the mass of the real keys.",
        moved(WEIGHT / (SUM + mass)),
        (1 - mass / (SUM + mass)) * b[a],
    )
    yield exactly(
        "A row that sees no key is defined to have weights 0: it gets none of b_v.",
        moved(Integer(0)).doit(),
        claim.blind * b[a],
        shown="Σⱼ 0·(vⱼₐ + bₐ) − Σⱼ 0·vⱼₐ",
    )
    weight = table("ω", nonnegative=True)
    yield equal(
        "Sigmoid or ReLU weights ω sum to whatever they like: the shift is that sum times b_v.",
        moved(weight[i, j]),
        over(j, weight[i, j]) * b[a],
    )
    yield equal(
        "Linear attention divides by the sum: there V1 holds.",
        over(j, weight[i, j] / over(l, weight[i, l]) * (v[j, a] + b[a])),
        over(j, weight[i, j] * v[j, a]) / over(l, weight[i, l]) + b[a],
    )
    yield from needed("O(b_v) − O(0) − 1 b_vᵀ", shift_residual, CASES)
    yield from needed(
        "output(b_v, b_o) − output(0, b_o + W_o b_v)", fold_residual, {"raw-output": OUTPUT_CASES["raw-output"]}
    )
