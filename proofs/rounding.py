"""K4, the last part: how far rounding moves attention when b_k is added, derived; minibeft/bounds.py computes it.

The model is fl(x ∘ y) = (x ∘ y)(1 + δ), |δ| ≤ u, for + − × ÷ and (1 + 4δ) for exp (2 ulp), without over- or underflow.
The idea of the whole derivation: an error in a logit, and a relative error in its exponential, are both a shift of
that logit; so the computed weights are the exact softmax of slightly different logits, and Q3 says how far that is.

"|x_a| is at most X" is written |x_a| = X·φ_a with a share φ_a in [0, 1].
"""

from collections.abc import Iterator
from math import prod

from sympy import Derivative, Expr, Limit, Rational, Symbol, log, symbols

from minibeft.proofs.head import fl
from minibeft.proofs.notation import a, i, j, l, over, s, share, softmax, table, z
from minibeft.proofs.statement import Relation, Step
from minibeft.proofs.steps import at_sizes, bounded, equal, exactly

X, Y, W, GAMMA_4 = symbols("x y w γ₄", positive=True)


def gamma(x: Expr) -> Expr:
    """γ_n as a function of x = nu < 1."""
    return x / (1 - x)


def rounding_error(claim) -> Iterator[Step]:
    whole = X + Y + W
    x, y = X / whole, Y / whole
    yield bounded(
        "Roundings compose: (1 + γ_n)(1 + γ_k) ≤ 1 + γ_{n+k}, with nu and ku the shares of x and y in x + y + w.",
        (1 + gamma(x)) * (1 + gamma(y)),
        1 + gamma(x + y),
        X * Y * whole / ((Y + W) * (X + W) * W),
    )
    yield from one_logit(claim)
    yield from one_row(claim)
    yield from the_output(claim)
    yield at_sizes(
        "Where the answer is lost: in p binary digits b_k + k is b_k once |k| ≤ u|b_k|/2, u = 2⁻ᵖ; all keys are equal.",
        [Relation("fl(b + k)", "=", "b")],
        12,
        "p",
        lambda p: all(fl(1 + side * Rational(1, 2 ** (p + 1)), p) == 1 for side in (1, -1)),
    )


def one_logit(claim) -> Iterator[Step]:
    """ε: what a computed logit may be off by."""
    q, key, g, h = (table(name, real=True) for name in ("q", "k", "g", "h"))
    size, kappa = (table(name, nonnegative=True) for name in ("|q|", "κ"))
    eta, rho = symbols("η ρ", positive=True)
    yield equal(
        "A computed logit: K is off by κ g, with |k| ≤ κ and |g| ≤ ρ = γ_r, and the d + 2 roundings of the product, "
        "scale and mask are |h| ≤ η = γ_{d+2}.",
        s * over(a, q[a] * (key[a] + kappa[a] * g[a]) * (1 + h[a])) - s * over(a, q[a] * key[a]),
        s * over(a, q[a] * (key[a] * h[a] + kappa[a] * g[a] * (1 + h[a]))),
    )
    rounding, mask, exact, h_ = symbols("δ M x h", real=True)
    yield equal(
        "Adding a mask entry M to the logit x rounds once more, |δ| ≤ u: h and δ compose as above, and M errs by u|M|.",
        (exact * (1 + h_) + mask) * (1 + rounding) - (exact + mask),
        exact * ((1 + h_) * (1 + rounding) - 1) + mask * rounding,
    )
    of_k, of_g, of_h = share("φ")[a], share("φ'")[a], share("φ''")[a]
    parts = (eta, (of_k, of_h)), (rho, (of_g,)), (eta * rho, (of_g, of_h))
    yield bounded(
        "So it is off by at most ε = s|q|·κ (η + ρ + ηρ) ≤ s|q|·κ γ_{r+d+2}, and u|M_ij| more with a mask.",
        s * over(a, size[a] * kappa[a] * sum(top * prod(shares) for top, shares in parts)),
        s * over(a, size[a] * kappa[a]) * claim.entry(eta, rho),
        sum(s * over(a, size[a] * kappa[a] * top * (1 - prod(shares))) for top, shares in parts),
    )


def one_row(claim) -> Iterator[Step]:
    """ε': what the logits, whose exact softmax the computed weights are, may be off by."""
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
    error, spread, unit = symbols("ε osc u", positive=True)
    of_gap, of_error = share("φ")[j], share("φ'")[j]
    reach = spread + 2 * error  # the computed logits lie within osc(z) + 2ε of their maximum
    yield bounded(
        "In all the logits are off by at most ε' = ε + u(osc(z) + 2ε) + γ_4.",
        error * of_error + unit * reach * of_gap + GAMMA_4,
        claim.row(error, spread, unit),
        error * (1 - of_error) + unit * reach * (1 - of_gap),
    )
    first, second = symbols("ε'₀ ε'₁", positive=True)
    up, down = share("φ")[j], share("φ'")[l]
    yield bounded(
        "b_k itself shifts a row by a constant (K1), so the two sets of logits differ by at most ±(ε'₀ + ε'₁): they "
        "oscillate by at most twice that, and Q3 gives tanh((ε'₀ + ε'₁)/2).",
        (first + second) * up - (-(first + second) * down),
        2 * (first + second),
        (first + second) * (1 - up) + (first + second) * (1 - down),
    )


def the_output(claim) -> Iterator[Step]:
    """What the sum, the quotient and P V add."""
    theta, largest = symbols("θ V", positive=True)
    of_theta, of_v = share("φ")[j], share("φ'")[j]
    weight = softmax(z[i, j])
    yield bounded(
        "Sum, quotient and P V make m roundings each way: off by at most θ max|V|, θ = γ_{2m}. With diam(V)·TV (Q3), "
        "twice this for two runs is the bound.",
        over(j, weight * theta * largest * of_theta * of_v),
        claim.sums(theta, largest),
        over(j, weight * theta * largest * (1 - of_theta * of_v)),
    )
