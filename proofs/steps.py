"""The kinds of step: identities of any size, inequalities with their slack, calculus, and all sizes up to a limit."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from sympy import (
    Add,
    Derivative,
    Expr,
    I,
    Indexed,
    IndexedBase,
    Integer,
    KroneckerDelta,
    Limit,
    Mul,
    Pow,
    Subs,
    Sum,
    Symbol,
    cosh,
    default_sort_key,
    exp,
    expand,
    simplify,
    sympify,
)
from sympy.core.function import AppliedUndef

from minibeft.proofs.notation import (
    RANGE,
    Refused,
    Share,
    bound_names,
    i,
    is_share,
    j,
    l,
    mu,
    put,
    softmax,
    table,
    u,
    z,
)
from minibeft.proofs.numbers import agree, at_most, tried
from minibeft.proofs.statement import EVERY, NUMBERS, TRIED, Relation, Step, Verdict
from minibeft.proofs.sums import identical

Names = dict[Expr, Expr]


def scope_of(*exprs: Expr) -> str:
    """Whether a formula speaks of every size, or has none to speak of."""
    sizes = {RANGE.get(x, x) for expr in exprs for x in expr.atoms(Symbol)} & set(RANGE.values())
    return EVERY if sizes else NUMBERS


def entries(*exprs: Expr) -> set[Any]:
    """The numbers that formulas speak of: symbols, and tables by their base; no sizes and no indices."""
    found = {x.base if isinstance(x, Indexed) else x for expr in exprs for x in expr.atoms(Indexed, Symbol)}
    held = {x for expr in exprs for part in expr.atoms(Limit) for x in (part.args[1], part.args[3])}
    held |= {x for expr in exprs for part in expr.atoms(Subs) for x in part.variables}
    labels = {x.label for x in found if isinstance(x, IndexedBase)}
    return found - held - labels - set(RANGE) - set(RANGE.values())


def given(*exprs: Expr) -> tuple[Relation, ...]:
    """What is assumed of the numbers in a formula: declared signs, and denominators that are not 0."""
    signs: dict[tuple[str, Any], list[str]] = {}
    for x in entries(*exprs):
        low = (">", Integer(0)) if x.is_positive else ("≥", Integer(0)) if x.is_nonnegative else None
        if isinstance(x, Share):
            low = "in", "[0, 1]"
        if x.is_integer:
            signs.setdefault(("in", "ℤ"), []).append(str(x))
        if low:
            signs.setdefault(low, []).append(str(x))
    below = {x.base for expr in exprs for x in expr.atoms(Pow) if x.exp.could_extract_minus_sign()}
    zero = [x for x in below if not nonzero(x)]
    return (
        *(Relation(", ".join(sorted(names)), *low) for low, names in sorted(signs.items(), key=str)),
        *(relation(x, "≠", Integer(0), None) for x in sorted(zero, key=default_sort_key)),
    )


def real(expr: Expr) -> bool:
    """Whether every number that enters is declared real, so that what is made of it is."""
    return all(x.is_real for x in [*entries(expr), *expr.atoms(AppliedUndef)]) and not expr.has(I)


def nonzero(expr: Expr) -> bool:
    """Whether a denominator shows by its form that it is not 0."""
    if isinstance(expr, Add | Sum):
        parts = expr.args if isinstance(expr, Add) else (expr.function,)
        return any(nonzero(x) for x in parts) and all(nonnegative(x) for x in parts)
    if isinstance(expr, Mul):
        return all(nonzero(x) for x in expr.args)
    return bool(expr.is_positive) or bool(expr.is_nonzero) or (isinstance(expr, exp | cosh) and real(expr))


def well_formed(*exprs: Expr) -> None:
    """Refuse a formula that leaves in doubt which number is meant, or whose numbers may be complex."""
    for expr in exprs:
        if not real(expr):
            names = sorted({str(x) for x in [*entries(expr), *expr.atoms(AppliedUndef)] if not x.is_real})
            raise Refused(f"not declared real: {', '.join(names)}")
        for total in expr.atoms(Sum):
            if twice := {name for name, _, _ in total.limits} & bound_names(total.function):
                raise Refused(f"two sums, one within the other, run over {twice.pop()}")
        for slope in expr.atoms(Derivative):
            held = set().union(*(x.free_symbols for x in slope.variables))
            if caught := held & bound_names(slope.expr):
                raise Refused(f"∂ by an entry at {caught.pop()}, over which a sum within runs")
            if set(slope.variables) & set(RANGE):
                raise Refused("∂ by an index")
    names = [(isinstance(x, IndexedBase), str(x)) for x in entries(*exprs)]
    if double := {name for _, name in names if names.count((True, name)) > 1 or names.count((False, name)) > 1}:
        raise Refused(f"two different numbers are called {double.pop()}")


def guarded(decide: Callable[[], Verdict]) -> Callable[[], Verdict]:
    """A decision that a formula which is refused turns into a failure."""

    def safe() -> Verdict:
        try:
            return decide()
        except Refused as why:
            return Verdict(False, f"refused: {why}")

    return safe


def factors(expr: Expr) -> set[Expr]:
    return set(Mul.make_args(expr))


def named(expr: Any, names: Names) -> Any:
    """For display: the expressions that have a name, written by it, also where they are part of a product."""
    if isinstance(expr, str) or expr.is_Atom:
        return expr
    for full, name in names.items():
        if expr == full:
            return name
    if isinstance(expr, Mul):
        for full, name in names.items():
            if isinstance(full, Mul) and factors(full) <= factors(expr):
                left = [x for x in expr.args if x not in factors(full)]
                return named(Mul(name, *left), names)
    if isinstance(expr, Sum):
        return expr.func(named(expr.function, names), *expr.limits)
    if isinstance(expr, Indexed | Limit | Derivative | Subs):
        return expr
    return expr.func(*(named(arg, names) for arg in expr.args))


P = table("P", nonnegative=True)
WEIGHTS: Names = {
    softmax(z[i, j]): P[i, j],
    softmax(z[i, l], l): P[i, l],
    softmax(z[u, i, j], mask=mu[u, i, j]): P[u, i, j],
}


def relation(left: Any, sign: str, right: Any, called: Names | None, shown: str | None = None) -> Relation:
    """The formula as it is printed: P_ij for the softmax of z_ij, and the names that a step brings along."""
    names = {**(called or {}), **WEIGHTS}
    return Relation(named(left, names) if shown is None else shown, sign, named(right, names))


def carried_out(expr: Expr) -> Expr:
    """Derivatives, limits and values at a point, which a formula shows as such, taken by sympy."""
    return expr.replace(lambda x: isinstance(x, Derivative | Limit | Subs), lambda x: x.doit(deep=False))


def agreeing(left: Expr, right: Expr, proved: Callable[[Expr, Expr], bool], how: str) -> Verdict:
    """left = right: in numbers, where sympy takes no derivative, and by `proved`, where it does."""
    well_formed(left, right)
    ok, note = tried(agree, left, right)
    if not ok:
        return Verdict(False, note)
    return Verdict(proved(carried_out(left), carried_out(right)), f"{how}; {note}")


def equal(text: str, left: Any, right: Any, *, called: Names | None = None) -> Step:
    """left = right for every size: by normal form, and by adding up at all small sizes."""
    left, right = sympify(left), sympify(right)

    def decide() -> Verdict:
        return agreeing(left, right, identical, "normal forms")

    formula = relation(left, "=", right, called)
    return Step(text, (formula,), scope_of(left, right), guarded(decide), given(left, right))


def independent(text: str, expr: Expr, index: Symbol, other: Symbol) -> Step:
    """The expression does not change when one index is put for another."""

    def decide() -> Verdict:
        return agreeing(expr, put(expr, index, other), identical, "normal forms")

    formula = relation(expr, "does not contain", str(index), None)
    return Step(text, (formula,), scope_of(expr), guarded(decide), given(expr))


def bounded(text: str, left: Any, right: Any, slack: Any, *, called: Names | None = None) -> Step:
    """left ≤ right: right − left is the slack (an identity), and the slack shows by its form that it is ≥ 0."""
    left, right, slack = sympify(left), sympify(right), sympify(slack)

    def decide() -> Verdict:
        well_formed(left, right, slack)
        ok, note = tried(at_most, left, right)
        if not ok:
            return Verdict(False, note)
        if not nonnegative(slack):
            return Verdict(False, "the slack may be negative")
        return Verdict(identical(right - left, slack), f"slack of one sign; {note}")

    formulas = [relation(left, "≤", right, called)]
    if slack not in (left, right):
        formulas.append(relation("right − left", "=", slack, called))
    return Step(text, tuple(formulas), scope_of(left, right), guarded(decide), given(left, right, slack))


def nonnegative(expr: Expr) -> bool:
    """Sums and products of what is nonnegative; even powers and exp of what is real; 1 − share, 1 − δ, 1 − exp(−y)."""
    if expr.is_nonnegative or isinstance(expr, KroneckerDelta) or (isinstance(expr, exp) and real(expr)):
        return True
    if isinstance(expr, Sum):
        return nonnegative(expr.function)
    if isinstance(expr, Pow):
        if expr.exp.is_integer and expr.exp.is_even:
            return real(expr.base)
        return bool(expr.exp.is_real) and nonnegative(expr.base)
    if isinstance(expr, Mul):
        return all(nonnegative(x) for x in expr.args)
    if isinstance(expr, Add):
        one, rest = expr.as_coeff_Add()
        if one == 1 and all(isinstance(x, KroneckerDelta) or is_share(x) for x in Mul.make_args(-rest)):
            return True
        if one == 1 and isinstance(-rest, exp):
            return nonnegative(expand(-(-rest).args[0]))
        return all(nonnegative(x) for x in expr.args)
    return False


def exactly(text: str, left: Any, right: Any, scope: str = NUMBERS, shown: str | None = None) -> Step:
    """left = right by sympy's calculus, where no indexed sum occurs; `shown` is printed for a left side worked out."""
    left, right = sympify(left), sympify(right)

    def simplified(x: Expr, y: Expr) -> bool:
        return simplify((x - y).rewrite(exp)) == 0

    def decide() -> Verdict:
        return agreeing(left, right, simplified, "simplification")

    formula = relation(left, "=", right, None, shown)
    return Step(text, (formula,), scope, guarded(decide), given(left, right))


