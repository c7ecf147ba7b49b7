"""How annotations are checked in the suite: a call is checked against its signature unless a similar call has been.

Similar calls: the same function, with arguments of the same types and shapes. A dataclass is compared by its fields,
any other object by its type, a string by its value where the signature lists the allowed ones (Literal); the value of
a number does not count. Without this the checks took longer than the code that they check. An int counts as a float,
as in PEP 484.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, get_args, get_origin
from weakref import ref

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
jaxtyped = jaxtyping.jaxtyped
TENSORS = {torch.Tensor, torch.nn.Parameter}
BY_VALUE = {bool, type(None), torch.dtype, torch.device}
NUMBERS: dict[tuple[Any, ...], int] = {}
FROZEN: dict[int, tuple[ref[Any], int]] = {}
MOST = 8  # of a collection's items; of a long one beartype itself looks at one


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
        words = any(map(names_words, target.__annotations__.values()))

        @functools.wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if torch.compiler.is_compiling():  # the values are stand-ins
                return target(*args, **kwargs)
            kind = (*map(kind_of, args), *((name, kind_of(value)) for name, value in kwargs.items()))
            if words:
                kind += tuple(value for value in (*args, *kwargs.values()) if type(value) is str)
            if kind in known:
                return target(*args, **kwargs)
            found = checked(*args, **kwargs)
            known.add(kind)
            return found

        return call

    return decorate


def kind_of(value: Any) -> Any:
    """What a signature can see of a value."""
    kind = type(value)
    if kind in TENSORS:
        return kind, value.shape, value.dtype
    if kind in BY_VALUE:
        return kind, value
    if issubclass(kind, list | tuple | dict):
        return kind, *map(kind_of, islice(value.items() if issubclass(kind, dict) else value, MOST))
    if hasattr(kind, "__dataclass_fields__"):
        return fields_of(value)
    return (kind, id(value)) if isinstance(value, type) else kind


def fields_of(value: Any) -> int:
    """The kind of a dataclass's fields, as one number; of a frozen one found once."""
    kind = type(value)
    was, number = FROZEN.get(id(value), (None, 0))
    if was is not None and was() is value:
        return number
    found = kind, *[kind_of(getattr(value, name, None)) for name in kind.__dataclass_fields__]
    number = NUMBERS.setdefault(found, len(NUMBERS))
    if kind.__dataclass_params__.frozen:
        FROZEN[id(value)] = ref(value, forgetting(id(value))), number
    return number


def forgetting(key: int) -> Callable[[Any], Any]:
    """To call when the object is deleted: another object may get its id."""
    return lambda _: FROZEN.pop(key, None)


def names_words(hint: Any) -> bool:
    """Whether a signature says which words an argument may be."""
    return isinstance(hint, str) or get_origin(hint) is Literal or any(map(names_words, get_args(hint)))


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the suite's own check of types, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
