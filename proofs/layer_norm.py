"""K8 and V7: what a LayerNorm hides.

A LayerNorm gives γ∘x̂ + β, where the entries of x̂ sum to zero. So n·(γ∘x̂ + β) with n = 1/γ is n·β, the same number for
every token: what a key matrix reads along n is a key bias, and does nothing (K8). And it takes off the mean of what it
is given: a number that is added to all entries of a token passes every LayerNorm unseen (V7).
"""

from collections.abc import Callable, Iterator
from typing import Any

from sympy import (
    Add,
    Derivative,
    Expr,
    Function,
    Integer,
    Matrix,
    MatrixBase,
    Rational,
    Symbol,
    log,
    ones,
    sqrt,
    symbols,
)

from minibeft.proofs.head import Head
from minibeft.proofs.key_bias import CASES, row
from minibeft.proofs.notation import G, a, b, c, e, f, i, j, l, last, o, over, put, q, s, softmax, table, u, y
from minibeft.proofs.relation import MISSES, says
from minibeft.proofs.statement import Counterexample, Part, needed, proof
from minibeft.proofs.steps import equal, independent

GAMMA, BETA = table("γ", real=True, nonzero=True), table("β", real=True)
X, WK, T = (table(name, real=True) for name in ("x", "W", "t"))
RATE = table("r", positive=True)  # 1/√(variance + ε) of a token, or any other number


def read(index: Symbol, mean: Symbol) -> Expr:
    """An entry of y_j, what W_k reads of token j; the mean is taken over the other index."""
    return GAMMA[index] * RATE[j] * (X[j, index] - over(mean, X[j, mean]) / c) + BETA[index]


ALONG = over(o, read(o, f) / GAMMA[o])  # n·y_j
FIXED = over(o, BETA[o] / GAMMA[o])  # n·β


def key(moved: bool) -> Expr:
    """k_ja of W_k + t nᵀ, or of W_k, with b_k."""
    return over(o, (WK[a, o] + T[a] / GAMMA[o] if moved else WK[a, o]) * read(o, f)) + b[a]


def weights(moved: bool) -> Expr:
    return softmax(s * over(a, q[i, a] * key(moved)))


def gradient() -> Expr:
    """(∂L/∂W_k) n at row e, of any loss with ∂L/∂P_il = G_il."""
    logit = s * over(a, q[i, a] * (over(f, WK[a, f] * read(f, last)) + b[a]))
    return over(o, Derivative(over(i, over(l, G[i, l] * softmax(put(logit, j, l), l))), WK[e, o]) / GAMMA[o])


LORA_A, LORA_B = table("A", real=True), table("B", real=True)
ADAPTED = over(a, over(f, G[a, f] * (WK[a, f] + over(y, LORA_B[a, y] * LORA_A[y, f]))))  # a loss of W_k + B A
HIDDEN = "Behind a LayerNorm with γ ≠ 0 and with n = 1/γ, W_k + t nᵀ gives the same P as W_k for every t"


@proof(
    "K8",
    along=says(HIDDEN, ALONG, "=", FIXED),
    same=says(HIDDEN, ALONG, MISSES, j),
    keys=says(HIDDEN, key(moved=True), "=", key(moved=False) + T[a] * FIXED),
    weights=says(HIDDEN, weights(moved=True), "=", weights(moved=False)),
    gradient=says("(∂L/∂W_k) n = 0", gradient(), "=", 0),
)
def layer_norm_hides_a_key_bias(claim) -> Iterator[Part]:
    yield equal("The entries of x − mean(x) sum to zero, so n·y is n·β; r is 1/√(variance + ε).", claim.along)
    yield independent("It is the same for every token.", claim.same)
    yield equal("So t nᵀ adds one vector, t (n·β), to every key, as a b_k does,", claim.keys)
    yield equal("and P stays as it is (K1).", claim.weights)
    yield equal(
        "Scope: LoRA, W_k + B A. The gradient of A along n is Bᵀ (G n), G = ∂L/∂W_k: zero where G n is.",
        over(o, Derivative(ADAPTED, LORA_A[u, o]) / GAMMA[o]),
        over(a, LORA_B[a, u] * over(o, G[a, o] / GAMMA[o])),
    )
    yield equal(
        "Hence every loss is level along n: d directions of each key head's W_k get no gradient.", claim.gradient
    )
    yield from needed(("P(W_k)", "P(W_k + t nᵀ)"), moved, KEY_CASES)
    yield Counterexample(
        "layer-norm",
        "RMSNorm makes of (1, 7) and (7, 17) the tokens (1, 7)/5 and (7, 17)/13, whose sums n·y differ.",
        ("P(W_k)", "P(W_k + t nᵀ)"),
        lambda: behind(centred),
        lambda: behind(as_it_is),
        "q = 1, W_k = 0, γ = (1, 1), β = 0, t = 65/16·log(2)",
    )


SHIFT, BIAS, EPS = table("t", real=True), table("b", real=True), Symbol("ε", positive=True)
ENTERS = Function("F", real=True)  # what a block makes of what it reads; unknown
W_O, HEADS = table("W", real=True), table("O", real=True)  # o_i, what the heads give W_o


