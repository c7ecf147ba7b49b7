"""The letters that every proof uses: indices with their ranges, entries, and the softmax of a row.

A mask M enters as the weight μ_ij = exp(M_ij) ≥ 0, which is 0 where M_ij = −∞: so no proof ever meets an infinity.
"""

from typing import Any

from sympy import Expr, Indexed, IndexedBase, Sum, Symbol, exp, symbols

# sizes: queries, keys, head dims, model width, query heads, key-value heads
n, m, d, c, h, g = symbols("n m d c h g", integer=True, positive=True)
i, r = symbols("i r", integer=True, positive=True)  # queries
j, l, p = symbols("j l p", integer=True, positive=True)  # keys  # noqa: E741
a, e = symbols("a e", integer=True, positive=True)  # dims of a head
o, f = symbols("o o'", integer=True, positive=True)  # dims of the model
u = Symbol("u", integer=True, positive=True)  # query heads, or planes of rotary positions
w, x = symbols("x' x", integer=True, positive=True)  # key-value heads
RANGE = {i: n, r: n, j: m, l: m, p: m, a: d, e: d, o: c, f: c, u: h, w: g, x: g}


def table(name: str, **assumptions: bool) -> Any:
    """Numbers with indices: x = table("x"), then x[i, j]. (Any: sympy's types do not know that these are numbers.)"""
    return IndexedBase(name, **assumptions)


z, q, k, v = (table(name, real=True) for name in "zqkv")  # logits; queries, keys, values
b, beta, G = (table(name, real=True) for name in ("b", "β", "G"))  # a bias; the shift by b_q; a gradient
mu = table("μ", nonnegative=True)
s = Symbol("s", positive=True)  # the scale, 1/√d or any other temperature


def over(index: Symbol, body: Expr) -> Sum:
    """Σ of body over the whole range of an index."""
    return Sum(body, (index, 1, RANGE[index]))


def softmax(logit: Expr, index: Symbol = j, mask: Expr | None = None, bound: Symbol = p) -> Expr:
    """μ_j exp(z_j)/Σ_l μ_l exp(z_l), where logit and mask are what they are at `index`."""
    weight = (mu[i, index] if mask is None else mask) * exp(logit)
    return weight / over(bound, weight.xreplace({index: bound}))


SHARES: set[str] = set()  # names of entries between 0 and 1


def share(name: str) -> Any:
    """A number in [0, 1] for each index: "|x_a| is at most X" is |x_a| = X·f_a."""
    SHARES.add(name)
    return table(name, nonnegative=True)


def is_share(entry: Expr) -> bool:
    return isinstance(entry, Indexed) and str(entry.base) in SHARES