def positive(text: str, expr: Any, scope: str = NUMBERS) -> Step:
    """expr > 0 by its form."""
    expr = sympify(expr)

    def decide() -> Verdict:
        well_formed(expr)
        ok, note = tried(at_most, Integer(0), expr)
        return Verdict(ok and bool(expr.is_positive), f"its form; {note}")

    return Step(text, (Relation(expr, ">", Integer(0)),), scope, guarded(decide), given(expr))


def at_sizes(
    text: str,
    formulas: Iterable[Relation],
    limit: int,
    names: str,
    holds: Callable[..., bool],
    where: Callable[..., bool] = lambda *_: True,
    level: str = TRIED,
) -> Step:
    """A statement about all sizes 1..limit in turn: tried on one instance each, or proved there for every one."""

    def decide() -> Verdict:
        done = 0
        for sizes in product(range(1, limit + 1), repeat=len(names.split())):
            if where(*sizes):
                done += 1
                if not holds(*sizes):
                    pairs = zip(names.split(), sizes, strict=True)
                    return Verdict(False, "fails for " + ", ".join(f"{name} = {size}" for name, size in pairs))
        return Verdict(done > 0, f"{done} cases")

    return Step(text, tuple(formulas), f"sizes {', '.join(names.split())} ≤ {limit}", decide, level=level)
