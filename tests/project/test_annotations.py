"""The shapes in minibeft's signatures are checked in this suite: a wrong one is an error, not a comment."""

import pytest
import torch
from jaxtyping import TypeCheckError

from minibeft.theory.attention import attend
from minibeft.theory.rotary import Rotary


def test_a_wrong_shape_is_refused():
    x, w = torch.zeros(2, 3, 4), torch.zeros(4, 4)
    attend(x, w, w, w, heads=2)
    with pytest.raises(TypeCheckError, match="w_k"):
        attend(x, w, torch.zeros(4, 5), w, heads=2)


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="positions"):
        Rotary(4).angles(torch.zeros(3))  # positions are integers
