"""I1 to I3: what the importance measures of a bias term say (b before, b' after fine-tuning)."""

from collections.abc import Iterator

from sympy import Abs, Expr, Matrix, Max, Min, Subs, Symbol, cos, pi, sin, sqrt, symbols

from minibeft.proofs.notation import G, a, b, d, e, i, n, over, share, table, u, y
from minibeft.proofs.relation import SYMMETRIC, says
from minibeft.proofs.statement import Counterexample, Part, proof
from minibeft.proofs.steps import bounded, equal, exactly, symmetric
from minibeft.proofs.training import key_gradient

NEW = table("b'", real=True)
INNER = over(a, b[a] * NEW[a])
SHORT, SCALE = symbols("‖b‖ c", positive=True)
X, W = symbols("x w", nonnegative=True)
LONG = SHORT + X  # ‖b'‖; that it is the longer one is no loss, the measure is symmetric


def mag_angle(inner: Expr, first: Expr, second: Expr) -> Expr:
    """I of ⟨b, b'⟩, ‖b‖ and ‖b'‖."""
    return 1 - inner / (first * second) * Min(first, second) / Max(first, second)


BETWEEN = Symbol("⟨b,b'⟩", real=True)
FIRST, SECOND = symbols("x y", positive=True)  # two lengths
LENGTHS = mag_angle(BETWEEN, FIRST, SECOND)
ANGLE = Symbol("φ", real=True)
TURN = Matrix([[cos(ANGLE), -sin(ANGLE)], [sin(ANGLE), cos(ANGLE)]])
OLD, RENEWED = Matrix(symbols("b₁ b₂", real=True)), Matrix(symbols("b'₁ b'₂", real=True))
MOST, LEAST = SHORT * LONG - W, W - SHORT * LONG  # ⟨b,b'⟩ with w ≥ 0 to either end
INVARIANT, ONLY, ACUTE, BEYOND = (
    "invariant to a common scale and rotation",
    "0 iff b' = b",
    "at most 1 for angles up to 90°",
    "at most 2 beyond",
)


@proof(
    "I1",
    measure=says(
        "I = 1 − cos∠(b,b')·min(‖b‖,‖b'‖)/max(‖b‖,‖b'‖)",
        Subs(LENGTHS, (FIRST, SECOND), (SHORT, LONG)),
        "=",
        1 - BETWEEN / LONG**2,
    ),
    symmetric=says("symmetric", LENGTHS, SYMMETRIC, (FIRST, SECOND)),
    scale=says(
        INVARIANT,
        mag_angle(SCALE**2 * BETWEEN, SCALE * SHORT, (SCALE * LONG).expand()),
        "=",
        mag_angle(BETWEEN, SHORT, LONG),
    ),
    turned=says(INVARIANT, (TURN * OLD).dot(TURN * RENEWED), "=", OLD.dot(RENEWED)),
    cauchy=says("", INNER**2, "≤", over(a, b[a] ** 2) * over(a, NEW[a] ** 2)),
    least=says("", 0, "≤", mag_angle(MOST, SHORT, LONG)),
    most=says(BEYOND, mag_angle(LEAST, SHORT, LONG), "≤", 2),
    opposite=says(BEYOND, Subs(mag_angle(BETWEEN, SHORT, SHORT), BETWEEN, -(SHORT**2)), "=", 2),
    acute=says(ACUTE, mag_angle(W, SHORT, LONG), "≤", 1),
    itself=says(ONLY, Subs(mag_angle(BETWEEN, SHORT, SHORT), BETWEEN, SHORT**2), "=", 0),
    apart=says(ONLY, over(a, (b[a] - NEW[a]) ** 2), "=", over(a, b[a] ** 2) + over(a, NEW[a] ** 2) - 2 * INNER),
    none=says(ONLY, Subs(1 - BETWEEN / LONG**2, BETWEEN, LONG**2), "=", 0),
    equal=says(ONLY, SHORT**2 + LONG**2 - 2 * LONG**2, "≤", 0),
)
def mag_and_angle(claim) -> Iterator[Part]:
    yield symmetric("Symmetric in ‖b‖ and ‖b'‖, as ⟨b,b'⟩ is.", claim.symmetric)
    yield exactly("With x = ‖b'‖ − ‖b‖ ≥ 0 it is 1 − ⟨b,b'⟩/‖b'‖²,", claim.measure)
    yield exactly("so a common scale c changes nothing,", claim.scale)
    yield exactly(
        "nor does a rotation, which keeps inner products (plane by plane: every rotation is a product of such).",
        claim.turned,
    )
    squares = over(a, over(e, (b[a] * NEW[e] - b[e] * NEW[a]) ** 2)) / 2
    yield bounded("|⟨b,b'⟩| ≤ ‖b‖‖b'‖ (Cauchy and Schwarz, by Lagrange's identity):", claim.cauchy, slack=squares)
    yield bounded("so it is at least 0", claim.least, slack=(X * LONG + W) / LONG**2)
    yield bounded("and at most 2,", claim.most, slack=(X * LONG + W) / LONG**2)
    yield exactly("which b' = −b attains.", claim.opposite)
    yield bounded("For angles up to 90°, ⟨b,b'⟩ = w ≥ 0, it is at most 1.", claim.acute, slack=W / LONG**2)
    yield exactly("It is 0 for b' = b.", claim.itself)
    yield equal("Conversely ‖b − b'‖² = ‖b‖² + ‖b'‖² − 2⟨b,b'⟩;", claim.apart)
    yield exactly("if the measure is 0 then ⟨b,b'⟩ = ‖b'‖²;", claim.none)
    yield bounded("so ‖b − b'‖² ≤ 0, and b' = b.", claim.equal, slack=X * (2 * SHORT + X))
    yield Counterexample(
        "nonzero",
        "b = 0, as where a bias has just been added to a bias-free model, and b' = (3, 4): 0/0 has no angle.",
        "‖b‖‖b'‖, by which I divides,",
        lambda: Matrix([3, 4]).norm() * Matrix([3, 4]).norm(),
        lambda: Matrix([0, 0]).norm() * Matrix([3, 4]).norm(),
        undefined=True,
    )


