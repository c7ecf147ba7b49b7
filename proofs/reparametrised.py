"""R1 and R2: LoRA, VeRA and DoRA on a bias.

A bias of rc numbers is written row by row into an r×c matrix, so that it can have a rank. Each form then adds to the
frozen bias b a Δ made of fewer numbers (the official code's letters: A is k×r, B is c×k, s = α/k):
    LoRA    Δ = s (AᵀBᵀ)                            A random, B = 0 at the start
    VeRA    Δ = s (Aᵀ diag(λ) Bᵀ diag(μ))           A and B frozen, λ (k numbers) and μ (c numbers) trained
    VeRA1D  Δ = s λ·1                               one number
    DoRA    Δ = s t (b + BA)/‖b + BA‖               t a trained length, ‖b‖ at the start; B = 0 there
None of it changes what K1 to K3 and V1 say, which never asked where a bias comes from.
"""

from collections.abc import Iterator
from random import Random

from sympy import Expr, Function, Matrix, MatrixBase, Symbol, diag, symbols, zeros

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES as KEY_CASES
from minibeft.proofs.key_bias import residual, row
from minibeft.proofs.notation import a, f, i, j, k, over, q, s, softmax, table, v
from minibeft.proofs.statement import PROVED, Counterexample, Part, Relation, Step, needed, proof
from minibeft.proofs.steps import at_sizes, equal, exactly
from minibeft.proofs.training import key_gradient
from minibeft.proofs.value_bias import CASES as VALUE_CASES
from minibeft.proofs.value_bias import P, shift_residual


def lora(low: MatrixBase, high: MatrixBase) -> MatrixBase:
    """AᵀBᵀ."""
    return low.T * high.T


def vera(low: MatrixBase, high: MatrixBase, inner: list, outer: list) -> MatrixBase:
    """Aᵀ diag(λ) Bᵀ diag(μ)."""
    return low.T * diag(*inner) * high.T * diag(*outer)


def jacobian_rank(form: MatrixBase, parameters: list[Symbol], random: Random) -> int:
    """The dimension that a form reaches: the rank of its derivative at a random point."""
    point = {x: random.randint(1, 99) for x in parameters}
    return Matrix(list(form)).jacobian(parameters).subs(point).rank()


def variables(name: str, rows: int, columns: int) -> Matrix:
    return Matrix(rows, columns, lambda at, to: Symbol(f"{name}{at}_{to}"))


@proof(
    "R1",
    lora_count=lambda r, c, k: k * (r + c),
    lora_dimension=lambda r, c, k: min(k, r, c) * (r + c - min(k, r, c)),
    vera_count=lambda r, c, k: k + c,
    vera_dimension=lambda r, c, k: k + c - 1,
    dora_start=lambda bias, scale: (1 + scale) * bias,
)
def what_a_reparametrised_bias_reaches(claim) -> Iterator[Part]:
    random = Random(0)

    def low_rank(r: int, c: int, k: int) -> bool:
        low, high = (Matrix(k, r, lambda *_: random.randint(1, 99)), Matrix(c, k, lambda *_: random.randint(1, 99)))
        return lora(low, high).rank() == min(k, r, c)

    yield at_sizes(
        "LoRA reaches no rank beyond k: AᵀBᵀ is a sum of k products of two vectors.",
        [Relation("rank(AᵀBᵀ)", "≤", "k")],
        3,
        "r c k",
        low_rank,
    )

    def factored(r: int, c: int, k: int) -> bool:
        target = Matrix(r, k, lambda *_: random.randint(1, 9)) * Matrix(k, c, lambda *_: random.randint(1, 9))
        rows, pivots = target.rref()
        low, high = target[:, list(pivots)].T, rows[: len(pivots), :].T
        return len(pivots) <= k and lora(low, high) == target

    yield at_sizes(
        "And every rank up to k: a matrix is its pivot columns times its reduced row echelon form.",
        [Relation("X[:, pivots]·rref(X)", "=", "X")],
        3,
        "r c k",
        factored,
    )

    def lora_reach(r: int, c: int, k: int) -> bool:
        low, high = variables("A", k, r), variables("B", c, k)
        parameters = [*low, *high]
        counted = len(parameters) == claim.lora_count(r, c, k)
        return counted and jacobian_rank(lora(low, high), parameters, random) == claim.lora_dimension(r, c, k)

    yield at_sizes(
        "LoRA has k(r + c) numbers and reaches a set of dimension k(r + c − k): all of it from k = min(r, c) on.",
        [Relation("dimension", "=", "k(r + c − k), k ≤ min(r, c)")],
        3,
        "r c k",
        lora_reach,
    )

    def vera_reach(r: int, c: int, k: int) -> bool:
        low, high = (Matrix(k, r, lambda *_: random.randint(1, 99)), Matrix(c, k, lambda *_: random.randint(1, 99)))
        inner, outer = symbols(f"λ:{k}"), symbols(f"μ:{c}")
        parameters = [*inner, *outer]
        counted = len(parameters) == claim.vera_count(r, c, k)
        dimension = jacobian_rank(vera(low, high, list(inner), list(outer)), parameters, random)
        attained = dimension == min(claim.vera_dimension(r, c, k), r * c) if k <= r else True
        return counted and dimension <= claim.vera_dimension(r, c, k) and attained

    yield at_sizes(
        "VeRA has k + c numbers and reaches dimension k + c − 1, attained for k ≤ r: twice λ and half μ is the same Δ.",
        [Relation("dimension", "≤", "k + c − 1")],
        3,
        "r c k",
        vera_reach,
    )
    yield from starts(claim)
    yield from dora(claim)


