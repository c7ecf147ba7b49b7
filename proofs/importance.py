"""I1 to I3: what the importance measures of a bias term say (b before, b' after fine-tuning)."""

from collections.abc import Iterator

from sympy import Abs, Expr, Integer, Matrix, Max, Min, Symbol, cos, pi, sin, sqrt, symbols

from minibeft.proofs.notation import G, a, b, d, e, i, n, over, share, table, u, y
from minibeft.proofs.statement import Counterexample, Part, proof
from minibeft.proofs.steps import bounded, equal, exactly
from minibeft.proofs.training import key_gradient

NEW = table("b'", real=True)
INNER = over(a, b[a] * NEW[a])
SHORT, SCALE = symbols("‖b‖ c", positive=True)
X, W = symbols("x w", nonnegative=True)
LONG = SHORT + X  # ‖b'‖; that it is the longer one is no loss, the measure is symmetric


def mag_angle(inner: Expr, first: Expr, second: Expr) -> Expr:
    """I of ⟨b, b'⟩, ‖b‖ and ‖b'‖."""
    return 1 - inner / (first * second) * Min(first, second) / Max(first, second)


@proof("I1", measure=mag_angle)
def mag_and_angle(claim) -> Iterator[Part]:
    inner = Symbol("⟨b,b'⟩", real=True)
    first, second = symbols("‖b‖ ‖b'‖", positive=True)
    measure = claim.measure
    yield exactly("Symmetric in b and b'.", measure(inner, first, second), measure(inner, second, first))
    yield exactly("With x = ‖b'‖ − ‖b‖ ≥ 0 it is 1 − ⟨b,b'⟩/‖b'‖²,", measure(inner, SHORT, LONG), 1 - inner / LONG**2)
    scaled = measure(SCALE**2 * inner, SCALE * SHORT, (SCALE * LONG).expand())
    yield exactly("so a common scale c changes nothing,", scaled, measure(inner, SHORT, LONG))
    angle = Symbol("φ", real=True)
    turn = Matrix([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    old, new = Matrix(symbols("b₁ b₂", real=True)), Matrix(symbols("b'₁ b'₂", real=True))
    yield exactly(
        "nor does a rotation, which keeps inner products (plane by plane: every rotation is a product of such).",
        (turn * old).dot(turn * new),
        old.dot(new),
    )
    norms = over(a, b[a] ** 2) * over(a, NEW[a] ** 2)
    squares = over(a, over(e, (b[a] * NEW[e] - b[e] * NEW[a]) ** 2)) / 2
    yield bounded("|⟨b,b'⟩| ≤ ‖b‖‖b'‖ (Cauchy and Schwarz, by Lagrange's identity):", INNER**2, norms, squares)
    most, least = SHORT * LONG - W, W - SHORT * LONG  # ⟨b,b'⟩ with w ≥ 0 to either end
    yield bounded("so it is at least 0", 0, measure(most, SHORT, LONG), (X * LONG + W) / LONG**2)
    yield bounded("and at most 2,", measure(least, SHORT, LONG), 2, (X * LONG + W) / LONG**2)
    yield exactly("which b' = −b attains.", measure(-(SHORT**2), SHORT, SHORT), 2, shown="1 − (−‖b‖²)/‖b‖²")
    yield bounded("For angles up to 90°, ⟨b,b'⟩ = w ≥ 0, it is at most 1.", measure(W, SHORT, LONG), 1, W / LONG**2)
    yield exactly("It is 0 for b' = b.", measure(SHORT**2, SHORT, SHORT), 0, shown="1 − ‖b‖²/‖b‖²")
    distance = over(a, (b[a] - NEW[a]) ** 2)
    yield equal(
        "Conversely ‖b − b'‖² = ‖b‖² + ‖b'‖² − 2⟨b,b'⟩;",
        distance,
        over(a, b[a] ** 2) + over(a, NEW[a] ** 2) - 2 * INNER,
    )
    yield exactly("if the measure is 0 then ⟨b,b'⟩ = ‖b'‖²;", measure(LONG**2, SHORT, LONG), 0, shown="1 − ‖b'‖²/‖b'‖²")
    yield bounded("so ‖b − b'‖² ≤ 0, and b' = b.", SHORT**2 + LONG**2 - 2 * LONG**2, 0, X * (2 * SHORT + X))
    yield Counterexample(
        "nonzero",
        "b = 0, as where a bias has just been added to a bias-free model, and b' = (3, 4): 0/0 has no angle.",
        "‖b‖‖b'‖, by which I divides,",
        lambda: Matrix([3, 4]).norm() * Matrix([3, 4]).norm(),
        lambda: Matrix([0, 0]).norm() * Matrix([3, 4]).norm(),
        undefined=True,
    )


@proof("I2", measure=lambda old, new: over(a, Abs(new - old)) / d)
def magnitude(claim) -> Iterator[Part]:
    measure = claim.measure
    there = measure(b[a], NEW[a])
    yield equal("Symmetric.", there, measure(NEW[a], b[a]))
    yield bounded("Not negative, and a sum of absolute values, so 0 only if every entry is.", 0, there, there)
    yield equal("0 for b' = b.", measure(b[a], b[a]), 0)
    first, second = share("A")[a], Symbol("d", integer=True, positive=True)
    up, down, right, left = (table(name, nonnegative=True)[a] for name in ("x⁺", "x⁻", "y⁺", "y⁻"))
    change = (up - down) + (right - left)
    yield bounded(
        "Triangle inequality: changes x = x⁺ − x⁻ and y = y⁺ − y⁻ add up; |x + y| = (2A − 1)(x + y) for A = 0 or 1.",
        over(a, (2 * first - 1) * change) / second,
        over(a, up + down + right + left) / second,
        over(a, (1 - first) * (up + right) * 2 + first * (down + left) * 2) / second,
    )
    yield equal("It scales with its arguments,", measure(SCALE * b[a], SCALE * NEW[a]), SCALE * there)
    old = table("t", real=True)
    yield equal("and sees no common shift t.", measure(b[a] + old[a], NEW[a] + old[a]), there)
    axis, diagonal = Matrix([1, 0]), Matrix([cos(pi / 4), sin(pi / 4)])
    sums = [sum(Abs(x) for x in vector) for vector in (axis, diagonal)]
    yield exactly(
        "A rotation does change it: the same change of length 1, turned by 45°.",
        sums[1] / sums[0],
        sqrt(2),
        "exact numbers",
        shown="(|cos 45°| + |sin 45°|)/(1 + 0)",
    )


@proof("I3", bound=1 / d, joint=Integer(1))
def fisher(claim) -> Iterator[Part]:
    size = Symbol("N", positive=True)
    kept = share("φ")
    yield exactly(
        "Clipping a gradient of norm 1 + x leaves norm 1; a shorter one it leaves alone.", (1 + X) / Max(1, 1 + X), 1
    )
    square = over(e, G[i, e] ** 2)
    yield bounded(
        "With φ_i = min(1, ‖g_i‖²) left of the squared norm in batch i, at most 1/d.",
        over(i, over(a, G[i, a] ** 2 * kept[i] / square)) / (n * d),
        claim.bound,
        over(i, 1 - kept[i]) / (n * d),
    )
    every = over(y, over(e, G[y, i, e] ** 2))
    yield bounded(
        "Terms u that are clipped together share that: the sum of d·I over them is at most 1.",
        over(i, over(u, over(a, G[u, i, a] ** 2 * kept[i] / every))) / n,
        claim.joint,
        over(i, 1 - kept[i]) / n,
    )
    fisher_ = over(i, over(a, G[i, a] ** 2)) / (n * d)
    yield bounded("A mean of squares: not negative, and 0 only if every gradient is.", 0, fisher_, fisher_)
    yield equal(
        "For b_k every gradient is (K2).",
        over(a, key_gradient(a) ** 2) / size,
        0,
        called={key_gradient(a): table("g")[a]},
    )