def magnitude(old: Expr, new: Expr) -> Expr:
    """I of the entries of b and b'."""
    return over(a, Abs(new - old)) / d


def between(old: Expr, new: Expr) -> Expr:
    """The same, before anything is put in: sympy would simplify at once what the step is to show."""
    x, y = symbols("x y", real=True)
    return over(a, Subs(Abs(y - x), (x, y), (old, new))) / d


METRIC = "I = mean |b' − b| is a metric"
SIGN = share("A")[a]
UP, DOWN, RIGHT, LEFT = (table(name, nonnegative=True)[a] for name in ("x⁺", "x⁻", "y⁺", "y⁻"))
CHANGE = (UP - DOWN) + (RIGHT - LEFT)
COMMON = table("t", real=True)
TURNED = Matrix([[cos(ANGLE), -sin(ANGLE)], [sin(ANGLE), cos(ANGLE)]]) * Matrix([1, 0])  # the change (1, 0), turned


@proof(
    "I2",
    symmetric=says(METRIC, magnitude(b[a], NEW[a]), SYMMETRIC, (b, NEW)),
    sign=says(METRIC, 0, "≤", magnitude(b[a], NEW[a])),
    itself=says(METRIC, magnitude(b[a], b[a]), "=", 0),
    triangle=says(METRIC, over(a, (2 * SIGN - 1) * CHANGE) / d, "≤", over(a, UP + DOWN + RIGHT + LEFT) / d),
    scale=says(
        "scales with its arguments", magnitude(SCALE * b[a], SCALE * NEW[a]), "=", SCALE * magnitude(b[a], NEW[a])
    ),
    shift=says("", between(b[a] + COMMON[a], NEW[a] + COMMON[a]), "=", magnitude(b[a], NEW[a])),
    turned=says(
        "it is not invariant to a rotation", Subs(Abs(TURNED[0]) + Abs(TURNED[1]), ANGLE, pi / 4), "=", sqrt(2)
    ),
)
def magnitude_is_a_metric(claim) -> Iterator[Part]:
    yield symmetric("Symmetric.", claim.symmetric)
    there = magnitude(b[a], NEW[a])
    yield bounded("Not negative, and a sum of absolute values, so 0 only if every entry is.", claim.sign, slack=there)
    yield equal("0 for b' = b.", claim.itself)
    yield bounded(
        "Triangle inequality: changes x = x⁺ − x⁻ and y = y⁺ − y⁻ add up; |x + y| = (2A − 1)(x + y) for A = 0 or 1.",
        claim.triangle,
        slack=over(a, (1 - SIGN) * (UP + RIGHT) * 2 + SIGN * (DOWN + LEFT) * 2) / d,
    )
    yield equal("It scales with its arguments,", claim.scale)
    yield equal("and sees no common shift t.", claim.shift)
    yield exactly("A rotation does change it: the change (1, 0), turned by 45°, has √2 instead of 1.", claim.turned)


KEPT = share("φ")
MEAN_SQUARE = over(i, over(a, G[i, a] ** 2 * KEPT[i] / over(e, G[i, e] ** 2))) / (n * d)
TOGETHER = over(i, over(u, over(a, G[u, i, a] ** 2 * KEPT[i] / over(y, over(e, G[y, i, e] ** 2))))) / n
FISHER = over(i, over(a, G[i, a] ** 2)) / (n * d)
CLIPPED = "I = mean over batches of mean g², g clipped to joint norm 1"
NOUGHT = "0 iff every gradient is 0 (as for b_k)"


@proof(
    "I3",
    clipped=says(CLIPPED, Subs(FIRST / Max(1, FIRST), FIRST, 1 + X), "=", 1),
    joint=says("", TOGETHER, "≤", 1),
    sign=says(NOUGHT, 0, "≤", FISHER),
    keys=says(NOUGHT, over(e, key_gradient(e) ** 2) / d, "=", 0),
    bound=says("at most 1/d", MEAN_SQUARE, "≤", 1 / d),
)
def fisher(claim) -> Iterator[Part]:
    yield exactly("Clipping a gradient of norm 1 + x leaves norm 1; a shorter one it leaves alone.", claim.clipped)
    yield bounded("A mean of squares: not negative, and 0 only if every gradient is.", claim.sign, slack=FISHER)
    yield equal("For b_k every gradient is (K2).", claim.keys, called={key_gradient(e): table("g", real=True)[e]})
    yield bounded(
        "Terms u that are clipped together share that: the sum of d·I over them is at most 1.",
        claim.joint,
        slack=over(i, 1 - KEPT[i]) / n,
    )
    yield bounded(
        "With φ_i = min(1, ‖g_i‖²) left of the squared norm in batch i, one term has at most 1/d.",
        claim.bound,
        slack=over(i, 1 - KEPT[i]) / (n * d),
    )
