"""Identities between indexed sums of symbolic length, decided by a normal form.

sympy knows Σ but not that Σ_l c·x_l = c·Σ_l x_l, nor that Σ_l δ_jl x_l = x_j. `normal` is the little algebra that
the proofs need: linearity, constants drawn out, products of sums as one sum over all indices, Kronecker collapse, and
names of bound indices that do not matter. Every rule is an equality, so equal normal forms prove an identity for all
sizes at once. The rules are not taken on trust: numbers.py adds the terms up, and every identity is tried there too.
"""

from itertools import permutations
from math import lcm, prod

from sympy import (
    Abs,
    Add,
    Derivative,
    Dummy,
    Expr,
    Indexed,
    KroneckerDelta,
    Mul,
    S,
    Sum,
    Symbol,
    cancel,
    cos,
    cosh,
    default_sort_key,
    exp,
    expand,
    expand_trig,
    factor,
    sin,
    sinh,
    symbols,
    tanh,
    together,
)
from sympy.core.function import AppliedUndef

from minibeft.proofs.notation import RANGE


def bound(length: Expr, name: str = "x") -> Symbol:
    """A new index 1..length; the length is part of its name, so that it is not forgotten."""
    return Dummy(f"{name}<{length}", integer=True, positive=True)


def length(index: Symbol) -> Expr:
    """The size up to which an index runs."""
    return RANGE[index] if index in RANGE else symbols(index.name.split("<")[1], integer=True, positive=True)


def normal(expr: Expr) -> Expr:
    """An equal expression in which equal sums look alike."""
    if isinstance(expr, Sum):
        *inner, (index, lower, upper) = expr.limits  # sympy writes the innermost index first
        assert lower == 1, expr
        fresh = bound(upper)
        body = Sum(expr.function, *inner) if inner else expr.function
        return Add(*(draw_out(term, [fresh]) for term in summands(body.xreplace({index: fresh}))))
    if isinstance(expr, exp):  # exp(x + y) = exp(x)·exp(y)
        return prod((exp(part) for part in Add.make_args(expand(normal(expr.args[0])))), start=S.One)
    if isinstance(expr, Abs):  # |cx| = c|x| for c > 0
        return Abs(factor(normal(expr.args[0])))
    if isinstance(expr, cosh | sinh | tanh):
        return normal(expr.rewrite(exp))
    if isinstance(expr, cos | sin):  # addition theorems
        return expand_trig(expr.func(expand(normal(expr.args[0]))))
    if expr.is_Atom or isinstance(expr, Indexed | KroneckerDelta | Derivative):
        return expr
    return expr.func(*(normal(arg) for arg in expr.args))


def summands(body: Expr) -> tuple[Expr, ...]:
    """The terms of a body, multiplied out."""
    return Add.make_args(expand(normal(body), power_exp=False))


def draw_out(term: Expr, indices: list[Symbol]) -> Expr:
    """Σ over the indices of one product, as a product of sums that share no index."""
    factors: list[Expr] = []
    for part in Mul.make_args(term):
        base, power = part.as_base_exp()
        if not (isinstance(base, Sum) and power.is_Integer and power > 0 and base.free_symbols & set(indices)):
            factors.append(part)
            continue
        for _ in range(int(power)):  # Σ_i f_i Σ_l g_il is one sum over i and l
            names = {old: bound(top) for old, _, top in base.limits}
            indices = [*indices, *names.values()]
            factors.extend(Mul.make_args(base.function.xreplace(names)))
    for delta in factors:
        if isinstance(delta, KroneckerDelta) and delta.free_symbols & set(indices):  # Σ_l δ_jl x_l = x_j
            first, second = delta.args
            gone, kept = (first, second) if first in indices else (second, first)
            assert length(gone) == length(kept), delta
            rest = Mul(*(f for f in factors if f is not delta)).xreplace({gone: kept})
            left = [index for index in indices if index != gone]
            return Add(*(draw_out(part, left) for part in summands(rest)))
    return connected(factors, indices)


def connected(factors: list[Expr], indices: list[Symbol]) -> Expr:
    """What depends on no index in front, then one Σ for each group of factors linked by indices, then bare lengths."""
    result = Mul(*(f for f in factors if not f.free_symbols & set(indices)))
    linked = [f for f in factors if f.free_symbols & set(indices)]
    left = set(indices)
    while linked:
        group, names = [linked[0]], linked[0].free_symbols & set(indices)
        while more := [f for f in linked if f not in group and f.free_symbols & names]:
            group += more
            names = set().union(*(f.free_symbols for f in group)) & set(indices)
        linked = [f for f in linked if f not in group]
        left -= names
        result *= canonical(Mul(*group), sorted(names, key=default_sort_key))
    return result * prod((length(index) for index in left), start=S.One)


def canonical(body: Expr, indices: list[Symbol]) -> Sum:
    """Σ with index names that depend only on the shape of the body: of all orders, the first in sympy's sorting."""
    inside = [int(x.name[1 : x.name.index("<")]) for x in body.atoms(Symbol) if x.name.startswith("#")]
    depth = max(inside, default=-1) + 1
    candidates = []
    for order in permutations(indices):
        names = {x: Symbol(f"#{depth + at}<{length(x)}", integer=True, positive=True) for at, x in enumerate(order)}
        candidates.append(Sum(body.xreplace(names), *((new, 1, length(new)) for new in names.values())))
    return min(candidates, key=default_sort_key)


def identical(left: Expr, right: Expr) -> bool:
    """left = right for every size: the normal forms agree as rational functions of their sums, entries and exps."""
    names: dict[Expr, Expr] = {}
    difference = expand(normal(left) - normal(right), power_exp=False)
    parts: dict[Expr, int] = {}  # exp(x) and exp(x/2) are powers of the same base, exp(x/2)
    for power in difference.atoms(exp):
        times, rest = power.args[0].as_coeff_Mul()
        parts[rest] = lcm(parts.get(rest, 1), times.q)

    def atom(expr: Expr) -> Expr:
        if isinstance(expr, exp):
            times, rest = expr.args[0].as_coeff_Mul()
            return names.setdefault(exp(rest / parts[rest]), Dummy(positive=True)) ** (times * parts[rest])
        if isinstance(expr, Sum | Indexed | KroneckerDelta | AppliedUndef | Derivative):
            return names.setdefault(expr, Dummy(real=True, nonnegative=expr.is_nonnegative or None))
        return expr if expr.is_Atom else expr.func(*(atom(arg) for arg in expr.args))

    return difference == 0 or cancel(together(atom(difference))) == 0
