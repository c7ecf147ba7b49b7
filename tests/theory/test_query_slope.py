"""Q8 and Q9: b_q's gradient is a covariance, and P moves by at most osc(β)²/8 nats; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, far_above
from checks import check_nats, check_slope, some_loss
from hypothesis import given
from hypothesis import strategies as st
from planted import off_by_one, quadruple_b_q, rejects, rotated
from strategies import problems

from minibeft.certificate.witness import Layer
from minibeft.theory.instance import Instance
from minibeft.theory.query_slope import covariance, slope_bound
from minibeft.theory.statements import nats

MODERATE = 10.0


@given(problems((torch.float64,), blind=True))
def test_Q8_float64(p):
    check_slope(p)


@given(problems((torch.float32,), blind=True, magnitude=MODERATE))
def test_Q8_float32(p):
    check_slope(p)


@given(problems((torch.float64,), magnitude=1.0))
def test_Q8_and_rounding_is_no_excuse(p):
    assert covariance(p, some_loss(p)).allowed.max() < 1e-7


@given(problems((torch.float64,), blind=True, magnitude=MODERATE))
def test_Q9_float64(p):
    check_nats(p)


@given(problems((torch.float32,), blind=True, magnitude=MODERATE))
def test_Q9_float32(p):
    check_nats(p)


@pytest.mark.parametrize("bug", [quadruple_b_q, off_by_one, rotated])
def test_Q8_rejects(bug):
    assert rejects(check_slope, problems((torch.float64,), magnitude=MODERATE), function=bug)


@pytest.mark.parametrize("bug", [quadruple_b_q, rotated])
def test_Q9_rejects(bug):
    assert rejects(check_nats, problems((torch.float64,), magnitude=MODERATE), function=bug)


def two_keys(osc: float) -> Instance:
    """A query on two keys with values 0 and 1, whose logits b_q moves from −osc/2 and 0 to osc/2 and 0."""
    one = torch.ones(1, 1, dtype=torch.float64)
    y = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    b_q = torch.tensor([osc], dtype=torch.float64)
    return Instance(one[None], -osc / 2 * one, one, one, None, b_q, None, None, None, 1, 1, y=y).filled()


def test_Q8_is_attained():
    """Keys and values 0 and 1, a query 0, which gives both the weight 1/2: the gradient is s/4."""
    p = replace(two_keys(0.0), b_q=torch.zeros(1, dtype=torch.float64))
    gap = slope_bound(p, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert gap.value.item() == pytest.approx(0.25, rel=1e-12)
    assert gap.allowed.item() == pytest.approx(0.25, rel=1e-9)


@given(st.floats(0.01, 1.0))
def test_Q9_is_nearly_attained(osc):
    """From an even row KL is osc²/8 to fourth order."""
    one = torch.ones(1, 1, dtype=torch.float64)
    p = replace(two_keys(osc), w_q=0 * one)
    gap = nats(p)
    assert gap.value.max() > osc**2 / 8 * (1 - osc**2 / 4)


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("q"))
def test_Q8_needs(hypothesis, spec):
    p = Layer.random(spec).instance()
    assert far_above(covariance(p, some_loss(p)))


@pytest.mark.parametrize("change", [{"sink": "learned"}, {"differential": 0.3}, {"gate": True}], ids=str)
def test_Q8_needs_no_sink_rows_that_sum_to_one_ungated(change):
    p = Layer.random(replace(PLAIN, **change)).instance()
    assert far_above(covariance(p, some_loss(p)))


HARMLESS = {
    "ALiBi": {"position_bias": "alibi"},
    "window": {"window": 3},
    "MQA": {"heads": 4},
    "scale 1": {"scale": 1.0},
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_Q8_and_Q9_scope(change):
    p = Layer.random(replace(PLAIN, **change)).instance()
    check_slope(p, p.function)
    check_nats(p, p.function)
