"""The guard of the algebra: an expression's number at given sizes, its entries drawn at random, its sums added up.

Nothing here knows a rule of sums.py, so a wrong rule there cannot agree with it; nor one of sympy's calculus, as a
derivative is a quotient of small differences here, and a limit the value close by.
"""

from collections.abc import Callable, Iterator
from itertools import product
from random import Random
from typing import Any

import mpmath
from sympy import Add, Derivative, Expr, Indexed, KroneckerDelta, Limit, Mul, Pow, Subs, Sum, Symbol, oo
from sympy.core.function import AppliedUndef

from minibeft.proofs.notation import RANGE, Refused, Share

Sizes = dict[Symbol, int]
SPECIAL = {"Abs": mpmath.fabs, "Max": max, "Min": min}
DIGITS = 30
CLOSE = mpmath.mpf(10) ** -20  # a wrong identity misses by far more, rounding at 30 digits by far less
NEAR = mpmath.mpf(10) ** -12  # how close to a limit's point its value is taken
TRIES = 12  # draws for each assignment of sizes, of which two must have numbers to compare


def small_sizes(*exprs: Expr) -> Iterator[Sizes]:
    """Every assignment of 1, 2, 3 to the sizes that occur, those of indices included; of 1, 2 where four or more do."""
    present = set().union(*(expr.atoms(Symbol) for expr in exprs))
    used = sorted({RANGE.get(x, x) for x in present} & set(RANGE.values()), key=str)
    for sizes in product((1, 2, 3) if len(used) < 4 else (1, 2), repeat=len(used)):
        yield dict(zip(used, sizes, strict=True))


def draw(entry: Any, key: tuple, seed: int) -> mpmath.mpf:
    """A number that the assumptions on an entry allow: a small one for integers, 0 at times where it may be."""
    random = Random(f"{seed} {key}")
    if isinstance(entry, Share):
        return mpmath.mpf(random.randint(0, 4)) / 4
    if entry.is_integer:
        return mpmath.mpf(random.randint(1, 4) if entry.is_positive else random.randint(0, 1))
    if entry.is_nonnegative and not entry.is_positive and random.random() < 0.25:
        return mpmath.mpf(0)
    size = mpmath.mpf(random.randint(1, 60)) / 20
    return size if entry.is_nonnegative or random.random() < 0.5 else -size


