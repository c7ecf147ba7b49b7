"""R1 and R2: LoRA, VeRA and DoRA on a bias.

A bias of rc entries is written row by row into an r×c matrix, so that it can have a rank. Each form then adds to the
frozen bias b a Δ with fewer trainable parameters (the official code's letters: A is k×r, B is c×k, s = α/k):
    LoRA    Δ = s (AᵀBᵀ)                            A random, B = 0 at the start
    VeRA    Δ = s (Aᵀ diag(λ) Bᵀ diag(μ))           A and B frozen, λ (k numbers) and μ (c numbers) trained
    VeRA1D  Δ = s λ·1                               one number
    DoRA    Δ = s t (b + BA)/‖b + BA‖               t a trained length, ‖b‖ at the start; B = 0 there
None of this changes what K1 to K3 and V1 say, because they hold for every bias, however it is parametrised.
"""

from collections.abc import Iterator
from random import Random

from sympy import Derivative, Expr, Function, Matrix, MatrixBase, Min, Subs, Symbol, diag, symbols, zeros

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES as KEY_CASES
from minibeft.proofs.key_bias import row, weights
from minibeft.proofs.notation import G, a, e, f, i, j, k, over, q, s, softmax, table, v
from minibeft.proofs.relation import Quantity, says
from minibeft.proofs.statement import PROVED, Counterexample, Part, needed, proof
from minibeft.proofs.steps import at_sizes, equal, exactly
from minibeft.proofs.training import key_gradient
from minibeft.proofs.value_bias import CASES as VALUE_CASES
from minibeft.proofs.value_bias import SHIFT, P, shifted


def lora(low: MatrixBase, high: MatrixBase) -> MatrixBase:
    """AᵀBᵀ."""
    return low.T * high.T


def vera(low: MatrixBase, high: MatrixBase, inner: list, outer: list) -> MatrixBase:
    """Aᵀ diag(λ) Bᵀ diag(μ)."""
    return low.T * diag(*inner) * high.T * diag(*outer)


def drawn(rows: int, columns: int) -> Matrix:
    """A matrix drawn at random, without a zero."""
    random = Random(f"{rows} {columns}")
    return Matrix(rows, columns, lambda *_: random.randint(1, 99))


def jacobian_rank(form: MatrixBase, parameters: list[Symbol]) -> int:
    """The dimension that a form reaches: the rank of its derivative at a random point."""
    random = Random(0)
    point = {x: random.randint(1, 99) for x in parameters}
    return Matrix(list(form)).jacobian(parameters).subs(point).rank()


def variables(name: str, rows: int, columns: int) -> Matrix:
    return Matrix(rows, columns, lambda at, to: Symbol(f"{name}{at}_{to}"))


def diagonals(c: int, k: int) -> tuple[list[Symbol], list[Symbol]]:
    return list(symbols(f"λ:{k}")), list(symbols(f"μ:{c}"))


def target(r: int, c: int, k: int) -> MatrixBase:
    """A matrix of rank at most k."""
    return drawn(r, k) * drawn(k + 1, c)[:k, :]


def factored(r: int, c: int, k: int) -> MatrixBase:
    """Its pivot columns times its reduced row echelon form, as LoRA's AᵀBᵀ with k rows at most."""
    rows, pivots = target(r, c, k).rref()
    return lora(target(r, c, k)[:, list(pivots)[:k]].T, rows[: len(pivots), :].T)


def lora_parameters(r: int, c: int, k: int) -> list[Symbol]:
    return [*variables("A", k, r), *variables("B", c, k)]


def lora_count(r: int, c: int, k: int) -> int:
    return len(lora_parameters(r, c, k))


def vera_count(r: int, c: int, k: int) -> int:
    return sum(map(len, diagonals(c, k)))


def dora_count(r: int, c: int, k: int) -> int:
    return len([*lora_parameters(r, c, k), LENGTH])


def lora_dimension(r: int, c: int, k: int) -> int:
    return jacobian_rank(lora(variables("A", k, r), variables("B", c, k)), lora_parameters(r, c, k))


def vera_dimension(r: int, c: int, k: int) -> int:
    inner, outer = diagonals(c, k)
    return jacobian_rank(vera(drawn(k, r), drawn(c, k), inner, outer), [*inner, *outer])


def silent(r: int, c: int, k: int) -> MatrixBase:
    """VeRA with λ = 0 next to VeRA with μ = 0."""
    low, high, (inner, outer) = variables("A", k, r), variables("B", c, k), diagonals(c, k)
    return vera(low, high, [0] * k, outer).row_join(vera(low, high, inner, [0] * c))


