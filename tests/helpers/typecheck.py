"""How annotations are checked in the suite: a call is held to its signature unless one alike has been.

Alike: of the same function, with arguments of the same types and shapes; what an object holds is compared by its fields
if it is a dataclass, and by its identity if not. What a signature says of a call depends on no more than these. Without
this the checks took more time than what they check. An int is a float, as in PEP 484 and in everybody's code.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
jaxtyped = jaxtyping.jaxtyped
TENSORS = {torch.Tensor, torch.nn.Parameter}
BY_VALUE = {int, bool, str, type(None), torch.dtype, torch.device}  # which shapes and literals may name
BY_TYPE = {float, FunctionType, torch.Generator, type(Path())}
MOST = 8  # longer collections are of no kind


def install(modules: list[str]) -> None:
    """Check the functions of these modules, which must not be imported yet."""
    jaxtyping.jaxtyped = once_a_kind  # type: ignore[assignment]  # the name that the hook's decorators look up
    install_import_hook(modules, "typecheck.check")


def once_a_kind(typechecker: Any) -> Callable[[Any], Any]:
    """jaxtyping's decorator, for functions at the first call of each kind."""

    def decorate(target: Any) -> Any:
        checked, known = jaxtyped(target, typechecker=typechecker), set[tuple[Any, ...]]()
        if isinstance(target, type):
            return checked

        @functools.wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if torch.compiler.is_compiling():  # the values are stand-ins
                return target(*args, **kwargs)
            try:
                kind = (*map(kind_of, args), *((name, kind_of(value)) for name, value in kwargs.items()))
            except Unknown:
                kind = None
            if kind in known:
                return target(*args, **kwargs)
            found = checked(*args, **kwargs)
            if kind is not None:
                known.add(kind)
            return found

        return call

    return decorate


class Unknown(Exception):
    """Of a value whose kind cannot be told in a few words."""


def kind_of(value: Any) -> Any:
    """What a signature can see of a value."""
    kind = type(value)
    if kind in TENSORS:
        return kind, value.shape, value.dtype
    if kind in BY_VALUE:
        return kind, value
    if kind in BY_TYPE:
        return kind
    if issubclass(kind, list | tuple | dict):
        if len(value) > MOST:
            raise Unknown
        return kind, *map(kind_of, value.items() if issubclass(kind, dict) else value)
    if hasattr(kind, "__dataclass_fields__"):
        return kind, *[kind_of(getattr(value, name, None)) for name in kind.__dataclass_fields__]
    return kind, id(value)


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the suite's own check of types, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
