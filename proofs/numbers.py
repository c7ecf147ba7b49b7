"""The guard of the algebra: an expression's number at given sizes, its entries drawn at random, its sums added up.

Nothing here knows a rule of sums.py, so a wrong rule there cannot agree with it.
"""

from collections.abc import Callable, Iterator
from itertools import product
from random import Random

import mpmath
from sympy import Add, Expr, Indexed, IndexedBase, KroneckerDelta, Mul, Pow, Sum, Symbol
from sympy.core.function import AppliedUndef

from minibeft.proofs.notation import RANGE, SHARES

Sizes = dict[Symbol, int]
SPECIAL = {"Abs": mpmath.fabs, "Max": max, "Min": min}
DIGITS = 30
CLOSE = mpmath.mpf(10) ** -20  # a wrong identity misses by far more, rounding at 30 digits by far less


def small_sizes(*exprs: Expr) -> Iterator[Sizes]:
    """Every assignment of 1, 2, 3 to the sizes that occur, those of indices included; of 1, 2 where four or more do."""
    present = set().union(*(expr.atoms(Symbol) for expr in exprs))
    used = sorted({RANGE.get(x, x) for x in present} & set(RANGE.values()), key=str)
    for sizes in product((1, 2, 3) if len(used) < 4 else (1, 2), repeat=len(used)):
        yield dict(zip(used, sizes, strict=True))


def draw(entry: Symbol | IndexedBase, key: tuple, seed: int) -> mpmath.mpf:
    """A number that the assumptions on an entry allow: 0 or 1 for integers, 0 at times where it may be."""
    random = Random(f"{seed} {key}")
    if str(entry) in SHARES:
        return mpmath.mpf(random.randint(0, 4)) / 4
    if entry.is_integer:
        return mpmath.mpf(random.randint(0, 1))
    if entry.is_nonnegative and not entry.is_positive and random.random() < 0.25:
        return mpmath.mpf(0)
    size = mpmath.mpf(random.randint(1, 60)) / 20
    return size if entry.is_nonnegative or random.random() < 0.5 else -size


def value(expr: Expr, sizes: Sizes, seed: int = 0) -> mpmath.mpf:
    """What `expr` evaluates to. Equal entries get equal numbers in every expression of the same seed."""

    def index(node: Expr, at: Sizes) -> int:
        if node in at:
            return at[node]
        return Random(f"{seed} {node}").randint(1, sizes[RANGE[node]]) if isinstance(node, Symbol) else int(node)

    def visit(node: Expr, at: Sizes) -> mpmath.mpf:
        if node.is_Number or node.is_NumberSymbol:
            return mpmath.mpf(node.p) / node.q if node.is_Rational else node._to_mpmath(mpmath.mp.prec)
        if isinstance(node, Symbol):
            known = {**sizes, **at}
            if node in known or node in RANGE:
                return mpmath.mpf(known[node] if node in known else index(node, at))
            return draw(node, (node.name,), seed)
        if isinstance(node, Indexed):
            return draw(node.base, (str(node.base), *(index(x, at) for x in node.indices)), seed)
        if isinstance(node, KroneckerDelta):
            return mpmath.mpf(index(node.args[0], at) == index(node.args[1], at))
        if isinstance(node, Sum):
            names = [name for name, _, _ in node.limits]
            grid = product(*(range(1, sizes[top] + 1) for _, _, top in node.limits))
            return mpmath.fsum(visit(node.function, {**at, **dict(zip(names, spot, strict=True))}) for spot in grid)
        args = [visit(arg, at) for arg in node.args]
        if isinstance(node, Add):
            return mpmath.fsum(args)
        if isinstance(node, Mul):
            return mpmath.fprod(args)
        if isinstance(node, Pow):
            return args[0] ** args[1]
        if isinstance(node, AppliedUndef):  # any function will do for an unknown one, as long as its arguments matter
            return mpmath.cos(mpmath.fsum((at + 1) * arg for at, arg in enumerate(args)))
        name = node.func.__name__
        return SPECIAL[name](*args) if name in SPECIAL else getattr(mpmath, name)(*args)

    with mpmath.workdps(DIGITS):
        return visit(expr, {})


def compare(holds: Callable[[mpmath.mpf, mpmath.mpf, mpmath.mpf], bool], left: Expr, right: Expr, *at) -> bool:
    """holds(x, y, slack) of both numbers. Where a row happens to see no key, 0/0, there is nothing to compare."""
    with mpmath.workdps(DIGITS):
        try:
            x, y = value(left, *at), value(right, *at)
        except ZeroDivisionError:
            return True
        return holds(x, y, CLOSE * (1 + abs(x) + abs(y)))


def agree(left: Expr, right: Expr, sizes: Sizes, seed: int = 0) -> bool:
    """Both sides are the same number."""
    return compare(lambda x, y, slack: abs(x - y) <= slack, left, right, sizes, seed)


def at_most(left: Expr, right: Expr, sizes: Sizes, seed: int = 0) -> bool:
    """left ≤ right as numbers, up to the last digits."""
    return compare(lambda x, y, slack: x <= y + slack, left, right, sizes, seed)