def undone(r: int, c: int, k: int) -> MatrixBase:
    """adj(A Aᵀ) A Δ."""
    low, high, (inner, outer) = variables("A", k, r), variables("B", c, k), diagonals(c, k)
    return (low * low.T).adjugate() * low * vera(low, high, inner, outer)


def left_over(r: int, c: int, k: int) -> MatrixBase:
    """det(A Aᵀ) diag(λ) Bᵀ diag(μ)."""
    low, high, (inner, outer) = variables("A", k, r), variables("B", c, k), diagonals(c, k)
    return (low * low.T).det() * diag(*inner) * high.T * diag(*outer)


def fits(r: int, c: int, k: int) -> bool:
    return k <= r


R, C, K = symbols("r c k")
LEAST = Min(R, C, K)
REACH = "With b viewed as r×c and scale s: LoRA adds every Δ of rank ≤ k and no other"
ZERO, ONLY = "0 if a diagonal is", "and only then where k ≤ r, A has rank k and B no entry 0"
ONE, SCALE, LENGTH = Symbol("λ", real=True), Symbol("s", positive=True), Symbol("t", positive=True)
BIAS = Matrix(symbols("b₁ b₂", positive=True))
DIRECTION = Matrix(symbols("x y", real=True))  # b + Δ
FORM, START = "b + s·t·(b+Δ)/‖b+Δ‖", "from (1 + s)b"


U1, U2 = symbols("u v", real=True)  # what DoRA adds to b


def dora(direction: MatrixBase, size: Expr) -> MatrixBase:
    return BIAS + SCALE * size * direction / direction.norm()


@proof(
    "R1",
    rank=says(REACH, Quantity("rank(AᵀBᵀ)", lambda r, c, k: lora(drawn(k, r), drawn(c, k)).rank()), "≤", K),
    every=says(REACH, Quantity("X[:, pivots]·rref(X)", factored), "=", Quantity("X of rank ≤ k", target)),
    count=says("by k(r + c) numbers", Quantity("entries of A and B", lora_count), "=", K * (R + C)),
    dimension=says("", Quantity("dimension that LoRA reaches", lora_dimension), "=", LEAST * (R + C - LEAST)),
    start=says(
        "from 0",
        Quantity("Aᵀ 0", lambda r, c, k: lora(variables("A", k, r), zeros(c, k))),
        "=",
        Quantity("0", lambda r, c, k: zeros(r, c)),
    ),
    vera_count=says(
        "VeRA: k + c numbers",
        Quantity("entries of λ and μ", vera_count),
        "=",
        K + C,
    ),
    vera_dimension=says(
        "dimension ≤ k + c − 1", Quantity("dimension that VeRA reaches", vera_dimension), "=", Min(K + C - 1, R * C)
    ),
    vera_most=says("dimension ≤ k + c − 1", Quantity("dimension that VeRA reaches", vera_dimension), "≤", K + C - 1),
    vera_zero=says(
        ZERO, Quantity("Δ at λ = 0, and at μ = 0", silent), "=", Quantity("0", lambda r, c, k: zeros(r, 2 * c))
    ),
    vera_only=says(ONLY, Quantity("adj(A Aᵀ) A Δ", undone), "=", Quantity("det(A Aᵀ) diag(λ) Bᵀ diag(μ)", left_over)),
    vera1d=says("VeRA1D: one number, the line ℝ·1", Subs(SCALE * ONE, ONE, 1), "=", SCALE),
    dora_count=says(
        "DoRA: one more than LoRA",
        Quantity("entries of A and B, and t", dora_count),
        "=",
        K * (R + C) + 1,
    ),
    dora_length=says(FORM, (dora(DIRECTION, LENGTH) - BIAS).norm(), "=", SCALE * LENGTH),
    dora_direction=says(
        FORM, Subs(U1 * DIRECTION[1] - U2 * DIRECTION[0], (U1, U2), tuple(dora(DIRECTION, LENGTH) - BIAS)), "=", 0
    ),
    dora_first=says(START, dora(BIAS, BIAS.norm())[0], "=", (1 + SCALE) * BIAS[0]),
    dora_second=says(START, dora(BIAS, BIAS.norm())[1], "=", (1 + SCALE) * BIAS[1]),
)
def what_a_reparametrised_bias_reaches(claim) -> Iterator[Part]:
    yield at_sizes("LoRA reaches no rank beyond k: AᵀBᵀ is a sum of k products of two vectors.", claim.rank, 3, "r c k")
    yield at_sizes(
        "And every rank up to k: a matrix is its pivot columns times its reduced row echelon form.",
        claim.every,
        3,
        "r c k",
    )
    yield at_sizes("LoRA has k(r + c) numbers", claim.count, 3, "r c k", level=PROVED)
    yield at_sizes(
        "and reaches a set of dimension κ(r + c − κ), κ = min(r, c, k): all of it from k = min(r, c) on.",
        claim.dimension,
        3,
        "r c k",
    )
    yield at_sizes("It starts at Δ = 0, where B = 0.", claim.start, 3, "r c k", level=PROVED)
    yield at_sizes("VeRA has k + c numbers", claim.vera_count, 3, "r c k", level=PROVED)
    yield at_sizes(
        "and reaches no dimension beyond k + c − 1, as twice λ and half μ is the same Δ:",
        claim.vera_most,
        3,
        "r c k",
    )
    yield at_sizes(
        "that one for k ≤ r.",
        claim.vera_dimension,
        3,
        "r c k",
        fits,
    )
    yield at_sizes(
        "VeRA is 0 where λ or μ is. (The official code draws both: it does not start there.)",
        claim.vera_zero,
        3,
        "r c k",
        level=PROVED,
    )
    yield at_sizes(
        "Where A has rank k, det(A Aᵀ) is not 0: Δ = 0 leaves λ_a B_ca μ_c = 0 for all a and c, and as no B_ca is 0, "
        "every λ_a or every μ_c is.",
        claim.vera_only,
        2,
        "r c k",
        fits,
        PROVED,
    )
    yield exactly("VeRA1D adds s λ·1, the multiples of 1 alone; it starts at s, where λ = 1.", claim.vera1d)
    yield at_sizes("DoRA has LoRA's numbers, and t.", claim.dora_count, 3, "r c k", level=PROVED)
    yield exactly("It reaches every length s·t", claim.dora_length, scope="two entries")
    yield exactly(
        "in the direction of b + Δ: nothing at a right angle to it.", claim.dora_direction, scope="two entries"
    )
    yield exactly(
        "It starts at (1 + s) b, where Δ = 0 and t = ‖b‖, and not at b: the first entry,",
        claim.dora_first,
        scope="two entries",
    )
    yield exactly("and the second.", claim.dora_second, scope="two entries")
    yield Counterexample(
        "nonzero",
        "b = 0 has no direction: DoRA starts at 0/0. A bias-free model has no DoRA form.",
        "‖b‖, by which DoRA divides at its start,",
        lambda: Matrix([3, 4]).norm(),
        lambda: Matrix([0, 0]).norm(),
        undefined=True,
    )


