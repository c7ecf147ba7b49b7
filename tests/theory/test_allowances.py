"""What a statement allows for rounding is rounding: it shrinks with the unit roundoff, so nothing else hides in it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from breakers import PLAIN
from checks import some_directions, some_loss
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory import statements
from minibeft.theory.attention import attend
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.instance import Instance

# What is allowed beyond the statement's own limit, which is zero for an identity.
ROUNDING: dict[str, Callable[[Instance], Tensor]] = {
    "K1": lambda p: statements.key_effect(p).allowed,
    "K2": lambda p: statements.key_gradient(p, some_loss(p)).allowed,
    "V1": lambda p: statements.value_shift(p).allowed,
    "V2": lambda p: statements.value_fold(p).allowed,
    "V3": lambda p: statements.value_gradient(p, some_loss(p)).allowed,
    "Q1": lambda p: statements.query_form(p).allowed,
    "Q2": lambda p: statements.hull(p, some_directions(p)).allowed,
    "Q3": statements.query_errors,
    "Q3, of the output": lambda p: statements.query_effect(p).allowed - exact_effect(p),
    "Q4": lambda p: statements.blindness(p).allowed,
}


def exact_effect(p: Instance) -> Tensor:
    """The diameter of the values times what the weights may move by in exact arithmetic."""
    v = p.v(p.b_v)
    limit = statements.query_variation(p).allowed - statements.query_errors(p)
    return torch.cdist(v, v).amax((-2, -1)).unsqueeze(-1) * limit


@pytest.mark.parametrize("name", ROUNDING)
def test_what_is_allowed_shrinks_with_the_unit_roundoff(name: str):
    """The same numbers in both types: to first order the allowances have the ratio of the roundoffs, 2^29. The
    logarithm is computed in float64 in both, so for Q1 and Q4 the ratio is a few factors of two smaller."""
    p = replace(Layer.random(PLAIN).instance(), function=attend)
    single = replace(p, **{k: v.float() for k, v in vars(p).items() if isinstance(v, Tensor)})
    ratio = (ROUNDING[name](single).max() / ROUNDING[name](single.exact()).max()).item()
    expected = unit_roundoff(torch.float32) / unit_roundoff(torch.float64)
    assert expected / 32 < ratio < expected * 1.1
