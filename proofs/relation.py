"""What a formula is: two sides and a sign; as part of a claim, with the words that it stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sympy import sympify

MISSES = "does not contain"
SYMMETRIC = "is symmetric in"


@dataclass(frozen=True)
class Quantity:
    """A number or a matrix that a program computes, from sizes or from nothing, and what it is called."""

    name: str
    of: Callable[..., Any]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Relation:
    """left sign right. As part of a claim it `says` what the catalogue does in these words."""

    left: Any
    sign: str
    right: Any
    says: str = ""

    def same(self, other: "Relation") -> bool:
        """Whether both are the same formula."""
        return (self.left, self.sign, self.right) == (other.left, other.sign, other.right)


def says(words: str, left: Any, sign: str, right: Any) -> Relation:
    """A part of a claim."""
    sides = (x if isinstance(x, Quantity) else sympify(x) for x in (left, right))
    return Relation(next(sides), sign, next(sides), words)