NUMBER = Symbol("θ", real=True)
MADE = Function("g", real=True)(a, NUMBER)  # entry a of the bias: any function of the parameters
JACOBIAN = table("J", real=True)
HOLD = "K1 to K3 and V1 hold for every bias b = g(θ)"


@proof(
    "R2",
    weights=says(HOLD, softmax(s * over(a, q[i, a] * (k[j, a] + MADE))), "=", softmax(s * over(a, q[i, a] * k[j, a]))),
    shift=says(HOLD, over(j, P * (v[j, a] + MADE)), "=", over(j, P * v[j, a]) + MADE),
    chain=says(
        "∂L/∂θ = Jᵀ ∂L/∂b",
        Derivative(over(a, G[i, a] * MADE), NUMBER),
        "=",
        over(a, G[i, a] * Derivative(MADE, NUMBER)),
    ),
    gradient=says("0 stays 0", over(e, JACOBIAN[e, f] * key_gradient(e)), "=", 0),
)
def parametrisation_changes_none_of_it(claim) -> Iterator[Part]:
    yield equal(
        "K1 and K3 with b_k = g(θ): the output is the same, so everything trained next to it is.", claim.weights
    )
    yield equal("V1 with b_v = g(θ).", claim.shift)
    yield equal("The gradient of a loss with ∂L/∂b_a = G_a is J's columns against G.", claim.chain)
    yield equal(
        "K2: every ∂L/∂b_a of b_k is 0, and so is every ∂L/∂θ. Adam leaves θ where it is.",
        claim.gradient,
        called={key_gradient(e): table("g", real=True)[e]},
    )
    yield from needed(("P(0)", "P(b_k)"), weights, KEY_CASES)
    own = {key: case for key, case in VALUE_CASES.items() if key != "no-sink"}
    yield from needed(SHIFT, shifted, own)
    x = Symbol("x", positive=True)
    one = Head(q=row(1), k=row(0), v=row(1))
    yield Counterexample(
        "own-parameters",
        "One number that is both b_k and b_v: as b_v it has a gradient.",
        "∂O/∂θ",
        lambda: one.but(b_k=row(x)).heads().diff(x),
        lambda: one.but(b_k=row(x), b_v=row(x)).heads().diff(x),
    )
