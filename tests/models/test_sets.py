"""Several sets of biases over one map: each row adds its own, in every type, and nothing is left behind."""

import pytest
import torch

from minibeft.models.layers import Linear
from minibeft.models.packed import sets
from minibeft.models.packed.dropout import Dropout
from minibeft.models.packed.sets import Rows, Sets, in_sets
from minibeft.theory.draws import Draws

OWNERS = torch.tensor([1, 0, 1])
SEGMENTS = [2, 1, 3]
PICKED = OWNERS.repeat_interleave(torch.tensor(SEGMENTS))


def problem(dtype: torch.dtype, table: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Sets]:
    """x, W and two sets of biases, all of them small whole numbers, which no type rounds."""
    draws = Draws(2)
    x, weight, biases = (draws.integers(-3, 4, *shape).to(dtype) for shape in ((6, 4), (5, 4), (2, 5)))
    return x, weight, Sets(biases.to(table), Rows(OWNERS, SEGMENTS, SEGMENTS))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("table", [torch.float32, torch.float64])
def test_each_row_adds_the_bias_of_its_set(table, grad):
    """The result has the type of the product, whatever that of the biases."""
    x, weight, biases = problem(torch.float32, table)
    with torch.set_grad_enabled(grad):
        found = biases.linear(x, weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, x @ weight.T + biases.table[PICKED].float())


def test_under_autocast_the_result_is_narrow():
    x, weight, biases = problem(torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = biases.linear(x, weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), x @ weight.T + biases.table[PICKED])


def test_evaluation_goes_by_the_frozen_map(monkeypatch):
    """And training, which oneDNN would cost memory, does not."""
    calls = []
    monkeypatch.setattr(sets, "frozen_linear", lambda x, w, _: calls.append(1) or x @ w.T)
    x, weight, biases = problem(torch.float32, torch.float32)
    biases.linear(x, weight)
    assert not calls
    with torch.no_grad():
        biases.linear(x, weight)
    assert calls


@pytest.mark.parametrize("streams", [(), (None, None, None)])
def test_afterwards_the_model_is_as_it_was(streams):
    """Only where there are streams does dropout hear of the rows."""
    linear, drop = Linear(4, 5), Dropout(0.5)
    rows, table = Rows(OWNERS, SEGMENTS, SEGMENTS, streams), torch.zeros(2, 5)
    with in_sets(torch.nn.Sequential(linear, drop), {"0.bias": table}, rows):
        assert linear.sets == Sets(table, rows)
        assert drop.rows is (rows if streams else None)
    assert linear.sets is None
    assert drop.rows is None
