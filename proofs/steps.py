"""The kinds of step: identities of any size, inequalities with their slack, calculus, and all sizes up to a limit."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

from sympy import (
    Abs,
    Add,
    Derivative,
    Expr,
    Function,
    I,
    Indexed,
    IndexedBase,
    Integer,
    KroneckerDelta,
    Limit,
    MatrixBase,
    Max,
    Min,
    Mul,
    Pow,
    Subs,
    Sum,
    Symbol,
    cos,
    cosh,
    default_sort_key,
    exp,
    expand,
    log,
    simplify,
    sin,
    sinh,
    sympify,
    tanh,
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
from minibeft.proofs.relation import MISSES, SYMMETRIC, Quantity, Relation, says
from minibeft.proofs.statement import EVERY, NUMBERS, TRIED, Step, Verdict
from minibeft.proofs.sums import identical

Names = dict[Expr, Expr]


def scope_of(*exprs: Expr) -> str:
    """Whether a formula is about every size, or about no size at all."""
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
    if masked := [x for x in zero if isinstance(x, Sum) and all(is_mask(y) for y in factors(x.function))]:
        zero = [x for x in zero if x not in masked]
        signs[">", Integer(0)] = [*signs.get((">", Integer(0)), []), "some μ of each row"]
    return (
        *(Relation(", ".join(sorted(names)), *low) for low, names in sorted(signs.items(), key=str)),
        *(Relation(named(x, WEIGHTS), "≠", Integer(0)) for x in sorted(zero, key=default_sort_key)),
    )


def is_mask(factor: Expr) -> bool:
    """A factor of the sum that a softmax divides by."""
    return isinstance(factor, exp) or (isinstance(factor, Indexed) and factor.base == mu)


def real(expr: Expr) -> bool:
    """Whether every number in the formula is declared real, and the imaginary unit does not occur."""
    return all(x.is_real for x in [*entries(expr), *expr.atoms(AppliedUndef)]) and not expr.has(I)


REAL = exp | cos | sin | cosh | sinh | tanh | Abs | Max | Min | KroneckerDelta | AppliedUndef  # of real arguments


def surely_real(expr: Expr) -> bool:
    """Whether the expression itself is real: no root or logarithm of what may be negative, no other function."""
    roots = (x for x in expr.atoms(Pow) if not x.exp.is_integer)
    logs, others = expr.atoms(log), (x for x in expr.atoms(Function) if not isinstance(x, REAL | log))
    return (
        real(expr)
        and all(x.exp.is_real and nonnegative(x.base) for x in roots)
        and all(nonnegative(x.args[0]) and nonzero(x.args[0]) for x in logs)
        and not any(others)
    )


def nonzero(expr: Expr) -> bool:
    """Whether a denominator shows by its form that it is not 0."""
    if isinstance(expr, Add | Sum):
        parts = expr.args if isinstance(expr, Add) else (expr.function,)
        return any(nonzero(x) for x in parts) and all(nonnegative(x) for x in parts)
    if isinstance(expr, Mul):
        return all(nonzero(x) for x in expr.args)
    return bool(expr.is_positive) or bool(expr.is_nonzero) or (isinstance(expr, exp | cosh) and surely_real(expr))


def well_formed(*exprs: Expr) -> None:
    """Refuse a formula that leaves in doubt which number is meant, or whose numbers may be complex."""
    for expr in exprs:
        if not real(expr):
            names = sorted({str(x) for x in [*entries(expr), *expr.atoms(AppliedUndef)] if not x.is_real})
            raise Refused(f"not declared real: {', '.join(names)}")
        for total in expr.atoms(Sum):
            if any(low != 1 or RANGE.get(name) != top for name, low, top in total.limits):
                raise Refused("a sum that does not run over the whole range of an index")
            if twice := {name for name, _, _ in total.limits} & bound_names(total.function):
                raise Refused(f"two sums, one within the other, run over {twice.pop()}")
        for slope in expr.atoms(Derivative):
            held = set().union(*(x.free_symbols for x in slope.variables))
            if caught := held & bound_names(slope.expr):
                raise Refused(f"∂ by an entry at {caught.pop()}, over which a sum within runs")
            if set(slope.variables) & set(RANGE):
                raise Refused("∂ by an index")
    ranges = {str(x) for expr in exprs for x in expr.atoms(Symbol) if x in RANGE or x in RANGE.values()}
    names = [(isinstance(x, IndexedBase), str(x)) for x in entries(*exprs)]
    if double := {name for indexed, name in names if not indexed and name in ranges}:
        raise Refused(f"{double.pop()} is an index or a size, and a number too")
    if double := {name for _, name in names if names.count((True, name)) > 1 or names.count((False, name)) > 1}:
        raise Refused(f"two different numbers are called {double.pop()}")


def guarded(decide: Callable[[], Verdict]) -> Callable[[], Verdict]:
    """The decision, except that a refused formula counts as a failure."""

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
    if not isinstance(expr, Expr) or expr.is_Atom:
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


def printed(claim: Relation, called: Names | None) -> tuple[Relation, ...]:
    """The formula as it is printed: P_ij for the softmax of z_ij, and each other name with the expression it means."""
    names = {**(called or {}), **WEIGHTS}
    left, right = (named(x, names) for x in (claim.left, claim.right))
    used = set().union(*(x.atoms(Symbol, Indexed) for x in (left, right) if isinstance(x, Expr)))
    stand = {name: full for full, name in reversed((called or {}).items()) if name in used}
    return (Relation(left, claim.sign, right), *(Relation(name, "stands for", x) for name, x in stand.items()))


def faithful(claim: Relation, called: Names | None) -> bool:
    """Whether the formula as it is printed is the one that is decided, once the names are written out."""
    formula, *stand = printed(claim, called)
    taken = {str(x) for x in entries(*(x for x in (claim.left, claim.right) if isinstance(x, Expr)))}
    if any(str(getattr(x.left, "base", x.left)) in taken for x in stand):
        return False
    full = {name: x for x, name in reversed({**(called or {}), **WEIGHTS}.items())}
    pairs = [(x, y) for x, y in ((formula.left, claim.left), (formula.right, claim.right)) if x != y]
    return all((whole := shown.xreplace(full)) == side or identical(whole, side) for shown, side in pairs)


def sides(sign: str, left: Any, right: Any) -> Relation:
    """The formula that a step of this sign is to decide: two sides, or a part of the claim."""
    if isinstance(left, Relation):
        return left
    return says("", left, sign, right)


def signed(sign: str, claim: Relation) -> None:
    if claim.sign != sign:
        raise Refused(f"this step decides {sign}, not {claim.sign}")
    if claim.left == claim.right:
        raise Refused("both sides are the same expression, which says nothing")


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


def equal(text: str, left: Any, right: Any = None, *, called: Names | None = None) -> Step:
    """left = right for every size: by normal form, and by adding up at all small sizes."""
    claim = sides("=", left, right)

    def decide() -> Verdict:
        signed("=", claim)
        if not faithful(claim, called):
            raise Refused("what is printed is not what is decided")
        return agreeing(claim.left, claim.right, identical, "normal forms")

    return step(text, claim, printed(claim, called), decide)


def step(text: str, claim: Relation, formulas: tuple[Relation, ...], decide: Callable[[], Verdict]) -> Step:
    """A step that is decided for all numbers and sizes."""
    exprs = [x for x in (claim.left, claim.right) if isinstance(x, Expr)]
    return Step(text, formulas, scope_of(*exprs), guarded(decide), given(*exprs), decides=claim)


def independent(text: str, claim: Relation) -> Step:
    """The expression does not change when one index is replaced by another."""
    expr, index = claim.left, claim.right

    def decide() -> Verdict:
        signed(MISSES, claim)
        other = next(x for x in RANGE if RANGE[x] == RANGE[index] and not expr.has(x))
        return agreeing(expr, put(expr, index, other), identical, "normal forms")

    return step(text, claim, printed(claim, None), decide)


def symmetric(text: str, claim: Relation) -> Step:
    """The expression does not change when two of its numbers, or two tables, are exchanged."""
    expr, (one, other) = claim.left, claim.right

    def decide() -> Verdict:
        signed(SYMMETRIC, claim)
        return agreeing(expr, expr.xreplace({one: other, other: one}), identical, "normal forms")

    return step(text, claim, (Relation(expr, SYMMETRIC, f"{one} and {other}"),), decide)


def bounded(text: str, left: Any, right: Any = None, slack: Any = None, *, called: Names | None = None) -> Step:
    """left ≤ right: right − left is the slack (an identity), and the slack shows by its form that it is ≥ 0."""
    claim, slack = sides("≤", left, right), sympify(slack)

    def decide() -> Verdict:
        signed("≤", claim)
        well_formed(claim.left, claim.right, slack)
        ok, note = tried(at_most, claim.left, claim.right)
        if not ok:
            return Verdict(False, note)
        if not nonnegative(slack):
            return Verdict(False, "the slack may be negative")
        if not faithful(claim, called):
            raise Refused("what is printed is not what is decided")
        return Verdict(identical(claim.right - claim.left, slack), f"slack of one sign; {note}")

    formulas = printed(claim, called)
    if slack not in (claim.left, claim.right):
        formulas += printed(Relation("right − left", "=", slack), called)[:1]
    return step(text, claim, formulas, decide)


def nonnegative(expr: Expr) -> bool:
    """Sums and products of what is nonnegative; even powers and exp of what is real; 1 − share, 1 − δ, 1 − exp(−y)."""
    if expr.is_nonnegative or isinstance(expr, KroneckerDelta) or (isinstance(expr, exp) and surely_real(expr)):
        return True
    if isinstance(expr, Sum):
        return nonnegative(expr.function)
    if isinstance(expr, Pow):
        if expr.exp.is_integer and expr.exp.is_even:
            return surely_real(expr.base)
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


def exactly(text: str, left: Any, right: Any = None, scope: str = "") -> Step:
    """left = right by sympy's calculus, where no indexed sum occurs; a quantity is worked out first."""
    claim = sides("=", left, right)

    def simplified(x: Expr, y: Expr) -> bool:
        return simplify((x - y).rewrite(exp)) == 0

    def decide() -> Verdict:
        signed("=", claim)
        number = sympify(claim.left.of()) if isinstance(claim.left, Quantity) else claim.left
        return agreeing(number, claim.right, simplified, "simplification")

    made = step(text, claim, (Relation(claim.left, "=", claim.right),), decide)
    return replace(made, scope=scope or made.scope)