def starts(claim) -> Iterator[Step]:
    """The value at initialisation."""

    def zero(r: int, c: int, k: int) -> bool:
        low, high = variables("A", k, r), variables("B", c, k)
        inner, outer = list(symbols(f"λ:{k}")), list(symbols(f"μ:{c}"))
        silent = (lora(low, zeros(c, k)), vera(low, high, [0] * k, outer), vera(low, high, inner, [0] * c))
        return all(x.is_zero_matrix for x in silent) and not vera(low, high, inner, outer).is_zero_matrix

    yield at_sizes(
        "LoRA starts at Δ = 0, where B = 0; VeRA does if λ or μ does. (The official code draws both: it does not.)",
        [Relation("Aᵀ 0", "=", "0")],
        3,
        "r c k",
        zero,
        level=PROVED,
    )
    one, scale = Symbol("λ", real=True), Symbol("s", positive=True)
    yield exactly(
        "VeRA1D reaches the multiples of 1 alone, and starts at s, where λ = 1.", (scale * one).subs(one, 1), scale
    )


def dora(claim) -> Iterator[Part]:
    """Direction and length apart."""
    x, y, scale, length = *symbols("b₁ b₂", positive=True), *symbols("s t", positive=True)
    bias = Matrix([x, y])

    def form(direction: MatrixBase, size: Expr) -> MatrixBase:
        return bias + scale * size * direction / direction.norm()

    for at in (0, 1):
        start = claim.dora_start(bias[at], scale)
        yield exactly(
            f"DoRA starts at (1 + s) b, entry {at + 1}, and not at b.",
            form(bias, bias.norm())[at],
            start,
            "two entries",
        )
    direction = Matrix(symbols("x y", real=True))  # b + Δ
    reached = (form(direction, length) - bias).norm()
    yield exactly("It reaches every length in the direction of b + Δ.", reached, scale * length, "two entries")
    yield Counterexample(
        "nonzero",
        "b = 0 has no direction: DoRA starts at 0/0. A bias-free model has no DoRA form.",
        "‖b‖, by which DoRA divides at its start,",
        lambda: Matrix([3, 4]).norm(),
        lambda: Matrix([0, 0]).norm(),
        undefined=True,
    )


MADE = Function("g", real=True)(a, Symbol("θ", real=True))  # entry a of the bias: any function of the parameters


@proof("R2", gradient=0, shift=MADE)
def parametrisation_changes_none_of_it(claim) -> Iterator[Part]:
    yield equal(
        "K1 and K3 with b_k = g(θ): the output is the same, so everything trained next to it is.",
        softmax(s * over(a, q[i, a] * (k[j, a] + MADE))),
        softmax(s * over(a, q[i, a] * k[j, a])),
    )
    jacobian = table("J", real=True)
    yield equal(
        "K2: ∂L/∂θ = Jᵀ ∂L/∂b_k, and every ∂L/∂b_a is 0. Adam leaves θ where it is.",
        over(a, jacobian[a, f] * key_gradient(a)),
        claim.gradient,
        called={key_gradient(a): table("g")[a]},
    )
    yield equal("V1 with b_v = g(θ).", over(j, P * (v[j, a] + MADE)), over(j, P * v[j, a]) + claim.shift)
    yield from needed("P(b_k) − P(0)", residual, KEY_CASES)
    own = {key: case for key, case in VALUE_CASES.items() if key != "no-sink"}
    yield from needed("O(b_v) − O(0) − 1 b_vᵀ", shift_residual, own)
    x = Symbol("x", positive=True)
    one = Head(q=row(1), k=row(0), v=row(1))
    yield Counterexample(
        "own-parameters",
        "One number that is both b_k and b_v: as b_v it has a gradient.",
        "∂O/∂θ",
        lambda: one.but(b_k=row(x)).heads().diff(x),
        lambda: one.but(b_k=row(x), b_v=row(x)).heads().diff(x),
    )
