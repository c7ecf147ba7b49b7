"""K5, K6 and K7: what b_k does in a real training run, where its gradient is rounding noise instead of zero.

Adam divides a gradient by a running mean of its size. That is harmless for a meaningful gradient, but it scales noise
up to the size of every other update, unless eps prevents it.
"""

from collections.abc import Iterator

from sympy import Derivative, Expr, Function, Limit, Rational, Subs, Symbol, oo, sqrt, symbols

from minibeft.proofs.notation import a, b, over, u
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Counterexample, Part, proof
from minibeft.proofs.steps import bounded, equal, exactly, positive
from minibeft.proofs.training import BIAS, NAMES, SLOPE_B, adam, output

G, LR, EPS, X = symbols("g η ε x", positive=True)  # |g|, the learning rate, eps, and g/eps
B1, B2 = symbols("β₁ β₂", positive=True)
T = Symbol("t", integer=True, positive=True)


OPTIONS = {"lr": LR, "b1": B1, "b2": B2, "eps": EPS}
M1, M2 = symbols("m v", real=True)  # Adam's moments
HELD = (1 - B1**T) * G, (1 - B2**T) * G**2  # what they are after t steps under the same gradient
LATER = LR * (M1 / (1 - B1**T)) / (sqrt(M2 / (1 - B2**T)) + EPS)  # the step that these moments make
DRIFT = X / (1 + X)
MOVED = "A gradient of pure noise g moves b_k by lr·|g|/(|g| + eps) a step"


def moved(which: int, *moments: Expr | int) -> Expr:
    """The bias 0, or a moment, after one step of Adam with the gradient g from these moments."""
    sign = -1 if which == 0 else 1
    return Subs(sign * adam(0, M1, M2, G, T if moments == HELD else 1, **OPTIONS)[which], (M1, M2), moments)


@proof(
    "K5",
    first=says("", moved(1, *HELD), "=", HELD[0].subs(T, T + 1)),
    second=says("", moved(2, *HELD), "=", HELD[1].subs(T, T + 1)),
    start=says(MOVED, moved(0, 0, 0), "=", LR * G / (G + EPS)),
    step=says(MOVED, Subs(LATER, (M1, M2), HELD), "=", LR * G / (G + EPS)),
    drift=says("", LR * G / (G + EPS) / LR, "=", DRIFT.subs(X, G / EPS)),
    large=says("by lr if |g| ≫ eps", Limit(DRIFT, X, oo), "=", 1),
    small=says("by lr·|g|/eps if not", Limit(DRIFT / X, X, 0), "=", 1),
    half=says("", Subs(DRIFT, X, 1), "=", Rational(1, 2)),
    fiftieth=says("", Subs(DRIFT, X, Rational(1, 100)), "=", Rational(1, 101)),
)
def adam_moves_b_k_by_rounding_noise(claim) -> Iterator[Part]:
    yield exactly("The first step under a gradient g > 0 of noise (for g < 0 the mirror image).", claim.start)
    yield exactly("While g stays, the first moment is (1 − β₁ᵗ) g: induction step,", claim.first)
    yield exactly("and the second (1 − β₂ᵗ) g²,", claim.second)
    yield exactly("so every later step is as long as the first.", claim.step)
    yield exactly("The step, in units of η, depends on g and eps only through x = g/eps.", claim.drift)
    yield exactly("It grows with x:", Derivative(DRIFT, X), 1 / (1 + X) ** 2)
    yield positive("always.", 1 / (1 + X) ** 2)
    yield exactly("Noise of 1e-8 at eps 1e-8 (x = 1) moves b_k by half the learning rate per step;", claim.half)
    yield exactly(
        "at eps 1e-6 (x = 1/100) by a fiftieth of that, on the same data: the drift tells eps, not use.",
        claim.fiftieth,
    )
    yield exactly("Noise far above eps moves b_k by the whole learning rate, as far as any weight.", claim.large)
    yield exactly("Noise far below eps moves it by η·x: in proportion to the noise.", claim.small)
    tiny = Rational(1, 10**8)
    size = claim.start.right.subs({LR: 1, G: tiny, EPS: tiny})
    yield Counterexample(
        "adaptive",
        "Plain gradient descent at g = eps = 1e-8, η = 1 moves b_k by the noise itself.",
        "step − η|g|/(|g| + eps)",
        lambda: -adam(0, 0, 0, tiny, lr=1, eps=tiny)[0] - size,
        lambda: tiny - size,
    )


HIT = Function("hit", real=True)


@proof("K6", score=says("", over(u, HIT(output(b[a]))), "=", over(u, HIT(output(0)))))
def same_accuracy_at_every_epoch(claim) -> Iterator[Part]:
    yield equal(
        "What can be proved of this measurement is why it came out so: by K3 both runs have the same head at every "
        "epoch, by K1 the same outputs, so the same hits, counted over the sentences u.",
        claim.score,
        called=NAMES,
    )


DECAY, Y = Symbol("λ", positive=True), Symbol("y", nonnegative=True)
AT_REST = Subs(adam(BIAS, M1, M2, SLOPE_B, **OPTIONS, decay=DECAY)[0], (M1, M2, SLOPE_B), (0, 0, 0))


@proof(
    "K7",
    shrinks=says("", AT_REST, "=", (1 - LR * DECAY) * BIAS),
    norm=says("", over(a, (b[a] / (1 + Y)) ** 2), "≤", over(a, b[a] ** 2)),
)
def b_k_stays_where_it_started(claim) -> Iterator[Part]:
    yield exactly(
        "What can be proved of this measurement is why b_k stayed small: by K2, AdamW does nothing but shrink it,",
        claim.shrinks,
    )
    yield bounded(
        "so its norm never grows (the factor 1 − ηλ written as 1/(1 + y)); the other biases are not bound like this.",
        claim.norm,
        slack=over(a, b[a] ** 2 * Y * (2 + Y) / (1 + Y) ** 2),
    )