def layer_norm(stream: Callable[[Symbol], Expr]) -> Expr:
    """Entry o of a LayerNorm of token i, whose entries are stream(index)."""
    mean = over(f, stream(f)) / c
    variance = over(f, stream(f) ** 2) / c - mean**2
    return GAMMA[o] * (stream(o) - mean) / sqrt(variance + EPS) + BETA[o]


def at(added: Callable[[Symbol], Expr]) -> Callable[[Symbol], Expr]:
    """The stream of token i with something added."""
    return lambda index: X[i, index] + added(index)


ALIKE = Symbol("τ", real=True)


def slope(added: Callable[[Symbol], Expr]) -> Expr:
    """The slope along τ of any loss of what a LayerNorm reads, with ∂L/∂read = G."""
    return Derivative(over(i, over(o, G[i, o] * layer_norm(at(added)))), ALIKE)


PLAIN, MOVED = layer_norm(at(lambda _: Integer(0))), layer_norm(at(lambda _: SHIFT[i]))
UNREAD = "Where every reader of the residual stream is a LayerNorm, the mean of b_o + W_o b_v does nothing"


@proof(
    "V7",
    norm=says(UNREAD, MOVED, "=", PLAIN),
    onward=says(UNREAD, X[i, o] + SHIFT[i] + ENTERS(MOVED), "=", X[i, o] + ENTERS(PLAIN) + SHIFT[i]),
    bias=says("1ᵀ ∂L/∂b_o = 0", slope(lambda index: BIAS[index] + ALIKE), "=", 0),
    matrix=says(
        "1ᵀ ∂L/∂W_o = 0", slope(lambda index: over(a, W_O[index, a] * HEADS[i, a]) + ALIKE * HEADS[i, e]), "=", 0
    ),
)
def mean_of_the_output_bias(claim) -> Iterator[Part]:
    yield equal("A LayerNorm takes off the mean: t_i added to all entries of token i is not seen.", claim.norm)
    yield equal(
        "A block F that reads the stream through its LayerNorm adds the same, so t_i is carried on to the next reader.",
        claim.onward,
        called={PLAIN: table("y", real=True)[i, o]},
    )
    yield equal(
        "1ᵀ ∂L/∂b_o is the slope of L as b_o becomes b_o + τ1, by chain rule; no loss of what is read has one.",
        claim.bias,
    )
    yield equal(
        "The same for all rows of W_o, to each entry of which τ is added: column e of 1ᵀ ∂L/∂W_o.", claim.matrix
    )
    first, second = symbols("x y", positive=True)
    yield Counterexample(
        "layer-norm",
        "RMSNorm of the stream (1, 7) is (1, 7)/5; the loss is its first entry.",
        "1ᵀ ∂L/∂b_o",
        lambda: along_ones(centred(Matrix([[first, second]]))[0], first, second),
        lambda: along_ones(as_it_is(Matrix([[first, second]]))[0], first, second),
    )


# ---------------------------------------------------------------- numbers of the counterexamples

TOKENS = Matrix([[Rational(3, 2), Rational(-1, 2)], [Rational(-1, 2), Rational(3, 2)]])


def moved(head: Head) -> tuple[MatrixBase, MatrixBase]:
    """The weights with W_k and with W_k + t nᵀ, where W_k makes the head's keys of TOKENS, and t is the head's b_k."""
    tokens: Any = TOKENS[: head.k.rows, :]
    w_k: Any = (tokens.T * (tokens * tokens.T).inv() * head.k).T
    assert tokens * w_k.T == head.k
    assert head.b_k is not None
    raised = head.but(k=tokens * (w_k + head.b_k.T * ones(1, 2)).T, b_k=None)
    return head.but(b_k=None).weights(), raised.weights()


BEHIND = "Tokens (3/2, −1/2), (−1/2, 3/2) of a LayerNorm with γ = (1, 1), β = (1/2, 1/2); t is here called b_k. "
KEY_CASES = {name: (BEHIND + text, head, change) for name, (text, head, change) in CASES.items()}


def centred(x: MatrixBase) -> MatrixBase:
    """LayerNorm of each row, γ = 1, β = 0, ε = 0."""
    return as_it_is(x - x * ones(x.cols, x.cols) / x.cols)


def as_it_is(x: MatrixBase) -> MatrixBase:
    """RMSNorm of each row, γ = 1, ε = 0."""
    return Matrix([list(x.row(at) * sqrt(x.cols) / x.row(at).norm()) for at in range(x.rows)])


def behind(norm: Callable[[MatrixBase], MatrixBase]) -> tuple[MatrixBase, MatrixBase]:
    """The weights with W_k = 0 and with W_k = t (1, 1)."""
    keys = norm(Matrix([[1, 7], [7, 17]])) * ones(2, 1) * Rational(65, 16) * log(2)
    still = Head(q=row(1), k=0 * keys, v=keys)
    return still.weights(), still.but(k=keys).weights()


def along_ones(loss: Any, *stream: Symbol) -> Expr:
    """The derivative as all entries of the stream grow alike, at (1, 7)."""
    return Add(*(loss.diff(x) for x in stream)).subs(dict(zip(stream, (1, 7), strict=True)))
