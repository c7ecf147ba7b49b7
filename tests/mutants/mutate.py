"""Every small fault that can be planted in a module's functions: operators, constants, conditions, dropped statements.

A mutant is one edit of the syntax tree. Messages, annotations, docstrings, asserts and zip's `strict` are left alone:
they are for people, for the type checker, or checks themselves, and do not change what a right program computes.
Defaults of arguments and code outside of functions are left alone too, because they run only once, at import.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
LEFT = (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom, ast.arguments)  # not looked into


@dataclass(frozen=True)
class Mutant:
    """One fault. key: file, function, edit, and its number among equal ones, so that it outlives other edits.

    function   the outermost function that holds it, by its qualified name
    statement  (line, column) of the innermost statement that holds it
    """

    key: str
    file: str
    function: str
    statement: tuple[int, int]
    tree: ast.Module


def mutants(root: Path, file: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    text = (root / file).read_text()
    found, seen = [], dict[str, int]()
    for number in range(len(list(places(ast.parse(text))))):
        tree = ast.parse(text)
        where, function, statement, edit = list(places(tree))[number]
        before = ast.unparse(where)
        after = edit()
        name = f"{file}:{function}: {short(before)} → {short(after)}"
        seen[name] = seen.get(name, 0) + 1
        key = name if seen[name] == 1 else f"{name} ({seen[name]})"
        found.append(Mutant(key, file, function, statement, ast.fix_missing_locations(tree)))
    return found


def short(text: str) -> str:
    """One line."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:89]}…"


Edit = tuple[ast.AST, str, tuple[int, int], Callable[[], str]]


def places(tree: ast.Module) -> Iterator[Edit]:
    """What may be edited, with where it is and the edit, which changes the tree and returns what stands there then."""
    yield from inside(tree, "", "", (0, 0), set())


def inside(node: ast.AST, function: str, scope: str, at: tuple[int, int], bound: set[str]) -> Iterator[Edit]:
    """The edits below a node. bound: the names that the function has given a value before."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, LEFT) or is_docstring(node, name, i, child):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            here, inner, names = at, function, bound
            if isinstance(child, ast.stmt):
                here = (child.lineno, child.col_offset)
            below = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                below = f"{scope}{child.name}."
            if isinstance(child, ast.FunctionDef) and not function:
                inner = below[:-1]
                names = {a.arg for a in ast.walk(child.args) if isinstance(a, ast.arg)}
            if inner:
                yield from dropped(node, name, i, child, inner, here, names)
            if not isinstance(child, ast.Raise):
                yield from changed(node, name, i, child, inner, here) if inner else ()
                yield from inside(child, inner, below, here, names)


def is_docstring(node: ast.AST, name: str, i: int, child: ast.AST) -> bool:
    """Whether it is the text that begins a body."""
    return name == "body" and i == 0 and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def put(node: ast.AST, name: str, i: int, new: ast.AST) -> str:
    """Put a node in its place; the text that stands there then."""
    value = getattr(node, name)
    if isinstance(value, list):
        value[i] = new
    else:
        setattr(node, name, new)
    return ast.unparse(new)


def dropped(
    node: ast.AST, name: str, i: int, child: ast.AST, function: str, at: tuple[int, int], bound: set[str]
) -> Iterator[Edit]:
    """A statement that goes: a call, a raise, or a new value for a name that has one."""
    again = False
    if isinstance(child, ast.Assign | ast.AugAssign):
        targets = child.targets if isinstance(child, ast.Assign) else [child.target]
        names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        again = isinstance(child, ast.AugAssign) or names <= bound or not isinstance(targets[0], ast.Name | ast.Tuple)
        bound |= names
    if isinstance(child, ast.Expr | ast.Raise | ast.Continue | ast.Break) or again:
        yield child, function, at, lambda: put(node, name, i, ast.copy_location(ast.Pass(), child))


def changed(node: ast.AST, name: str, i: int, child: ast.AST, function: str, at: tuple[int, int]) -> Iterator[Edit]:
    """Another operator, another constant, a condition turned round."""
    if isinstance(child, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(child.op) in SWAPS:
        yield child, function, at, lambda: swap(child, "op", type(child.op))
    elif isinstance(child, ast.Compare) and len(child.ops) == 1:
        yield child, function, at, lambda: swap_compare(child)
    elif isinstance(child, ast.UnaryOp) and isinstance(child.op, ast.Not | ast.USub | ast.Invert):
        yield child, function, at, lambda: put(node, name, i, child.operand)
    elif isinstance(child, ast.Constant) and not isinstance(node, ast.UnaryOp):
        new = other(child.value)
        if new is not None:
            yield (
                child,
                function,
                at,
                lambda: put(node, name, i, ast.copy_location(ast.parse(repr(new), mode="eval").body, child)),
            )
    condition = name == "test" or (name == "ifs" and isinstance(node, ast.comprehension))
    if condition and isinstance(child, ast.expr) and not isinstance(child, ast.Compare | ast.UnaryOp):
        negated = ast.UnaryOp(ast.Not(), child)
        yield child, function, at, lambda: put(node, name, i, ast.copy_location(negated, child))


def swap(node: ast.AST, name: str, old: type) -> str:
    """Another operator."""
    setattr(node, name, SWAPS[old]())
    return ast.unparse(node)


def swap_compare(node: ast.Compare) -> str:
    """Another comparison."""
    node.ops = [SWAPS[type(node.ops[0])]()]  # type: ignore[list-item]
    return ast.unparse(node)


def other(value: object) -> object | None:
    """Another constant of the same type; None for what is left alone: texts that people read, and nothing."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value != 1 else 2
    if isinstance(value, str) and value and value.replace("_", "").replace(".", "").isalnum():
        return value + "x"
    return None


def functions(code: CodeType) -> Iterator[CodeType]:
    """The code of every function of a module that is not inside another function."""
    for const in code.co_consts:
        if isinstance(const, CodeType) and "<" not in const.co_qualname:
            yield const
            if not const.co_flags & inspect.CO_OPTIMIZED:  # a class's body
                yield from functions(const)


def traced(text: str, file: str) -> ast.Module:
    """The module, each statement of its functions preceded by a call of _hit((file, line, column))."""
    tree = ast.parse(text)
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Module | ast.ClassDef):
            continue
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                setattr(node, name, [part for stmt in body for part in (hit(stmt, file), stmt)])
    return ast.fix_missing_locations(tree)


def hit(stmt: ast.stmt, file: str) -> ast.Expr:
    """_hit((file, line, column)) of a statement."""
    return ast.parse(f"_hit({(file, stmt.lineno, stmt.col_offset)!r})").body[0]  # type: ignore[return-value]