def value(expr: Expr, sizes: Sizes, seed: int = 0) -> mpmath.mpf:
    """What `expr` evaluates to. Equal entries get equal numbers in every expression of the same seed."""
    moved: dict[tuple, mpmath.mpf] = {}  # how far an entry is off from what was drawn for it

    def index(node: Expr, at: dict) -> int:
        if node in at:
            return at[node]
        return Random(f"{seed} {node}").randint(1, sizes[RANGE[node]]) if isinstance(node, Symbol) else int(node)

    def drawn(node: Expr, at: dict) -> tuple[Any, tuple]:
        """The entry for which a number is drawn, and its key."""
        if isinstance(node, Indexed):
            return node.base, (str(node.base), *(index(x, at) for x in node.indices))
        return node, (str(node),)

    def slope(node: Derivative, at: dict) -> mpmath.mpf:
        if len(node.variable_count) != 1 or node.variable_count[0][1] != 1:
            raise Refused("only first derivatives can be checked")
        _, key = drawn(node.variables[0], at)
        with mpmath.workdps(2 * DIGITS):
            step = mpmath.mpf(10) ** (-2 * DIGITS // 3)
            ends = []
            for end in (step, -step):
                moved[key] = moved.get(key, 0) + end
                ends.append(visit(node.expr, at))
                moved[key] -= end
            return (ends[0] - ends[1]) / (2 * step)

    def visit(node: Expr, at: dict) -> mpmath.mpf:
        if node.is_Number or node.is_NumberSymbol:
            return mpmath.mpf(node.p) / node.q if node.is_Rational else node._to_mpmath(mpmath.mp.prec)
        if isinstance(node, Symbol):
            known = {**sizes, **at}
            if node in known or node in RANGE:
                return (
                    known[node] + moved.get((str(node),), mpmath.mpf(0))
                    if node in known
                    else mpmath.mpf(index(node, at))
                )
        if isinstance(node, Symbol | Indexed):
            entry, key = drawn(node, at)
            return draw(entry, key, seed) + moved.get(key, 0)
        if isinstance(node, KroneckerDelta):
            return mpmath.mpf(index(node.args[0], at) == index(node.args[1], at))
        if isinstance(node, Sum):
            names = [name for name, _, _ in node.limits]
            grid = product(*(range(1, sizes[top] + 1) for _, _, top in node.limits))
            return mpmath.fsum(visit(node.function, {**at, **dict(zip(names, spot, strict=True))}) for spot in grid)
        if isinstance(node, Derivative):
            return slope(node, at)
        if isinstance(node, Limit):
            body, variable, point, side = node.args
            near = 1 / NEAR if point is oo else visit(point, at) + (NEAR if str(side) == "+" else -NEAR)
            return visit(body, {**at, variable: near})
        if isinstance(node, Subs):
            return visit(
                node.expr, {**at, **{x: visit(y, at) for x, y in zip(node.variables, node.point, strict=True)}}
            )
        args = [visit(arg, at) for arg in node.args]
        if isinstance(node, Add):
            return mpmath.fsum(args)
        if isinstance(node, Mul):
            return mpmath.fprod(args)
        if isinstance(node, Pow):
            return args[0] ** args[1]
        if isinstance(node, AppliedUndef):  # any function will do for an unknown one, as long as its arguments matter
            phase = Random(node.func.__name__).random()
            return mpmath.cos(phase + mpmath.fsum((at + 1) * arg for at, arg in enumerate(args)))
        function = SPECIAL.get(node.func.__name__) or getattr(mpmath, node.func.__name__, None)
        if function is None or not args:
            raise Refused(f"{node} has no number")
        return function(*args)

    with mpmath.workdps(DIGITS):
        return visit(expr, {})


Compare = Callable[..., bool | None]


def compare(holds: Callable[[Any, Any, Any], bool], left: Expr, right: Expr, *at) -> bool | None:
    """holds(x, y, slack) of both numbers; None where one of them does not exist, as 0/0 where a row sees no key."""
    with mpmath.workdps(DIGITS):
        try:
            x, y = value(left, *at), value(right, *at)
        except ZeroDivisionError:
            return None
        if not (mpmath.isfinite(x) and mpmath.isfinite(y)):
            return None
        close = NEAR**0.5 if left.has(Limit) or right.has(Limit) else CLOSE
        return bool(holds(x, y, close * (1 + abs(x) + abs(y))))


def agree(left: Expr, right: Expr, sizes: Sizes, seed: int = 0) -> bool | None:
    """Both sides are the same number."""
    return compare(lambda x, y, slack: abs(x - y) <= slack, left, right, sizes, seed)


def at_most(left: Expr, right: Expr, sizes: Sizes, seed: int = 0) -> bool | None:
    """left ≤ right as real numbers, up to the last digits."""
    real = lambda x: not isinstance(x, mpmath.mpc)  # noqa: E731
    return compare(lambda x, y, slack: real(x) and real(y) and x <= y + slack, left, right, sizes, seed)


def tried(how: Compare, left: Expr, right: Expr) -> tuple[bool, str]:
    """Whether the numbers agree at all small sizes, two draws each; and how many were compared, and skipped."""
    compared = skipped = 0
    for sizes in small_sizes(left, right):
        where = "at " + ", ".join(f"{name} = {size}" for name, size in sizes.items()) if sizes else "in numbers"
        found = []
        for seed in range(TRIES):
            outcome = how(left, right, sizes, seed)
            if outcome is False:
                return False, f"fails {where}"
            found.append(outcome)
            if found.count(True) == 2:
                break
        if True not in found:
            return False, f"nothing to compare {where}: 0/0 in {len(found)} draws"
        compared += found.count(True)
        skipped += found.count(None)
    return True, f"{compared} comparisons" + (f", {skipped} skipped (0/0)" if skipped else "")
