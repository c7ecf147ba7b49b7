"""The letters that every proof uses: indices with their ranges, entries, and the softmax of a row.

A mask M enters as the weight μ_ij = exp(M_ij) ≥ 0, which is 0 where M_ij = −∞: so no proof ever meets an infinity.
"""

from typing import Any

from sympy import Expr, Indexed, IndexedBase, Sum, Symbol, exp, symbols


class Refused(ValueError):
    """What a formula says cannot be decided, and why."""


# sizes: queries, keys, head dims, model width, query heads, key-value heads
n, m, d, c, h, g = symbols("n m d c h g", integer=True, positive=True)
i, r = symbols("i r", integer=True, positive=True)  # queries
j, l, p = symbols("j l p", integer=True, positive=True)  # keys  # noqa: E741
a, e, third = symbols("a e a'", integer=True, positive=True)  # dims of a head
o, f, last = symbols("o o' o''", integer=True, positive=True)  # dims of the model
u, y = symbols("u u'", integer=True, positive=True)  # query heads, or planes of rotary positions
w, x = symbols("x' x", integer=True, positive=True)  # key-value heads
RANGE = {i: n, r: n, j: m, l: m, p: m, a: d, e: d, third: d, o: c, f: c, last: c, u: h, y: h, w: g, x: g}


def table(name: str, **assumptions: bool) -> Any:
    """Numbers with indices: x = table("x"), then x[i, j]. (Any: sympy's types do not know that these are numbers.)"""
    return IndexedBase(name, **assumptions)


z, q, k, v = (table(name, real=True) for name in "zqkv")  # logits; queries, keys, values
b, beta, G = (table(name, real=True) for name in ("b", "β", "G"))  # a bias; the shift by b_q; a gradient
mu = table("μ", nonnegative=True)
s = Symbol("s", positive=True)  # the scale, 1/√d or any other temperature


def over(index: Symbol, body: Any) -> Sum:
    """Σ of body over the whole range of an index."""
    return Sum(body, (index, 1, RANGE[index]))


def bound_names(expr: Expr) -> set[Symbol]:
    """The indices that a Σ within the expression runs over."""
    return {name for total in expr.atoms(Sum) for name, _, _ in total.limits}


def put(expr: Expr, index: Symbol, other: Symbol) -> Expr:
    """The expression at another index. A name that a Σ within would capture is refused."""
    if {index, other} & bound_names(expr):
        raise Refused(f"a sum runs over {index} or {other} already: one cannot be put for the other")
    return expr.xreplace({index: other})


def softmax(logit: Expr, index: Symbol = j, mask: Expr | None = None, bound: Symbol = p) -> Expr:
    """μ_j exp(z_j)/Σ_l μ_l exp(z_l), where logit and mask are what they are at `index`."""
    weight = (mu[i, index] if mask is None else mask) * exp(logit)
    if weight.has(bound):
        raise Refused(f"the logit names {bound}, over which its softmax is normalised")
    return weight / over(bound, put(weight, index, bound))


class Share(IndexedBase):
    """A table of numbers in [0, 1]."""


def share(name: str) -> Any:
    """A number in [0, 1] for each index: "|x_a| is at most X" is |x_a| = X·f_a."""
    return Share(name, nonnegative=True)


def is_share(entry: Expr) -> bool:
    return isinstance(entry, Indexed) and isinstance(entry.base, Share)
