"""The kinds of step: identities of any size, inequalities with their slack, calculus, and all sizes up to a limit."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

from sympy import (
    Add,
    Derivative,
    Expr,
    Indexed,
    Integer,
    KroneckerDelta,
    Limit,
    Mul,
    Pow,
    Sum,
    Symbol,
    exp,
    expand,
    simplify,
    sympify,
)

from minibeft.proofs.notation import RANGE, i, is_share, j, l, mu, softmax, table, u, z
from minibeft.proofs.numbers import agree, at_most, small_sizes
from minibeft.proofs.statement import EVERY, Relation, Step, Verdict
from minibeft.proofs.sums import identical

Names = dict[Expr, Expr]


def scope_of(*exprs: Expr) -> str:
    """Whether a formula speaks of every size, or has none to speak of."""
    sizes = {RANGE.get(x, x) for expr in exprs for x in expr.atoms(Symbol)} & set(RANGE.values())
    return EVERY if sizes else "all real numbers"


def tried(compare: Callable[..., bool], left: Expr, right: Expr) -> str:
    """The sizes at which the numbers disagree, or nothing."""
    for sizes in small_sizes(left, right):
        for seed in range(2):
            if not compare(left, right, sizes, seed):
                return "fails for " + ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return ""


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
    if isinstance(expr, Indexed | Limit | Derivative):
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
    """Derivatives and limits, which a formula shows as such, taken."""
    return expr.replace(lambda x: isinstance(x, Derivative | Limit), lambda x: x.doit(deep=False))


def equal(text: str, left: Any, right: Any, *, called: Names | None = None) -> Step:
    """left = right for every size: by normal form, and by adding up at all small sizes."""
    shown, left, right = sympify(left), carried_out(sympify(left)), sympify(right)

    def decide() -> Verdict:
        if failed := tried(agree, left, right):
            return Verdict(False, failed)
        return Verdict(identical(left, right), "normal forms")

    return Step(text, (relation(shown, "=", right, called),), scope_of(left, right), decide)


def independent(text: str, expr: Expr, index: Symbol, other: Symbol) -> Step:
    """The expression does not change when one index is put for another."""
    step = equal(text, expr, expr.xreplace({index: other}))
    return replace(step, formulas=(relation(expr, "does not contain", str(index), None),))


def bounded(text: str, left: Any, right: Any, slack: Any, *, called: Names | None = None) -> Step:
    """left ≤ right: right − left is the slack (an identity), and the slack shows by its form that it is ≥ 0."""
    left, right, slack = sympify(left), sympify(right), sympify(slack)

    def decide() -> Verdict:
        if failed := tried(at_most, left, right):
            return Verdict(False, failed)
        if not nonnegative(slack):
            return Verdict(False, "the slack may be negative")
        return Verdict(identical(right - left, slack), "slack of one sign")

    formulas = [relation(left, "≤", right, called)]
    if slack not in (left, right):
        formulas.append(relation("right − left", "=", slack, called))
    return Step(text, tuple(formulas), scope_of(left, right), decide)


def nonnegative(expr: Expr) -> bool:
    """Sums, products and even powers of what is nonnegative, exponentials, and 1 − share, 1 − δ, 1 − exp(−y)."""
    if expr.is_nonnegative or isinstance(expr, exp | KroneckerDelta):
        return True
    if isinstance(expr, Sum):
        return nonnegative(expr.function)
    if isinstance(expr, Pow):
        return bool(expr.exp.is_even) or nonnegative(expr.base)
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


def exactly(text: str, left: Any, right: Any, scope: str = "all real numbers", shown: str | None = None) -> Step:
    """left = right by sympy's calculus, where no indexed sum occurs; `shown` is printed for a left side worked out."""
    left, right = sympify(left), sympify(right)

    def decide() -> Verdict:
        return Verdict(simplify((carried_out(left) - right).rewrite(exp)) == 0, "simplification")

    return Step(text, (relation(left, "=", right, None, shown),), scope, decide)


def positive(text: str, expr: Any, scope: str = "all real numbers") -> Step:
    """expr > 0 by its form."""
    expr = sympify(expr)
    return Step(text, (Relation(expr, ">", Integer(0)),), scope, lambda: Verdict(bool(expr.is_positive), "its form"))


def at_sizes(
    text: str, formulas: Iterable[Relation], limit: int, names: str, holds: Callable[..., bool], where=lambda *_: True
) -> Step:
    """A statement of fixed sizes only: decided for all sizes 1..limit in turn."""

    def decide() -> Verdict:
        done = 0
        for sizes in product(range(1, limit + 1), repeat=len(names.split())):
            if where(*sizes):
                done += 1
                if not holds(*sizes):
                    pairs = zip(names.split(), sizes, strict=True)
                    return Verdict(False, "fails for " + ", ".join(f"{name} = {size}" for name, size in pairs))
        return Verdict(done > 0, f"{done} cases")

    return Step(text, tuple(formulas), f"sizes {', '.join(names.split())} ≤ {limit}", decide)
