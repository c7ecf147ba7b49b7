"""K4, the last part: how far rounding moves attention when b_k is added, derived; theory/bounds.py computes it.

The model is fl(x ∘ y) = (x ∘ y)(1 + δ), |δ| ≤ u, for + − × ÷ and (1 + 4δ) for exp (2 ulp), without over- or underflow.
The idea of the whole derivation: an error in a logit, and a relative error in its exponential, are both a shift of
that logit; so the computed weights are the exact softmax of slightly different logits, and Q3 says how far that is.

"|x_a| is at most X" is written |x_a| = X·φ_a with a share φ_a in [0, 1].
"""

from collections.abc import Iterator

from sympy import Derivative, Expr, Integer, Limit, Rational, Symbol, log, symbols, tanh

from minibeft.proofs.head import fl
from minibeft.proofs.notation import a, i, j, l, over, s, share, softmax, table, z
from minibeft.proofs.relation import Quantity, Relation, says
from minibeft.proofs.statement import Step
from minibeft.proofs.steps import at_sizes, bounded, equal, exactly

X, Y, W, GAMMA_4 = symbols("x y w γ₄", positive=True)


def gamma(x: Expr) -> Expr:
    """γ_n as a function of x = nu < 1."""
    return x / (1 - x)


def composed() -> Relation:
    whole = X + Y + W
    x, y = X / whole, Y / whole
    return says("", (1 + gamma(x)) * (1 + gamma(y)), "≤", 1 + gamma(x + y))


SIZE, KAPPA = (table(name, nonnegative=True) for name in ("|q|", "κ"))
ETA, RHO = symbols("η ρ", positive=True)
OF_K, OF_G, OF_H = share("φ")[a], share("φ'")[a], share("φ''")[a]
PARTS = (ETA, OF_K * OF_H), (RHO, OF_G), (ETA * RHO, OF_G * OF_H)
ERROR, SPREAD, UNIT = symbols("ε osc u", positive=True)
UP, DOWN = share("φ")[j], share("φ'")[l]
AT, ALSO = share("φ")[j], share("φ'")[j]
REACH = SPREAD + 2 * ERROR  # the computed logits lie within osc(z) + 2ε of their maximum
FIRST, SECOND = symbols("ε'₀ ε'₁", positive=True)
THETA, LARGEST, DIAMETER = symbols("θ V D", positive=True)
WEIGHT = softmax(z[i, j])
MOST = DIAMETER * tanh((FIRST + SECOND) / 2)  # what the two softmaxes differ by, by Q3
SHARES = tuple(share(name)[i] for name in ("φ", "φ'", "φ''"))

ROUNDING = {
    "composed": composed(),
    "entry": says(
        "",
        s * over(a, SIZE[a] * KAPPA[a] * sum(top * part for top, part in PARTS)),
        "≤",
        s * over(a, SIZE[a] * KAPPA[a]) * (ETA + RHO + ETA * RHO),
    ),
    "row": says("", ERROR * ALSO + UNIT * REACH * AT + GAMMA_4, "≤", ERROR + UNIT * (SPREAD + 2 * ERROR) + GAMMA_4),
    "apart": says("", (FIRST + SECOND) * UP + (FIRST + SECOND) * DOWN, "≤", 2 * (FIRST + SECOND)),
    "sums": says("", over(j, WEIGHT * THETA * LARGEST * AT * ALSO), "≤", THETA * LARGEST),
    "rounding": says(
        "Rounding: at most diam(V)·tanh((ε₀+ε₁)/2) + 2γ_{2S} max|V|",
        MOST * SHARES[0] + THETA * LARGEST * (SHARES[1] + SHARES[2]),
        "≤",
        MOST + 2 * THETA * LARGEST,
    ),
}


def rounding_error(claim) -> Iterator[Step]:
    whole = X + Y + W
    yield bounded(
        "Roundings compose: (1 + γ_n)(1 + γ_k) ≤ 1 + γ_{n+k}, with nu and ku the shares of x and y in x + y + w.",
        claim.composed,
        slack=X * Y * whole / ((Y + W) * (X + W) * W),
    )
    yield from one_logit(claim)
    yield from one_row(claim)
    yield at_sizes(
        "Where the answer is lost: in p binary digits 1 + k is 1 once |k| ≤ u/2, u = 2⁻ᵖ; then all keys are equal.",
        says("", Quantity("fl(1 ± u/2)", absorbed), "=", Integer(1)),
        12,
        "p",
    )
    yield from the_output(claim)


