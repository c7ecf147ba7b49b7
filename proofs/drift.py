"""K5, K6 and K7: what b_k does in a real training run, where its gradient is rounding noise instead of zero.

Adam divides a gradient by its own running size. That is harmless for a gradient that means something; noise it blows
up to the size of everything else, unless eps stands in the way.
"""

from collections.abc import Iterator

from sympy import Derivative, Function, Limit, Rational, Symbol, oo, sqrt, symbols

from minibeft.proofs.notation import a, b, over, u
from minibeft.proofs.statement import Counterexample, Part, proof
from minibeft.proofs.steps import bounded, equal, exactly, positive
from minibeft.proofs.training import adam, output

G, LR, EPS, X = symbols("g η ε x", positive=True)  # |g|, the learning rate, eps, and g/eps
B1, B2 = symbols("β₁ β₂", positive=True)
T = Symbol("t", integer=True, positive=True)


@proof("K5", step=LR * G / (G + EPS), drift=X / (1 + X), noisy=Rational(1, 2))
def adam_moves_b_k_by_rounding_noise(claim) -> Iterator[Part]:
    options = {"lr": LR, "b1": B1, "b2": B2, "eps": EPS}
    moved, first, second = adam(0, 0, 0, G, **options)
    yield exactly(
        "The first step under a gradient g > 0 of noise (for g < 0 the mirror image).",
        -moved,
        claim.step,
        shown="η·ĝ/(√ĝ² + ε), ĝ = (1 − β)g/(1 − β)",
    )
    held = (1 - B1**T) * G, (1 - B2**T) * G**2
    _, first, second = adam(0, *held, G, **options)
    yield exactly("While g stays, the first moment is (1 − β₁ᵗ) g: induction step,", first, held[0].subs(T, T + 1))
    yield exactly("and the second (1 − β₂ᵗ) g²,", second, held[1].subs(T, T + 1))
    unbiased = held[0] / (1 - B1**T) / (sqrt(held[1] / (1 - B2**T)) + EPS)
    yield exactly(
        "so every later step is as long as the first.", LR * unbiased, claim.step, shown="η·m̂/(√v̂ + ε), m̂ = g, v̂ = g²"
    )
    yield exactly(
        "The step, in units of η, depends on g and eps only through x = g/eps.",
        claim.step / LR,
        claim.drift.subs(X, G / EPS),
    )
    yield exactly("It grows with x:", Derivative(claim.drift, X), 1 / (1 + X) ** 2)
    yield positive("always.", 1 / (1 + X) ** 2)
    yield exactly(
        "Noise far above eps moves b_k by the whole learning rate, as far as any weight.", Limit(claim.drift, X, oo), 1
    )
    yield exactly("Noise far below eps moves it by η·x: in proportion to the noise.", Limit(claim.drift / X, X, 0), 1)
    tiny = Rational(1, 10**8)
    yield exactly(
        "Noise of 1e-8 at eps 1e-8 moves b_k by half the learning rate a step;",
        claim.drift.subs(X, tiny / tiny),
        claim.noisy,
        shown="1/(1 + 1)",
    )
    at_6 = claim.drift.subs(X, tiny / Rational(1, 10**6))
    yield exactly(
        "at eps 1e-6 by a fiftieth of that, on the same data: the drift tells eps, not use.",
        claim.noisy / at_6,
        Rational(101, 2),
        shown="(1/2)/(0.01/(1 + 0.01))",
    )
    yield Counterexample(
        "adaptive",
        "Plain gradient descent at g = eps = 1e-8, η = 1 moves b_k by the noise itself.",
        "step − η|g|/(|g| + eps)",
        lambda: -adam(0, 0, 0, tiny, lr=1, eps=tiny)[0] - claim.step.subs({LR: 1, G: tiny, EPS: tiny}),
        lambda: tiny - claim.step.subs({LR: 1, G: tiny, EPS: tiny}),
    )


@proof("K6", score=over(u, Function("hit", real=True)(output(0))))
def same_accuracy_at_every_epoch(claim) -> Iterator[Part]:
    yield equal(
        "What can be proved of this measurement is why it came out so: by K3 both runs have the same head at every "
        "epoch, by K1 the same outputs, so the same hits, counted over the sentences u.",
        over(u, Function("hit", real=True)(output(b[a]))),
        claim.score,
        called={output(b[a]): Symbol("O(b_k)"), output(0): Symbol("O(0)")},
    )


@proof("K7", factor=1 - LR * X, norm=over(a, b[a] ** 2))
def b_k_stays_where_it_started(claim) -> Iterator[Part]:
    start = Symbol("b", real=True)
    moved, _, _ = adam(start, 0, 0, 0, lr=LR, b1=B1, b2=B2, eps=EPS, decay=X)
    yield exactly(
        "What can be proved of this measurement is why b_k stayed small: by K2, AdamW does nothing but shrink it,",
        moved,
        claim.factor * start,
    )
    y = Symbol("y", nonnegative=True)
    norm = over(a, (b[a] / (1 + y)) ** 2)
    yield bounded(
        "so its norm never grows (the factor 1 − ηλ written as 1/(1 + y)); the other biases are not bound like this.",
        norm,
        claim.norm,
        over(a, b[a] ** 2 * y * (2 + y) / (1 + y) ** 2),
    )
