"""One attention head in exact numbers, with a switch for every hypothesis: the counterexamples are made of it.

With all switches off this is the head of the theory. The counterexamples choose logits that are logarithms of rational
numbers, so that the weights are rational.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sympy import (
    Abs,
    Expr,
    Matrix,
    MatrixBase,
    Max,
    Piecewise,
    Rational,
    cos,
    diag,
    exp,
    eye,
    floor,
    log,
    nsimplify,
    oo,
    simplify,
    sin,
    sqrt,
    sympify,
    tanh,
    zeros,
)

from minibeft.proofs.printing import Unicode

TINY = Rational(1, 10**12)


def numbers(value: Expr | MatrixBase) -> list[Expr]:
    """The entries in numbers, 30 digits; a free symbol stands for 7/5, 8/5, … in the order of names."""
    entries = [sympify(x) for x in (value if isinstance(value, MatrixBase) else [value])]
    free = sorted({symbol for x in entries for symbol in x.free_symbols}, key=str)
    point = {symbol: Rational(7 + at, 5) for at, symbol in enumerate(free)}
    return [x.subs(point).evalf(30) for x in entries]


def finite(x: Expr) -> bool:
    return bool(x.is_Float or x.is_Rational)


def is_zero(value: Expr | MatrixBase) -> bool:
    """Every entry is 0 in numbers, and simplifies to 0."""
    entries = list(value) if isinstance(value, MatrixBase) else [value]
    return all(finite(x) and abs(x) < TINY for x in numbers(value)) and all(simplify(x) == 0 for x in entries)


def is_finite_and_not_zero(value: Expr | MatrixBase) -> bool:
    """Every entry is a finite real number, and one of them is not 0: that an expression resists simplification is no
    reason to call it so."""
    found = numbers(value)
    return all(map(finite, found)) and any(abs(x) > TINY for x in found)


def fl(x: Expr, bits: int) -> Expr:
    """x rounded to `bits` significant binary digits, ties to even, without a limit on the exponent."""
    if x == 0 or x.is_infinite:
        return x
    x = x if x.is_Rational else nsimplify(x.evalf(40), rational=True)
    unit = Rational(2) ** (floor(log(Abs(x), 2)) - bits + 1)
    return unit * Rational(round(x / unit))


def rotation(angle: Expr, dims: int) -> Matrix:
    """Rotary positions: the first two dims turned, the others left alone."""
    return diag(Matrix([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]), eye(dims - 2)) if dims > 1 else eye(1)


def unit(row: Matrix) -> Matrix:
    return row / sqrt(row.dot(row))


def written(value: Any) -> str:
    """A number, or a matrix by its rows."""
    if isinstance(value, MatrixBase):
        rows = (", ".join(map(plain, value.row(at))) for at in range(value.rows))
        return "; ".join(rows).join("()" if len(value) > 1 else ("", ""))
    return plain(sympify(value))


def plain(x: Expr) -> str:
    """The exact number where it is short, four digits of it where it is not."""
    text = Unicode().doprint(x)
    text = text if len(text) <= 32 or x.free_symbols else f"{Unicode().doprint(x.evalf(4))}…"
    return text.replace("-", "−")


def distances(vectors: dict[int, Matrix]) -> str:
    """E_{i−j} for each distance."""
    return ", ".join(f"E_{plain(sympify(at))} = {written(x)}" for at, x in vectors.items())


def pair(foreign: tuple[Matrix, Matrix]) -> str:
    return f"a foreign key {written(foreign[0])} with value {written(foreign[1])}"


# How a field of a head is told; a switch that is on is a sentence.
TOLD: dict[str, Callable[[Any], str]] = {
    "sees": lambda x: f"row by row, 1 where a key is seen: {written(x)}",
    "turn": lambda x: f"rotary positions, {written(x)} from one to the next",
    "relative_key": lambda x: f"{distances(x)}, multiplied with k",
    "relative_query": lambda x: f"{distances(x)}, multiplied with q",
    "qk_norm": lambda _: "q and k normalised",
    "softcap": lambda _: "logits through tanh",
    "weighting": lambda x: "linear attention, identity features" if x == "identity" else f"{x} weights",
    "sink": lambda x: f"a sink with logit {written(x)}",
    "foreign": pair,
    "bits": lambda x: f"{x} binary digits",
    "largest": lambda x: f"no number beyond {x}",
    "dropout": lambda x: f"dropout multiplies the weights by {written(x)}",
    "lam": lambda x: f"λ-difference, λ = {written(x)}",
    "value_norm": lambda _: "values normalised",
    "gate": lambda x: f"a gate of {written(x)}",
    "w_o": lambda x: f"W_o = {written(x)}",
    "output_norm": lambda _: "O normalised before W_o",
}


def told(name: str, value: Any) -> str:
    return TOLD[name](value) if name in TOLD else f"{name} = {written(value)}"


@dataclass(frozen=True)
class Head:
    """q, k, v before their biases, one row per token; then the biases; then a switch for each way out of the theory."""

    q: Matrix
    k: Matrix
    v: Matrix
    b_q: Matrix | None = None
    b_k: Matrix | None = None
    b_v: Matrix | None = None
    sees: Matrix | None = None  # 1 where a query sees a key, else 0
    turn: Expr | int = 0  # rotary: the angle of one position
    relative_key: dict[int, Matrix] | None = None  # E_{i−j}, multiplied with k_j
    relative_query: dict[int, Matrix] | None = None  # E_{i−j}, multiplied with q_i
    qk_norm: bool = False
    softcap: bool = False
    weighting: Literal["softmax", "sigmoid", "relu", "linear", "identity"] = "softmax"
    sink: Expr | int | None = None  # its logit
    foreign: tuple[Matrix, Matrix] | None = None  # a key and a value that carry no bias
    bits: int | None = None  # round logits and weights
    largest: Expr | int | None = None  # numbers beyond it are infinite
    dropout: Matrix | None = None  # what each weight is multiplied by
    lam: Expr | int = 0  # λ of differential attention, whose second softmax is over −z
    value_norm: bool = False
    gate: Expr | int | Matrix = 1  # a number, a row of one for each dim, or a matrix of tokens
    w_o: Matrix | None = None
    b_o: Matrix | None = None
    output_norm: bool = False

    def but(self, **change: Any) -> "Head":
        return replace(self, **change)

    def described(self) -> str:
        """The numbers, for the reader: every field that is not at its default."""
        given = ((x.name, getattr(self, x.name), x.default) for x in fields(self))
        return ", ".join(told(name, value) for name, value, default in given if value is not default)

    def rows(self, x: Matrix, bias: Matrix | None) -> Matrix:
        return x if bias is None else x + Matrix([list(bias)] * x.rows)

    def keys(self) -> Matrix:
        k = self.rows(self.k, self.b_k)
        return k if self.foreign is None else k.col_join(self.foreign[0])

    def values(self) -> Matrix:
        v = self.rows(self.v, self.b_v)
        v = v if self.foreign is None else v.col_join(self.foreign[1])
        return Matrix([list(unit(v.row(at))) for at in range(v.rows)]) if self.value_norm else v

    def logits(self) -> Matrix:
        q, k = self.rows(self.q, self.b_q), self.keys()

        def logit(at: int, to: int) -> Expr:
            x, y = q.row(at), k.row(to)
            if self.qk_norm:
                x, y = unit(x), unit(y)
            if self.turn != 0:
                x, y = x * rotation(at * self.turn, x.cols).T, y * rotation(to * self.turn, y.cols).T
            z = x.dot(y)
            if self.relative_key:
                z += y.dot(self.relative_key[at - to])
            if self.relative_query:
                z += x.dot(self.relative_query[at - to])
            if self.bits:
                z = fl(z, self.bits)
            if self.largest is not None and z > self.largest:
                z = oo
            return tanh(z).rewrite(exp) if self.softcap else z

        return Matrix(q.rows, k.rows, logit)

    def mixing(self, z: Matrix) -> Matrix:
        """Logits to weights. A row that sees no key has weights 0."""

        def weight(at: int, to: int) -> Expr:
            if self.weighting == "sigmoid":
                return 1 / (1 + exp(-z[at, to]))
            if self.weighting == "relu":
                return Max(z[at, to], 0) / z.cols
            if self.weighting == "linear":
                feature = lambda x: Piecewise((x + 1, x >= 0), (exp(x), True))  # noqa: E731  φ = elu + 1
                x, y = self.rows(self.q, self.b_q).row(at), self.keys().row(to)
                return x.applyfunc(feature).dot(y.applyfunc(feature))
            if self.weighting == "identity":  # linear attention whose features are q and k themselves
                return z[at, to]
            return exp(z[at, to])

        visible = zeros(*z.shape).applyfunc(lambda x: x + 1) if self.sees is None else self.sees
        w = Matrix(z.rows, z.cols, weight).multiply_elementwise(visible)
        if self.weighting in ("sigmoid", "relu"):
            return w
        sums = [sum(w.row(at)) + (0 if self.sink is None else exp(self.sink)) for at in range(w.rows)]
        p = Matrix(w.rows, w.cols, lambda at, to: w[at, to] / sums[at] if sums[at] != 0 else 0)
        return p.applyfunc(lambda x: fl(x, self.bits)) if self.bits else p

    def weights(self) -> Matrix:
        """P, with what dropout and the λ-difference make of it."""
        z = self.logits()
        p = self.mixing(z)
        p = p - self.lam * self.mixing(-z) if self.lam != 0 else p
        return p if self.dropout is None else p.multiply_elementwise(self.dropout)

    def heads(self) -> Matrix:
        """O."""
        o = self.weights() * self.values()
        by_dim = isinstance(self.gate, MatrixBase) and self.gate.rows == 1
        return o * diag(*self.gate) if by_dim else self.gate * o

    def output(self) -> Matrix:
        """O W_oᵀ + 1 b_oᵀ, where W_o is given."""
        o = self.heads()
        if self.output_norm:
            o = Matrix([list(unit(o.row(at))) for at in range(o.rows)])
        return o if self.w_o is None else self.rows(o * self.w_o.T, self.b_o)
