"""The negative twins of Q1 to Q6: a hypothesis removed, and the statement fails."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, harmless, twins
from torch import Tensor

from minibeft.certificate.witness import Layer, double_difference
from minibeft.theory.attention import attend, project
from minibeft.theory.mechanisms import broken
from minibeft.theory.statements import blindness
from minibeft.theory.theorems import THEOREMS
from minibeft.theory.variants import without


def plain_layer(**change) -> Layer:
    return Layer.random(replace(PLAIN, **change))


def null_direction(layer: Layer) -> Tensor:
    """b_q orthogonal to every k_j − k̄, so that β is the same for all keys (Q5): zero osc by Q1's formula."""
    k = project(layer.y, layer.params.w_k, layer.params.b_k, layer.spec.kv_heads)  # (B, 1, S, D)
    differences = (k - k.mean(-2, keepdim=True))[:, 0].flatten(0, 1)
    null = torch.linalg.svd(differences, full_matrices=True).Vh[-1]
    return (3 * null).repeat(layer.spec.heads)


def moved_along(layer: Layer, b_q: Tensor) -> float:
    """The largest total variation by which b_q moves a row, the row's rest included."""
    before, after = (layer.run(replace(layer.params, b_q=b))[1] for b in (None, b_q))
    rest = (after.sum(-1) - before.sum(-1)).abs()
    return (((after - before).abs().sum(-1) + rest) / 2).max().item()


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("q"))
def test_Q1_Q3_Q4_Q5_need(hypothesis, spec):
    """A b_q that must do nothing (Q5: β is constant, so Q3's bound is 0) moves P; Q4's double difference changes."""
    assert broken(spec, "q") == (hypothesis,)
    layer = Layer.random(spec)
    assert moved_along(layer, null_direction(layer)) > 1e-4
    assert double_difference(layer.instance()) > 1e-4


@pytest.mark.parametrize("sink", ["learned", "one"])
def test_Q3_Q5_Q6_need_no_sink(sink):
    """The sink's logit stays while every key's moves by the same β: rows move though osc(β) over the keys is 0; and a
    b_q that pushes all keys down sends the mass to the sink, not to the maximiser."""
    layer = plain_layer(sink=sink)
    assert moved_along(layer, null_direction(layer)) > 1e-4
    b_q = 1e3 * null_direction(layer)
    k = project(layer.y, layer.params.w_k, layer.params.b_k, 1)
    down = b_q * -torch.sign((k[0, 0, 0] * b_q[:16]).sum())
    assert layer.run(replace(layer.params, b_q=down))[1][0].sum(-1).max() < 1e-6


def test_Q2_needs_no_sink_and_visible_key():
    """With values all equal to one the hull is the point one: a sink's row, and a row without keys, lie below it."""
    ones = {"w_v": torch.zeros(16, 6, dtype=torch.float64), "b_v": torch.ones(16, dtype=torch.float64), "w_o": None}
    layer = plain_layer(sink="one")
    assert (layer.run(replace(layer.params, **ones))[0] < 1 - 1e-4).any()
    mask = torch.full((1, 1, 7, 7), -torch.inf, dtype=torch.float64)
    p = layer.params
    blind = attend(layer.x, p.w_q, p.w_k, ones["w_v"], heads=2, kv_heads=1, b_v=ones["b_v"], mask=mask)
    assert (blind.output == 0).all()


@pytest.mark.parametrize(
    "change", [{"weighting": "sigmoid"}, {"weighting": "relu"}, {"differential": 0.3}, {"gate": True}], ids=str
)
def test_Q2_needs_softmax_rows_sum_to_one_ungated(change):
    layer = plain_layer(**change)
    w_v, b_v = torch.zeros(16, 6, dtype=torch.float64), torch.ones(16, dtype=torch.float64)
    output = layer.run(replace(layer.params, w_v=w_v, b_v=b_v, w_o=None))[0]
    assert ((output - 1).abs() > 0.01).any()


def test_Q3_needs_rows_sum_to_one_and_ungated():
    """λP' beside P, or a gate above one, multiplies the movement: the two-key equality case goes beyond tanh(osc/4).

    With opposite q in the second stream, P moves up while P' moves down by as much: 1 + λ times the bound.
    """
    osc, lam = 2.0, 0.3
    spec = replace(PLAIN, heads=1, head_size=1, width=1, causal=False, cross=True, differential=lam)
    layer = Layer.random(spec)
    x, y = torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    unit = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    params = replace(layer.params, w_q=-osc / 2 * two, w_k=torch.ones(2, 1, dtype=torch.float64), w_v=unit, w_o=None)
    params = without(params, "k", "v", "o")
    layer = replace(layer, params=params, x=x, y=y)

    def output(b_q):
        return layer.run(replace(params, b_q=b_q))[0].item()

    bound = torch.tanh(torch.tensor(osc / 4)).item()
    moved = abs(output(osc * two.flatten()) - output(None))
    assert moved > 1.2 * bound
    assert moved == pytest.approx((1 + lam) * bound, rel=1e-6)
    gated = 2 * (torch.sigmoid(torch.tensor(osc / 2)) - torch.sigmoid(torch.tensor(-osc / 2))).item()
    assert gated > 1.9 * bound


def test_Q_needs_all_that_the_catalogue_says():
    """Every hypothesis of Q1 to Q6 has a twin in this file."""
    found = twins("q")
    assert set(THEOREMS["Q1"].needs) | set(THEOREMS["Q4"].needs) == found
    elsewhere = {"no-sink", "rows-sum-to-one", "visible-key", "ungated", "unique-maximiser"}
    for name in ("Q2", "Q3", "Q5", "Q6"):
        assert set(THEOREMS[name].needs) <= found | elsewhere


@pytest.mark.parametrize("spec", harmless("q"))
def test_Q4_scope(spec):
    assert broken(spec, "q") == ()
    assert blindness(Layer.random(spec).instance()).holds