def absorbed(digits: int) -> Expr:
    """The larger of what 1 + u/2 and 1 − u/2 become, where both are 1; else what is not 1."""
    found = [fl(1 + side * Rational(1, 2 ** (digits + 1)), digits) for side in (1, -1)]
    return next((x for x in found if x != 1), Integer(1))


def one_logit(claim) -> Iterator[Step]:
    """ε: how far a computed logit may be off."""
    q, key, g, h = (table(name, real=True) for name in ("q", "k", "g", "h"))
    yield equal(
        "A computed logit: K is off by κ g, with |k| ≤ κ and |g| ≤ ρ = γ_r, and the d + 2 roundings of the product, "
        "scale and mask are |h| ≤ η = γ_{d+2}.",
        s * over(a, q[a] * (key[a] + KAPPA[a] * g[a]) * (1 + h[a])) - s * over(a, q[a] * key[a]),
        s * over(a, q[a] * (key[a] * h[a] + KAPPA[a] * g[a] * (1 + h[a]))),
    )
    rounding, mask, exact, h_ = symbols("δ M x h", real=True)
    yield equal(
        "Adding a mask entry M to the logit x rounds once more, |δ| ≤ u: h and δ compose as above, and M errs by u|M|.",
        (exact * (1 + h_) + mask) * (1 + rounding) - (exact + mask),
        exact * ((1 + h_) * (1 + rounding) - 1) + mask * rounding,
    )
    yield bounded(
        "So it is off by at most ε = s|q|·κ (η + ρ + ηρ) ≤ s|q|·κ γ_{r+d+2}, and u|M_ij| more with a mask.",
        claim.entry,
        slack=sum(s * over(a, SIZE[a] * KAPPA[a] * top * (1 - part)) for top, part in PARTS),
    )


def one_row(claim) -> Iterator[Step]:
    """ε': the computed weights are the exact softmax of logits that are off by at most ε'."""
    top, shift = Symbol("z⁺", real=True), table("t", real=True)
    yield equal(
        "exp of the difference to the row's maximum z⁺, with a relative error e^t: a softmax of z_ij + t_ij (K1).",
        softmax(z[i, j] - top + shift[i, j]),
        softmax(z[i, j] + shift[i, j]),
    )
    gap = gamma(X) + log(1 - X)
    yield exactly(
        "There |t| ≤ u|ẑ − z⁺| + γ_4, because −log(1 − x) ≤ x/(1 − x): the difference is 0 at 0", Limit(gap, X, 0), 0
    )
    yield exactly("and grows, for 0 < x = 4u < 1.", Derivative(gap, X), X / (1 - X) ** 2)
    yield bounded(
        "In all the logits are off by at most ε' = ε + u(osc(z) + 2ε) + γ_4.",
        claim.row,
        slack=ERROR * (1 - ALSO) + UNIT * REACH * (1 - AT),
    )
    yield bounded(
        "b_k itself shifts a row by a constant (K1), so the two sets of logits differ by at most ±(ε'₀ + ε'₁): they "
        "oscillate by at most twice that, and Q3 gives tanh((ε'₀ + ε'₁)/2).",
        claim.apart,
        slack=(FIRST + SECOND) * (1 - UP) + (FIRST + SECOND) * (1 - DOWN),
    )


def the_output(claim) -> Iterator[Step]:
    """What the sum, the quotient and P V add."""
    yield bounded(
        "Sum, quotient and P V make m roundings each way: off by at most θ max|V|, θ = γ_{2m}.",
        claim.sums,
        slack=over(j, WEIGHT * THETA * LARGEST * (1 - AT * ALSO)),
    )
    yield bounded(
        "In all: the two exact softmaxes move the output by at most D·TV, D = diam(V), and both runs add θ max|V|.",
        claim.rounding,
        slack=MOST * (1 - SHARES[0]) + THETA * LARGEST * (1 - SHARES[1]) + THETA * LARGEST * (1 - SHARES[2]),
    )