def positive(text: str, expr: Any) -> Step:
    """expr > 0 by its form."""
    claim = sides(">", expr, 0)

    def decide() -> Verdict:
        signed(">", claim)
        well_formed(claim.left, claim.right)
        ok, note = tried(at_most, claim.right, claim.left)
        return Verdict(ok and claim.right == 0 and bool(claim.left.is_positive), f"its form; {note}")

    return step(text, claim, (claim,), decide)


def at_sizes(
    text: str,
    claim: Relation,
    limit: int,
    names: str,
    where: Callable[..., bool] = lambda *_: True,
    level: str = TRIED,
) -> Step:
    """A formula of fixed sizes, for all sizes 1..limit: tried on one instance each, or proved there for every one."""
    sizes = names.split()

    def at(side: Any, numbers: tuple[int, ...]) -> Any:
        if isinstance(side, Quantity):
            return side.of(*numbers)
        value = side.subs({Symbol(name): number for name, number in zip(sizes, numbers, strict=True)})
        if not value.is_Integer:
            raise Refused(f"{side} is no number at these sizes")
        return value

    def holds(numbers: tuple[int, ...]) -> bool:
        left, right = (at(side, numbers) for side in (claim.left, claim.right))
        if claim.sign == "≤":
            return bool(left <= right)
        signed("=", claim)
        if isinstance(left, MatrixBase):
            return left.shape == right.shape and (left - right).expand().is_zero_matrix is True
        return expand(left - right) == 0

    def decide() -> Verdict:
        cases = [x for x in product(range(1, limit + 1), repeat=len(sizes)) if where(*x)]
        for numbers in cases:
            if not holds(numbers):
                pairs = zip(sizes, numbers, strict=True)
                return Verdict(False, "fails for " + ", ".join(f"{name} = {size}" for name, size in pairs))
        return Verdict(bool(cases), f"{len(cases)} cases")

    scope = f"sizes {', '.join(sizes)} ≤ {limit}"
    return Step(text, (claim,), scope, guarded(decide), level=level, decides=claim)
