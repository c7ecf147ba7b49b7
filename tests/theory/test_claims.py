"""Corner cases of the catalogue's claims: instances that were once overlooked, each with what is true there."""

import math

import pytest
import torch
from torch import Tensor

from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary
from minibeft.theory.variants import AttentionSpec, attend_variant, random_parameters


def one_key(b_q: float, **mechanism) -> float:
    """P of a query on its one key with W_k y = 0 and b_k = 1: what b_q b_k moves."""
    spec = AttentionSpec(1, 1, 1, 1, **mechanism)
    p = random_parameters(spec, Draws(0))
    for name in ("w_q", "w_k", "b_q", "sink"):
        getattr(p, name).zero_()
    p.b_q.add_(b_q)  # type: ignore[union-attr]
    p.b_k.fill_(1.0)  # type: ignore[union-attr]
    weights = attend_variant(spec, p, torch.ones(1, 1, 1, dtype=torch.float64)).weights
    assert weights is not None
    return weights.item()


def test_Q1_beside_a_sink_the_constant_part_of_beta_moves_P():
    """β = s b_q·b_k although W_k y = 0: P goes from 1/2 to e/(1 + e). With a softmax over keys alone it stays."""
    assert one_key(0.0, sink="learned") == pytest.approx(1 / 2)
    assert one_key(1.0, sink="learned") == pytest.approx(math.e / (1 + math.e))
    assert one_key(1.0, weighting="sigmoid") > one_key(0.0, weighting="sigmoid") + 0.1
    assert one_key(1.0) == one_key(0.0) == 1.0


def rms_step(gradients: Tensor) -> float:
    """The first entry's step under an optimiser that divides by the root mean square of all that trains."""
    return (gradients / gradients.square().mean().sqrt())[0].item()


def test_K3_needs_an_optimiser_that_does_not_mix_parameters():
    """One entry of a head with gradient 1, alone and beside three of b_k with gradient 0: a step of 1, a step of 2."""
    assert rms_step(torch.tensor([1.0])) == 1.0
    assert rms_step(torch.tensor([1.0, 0.0, 0.0, 0.0])) == 2.0


def test_R1_vera_is_zero_beyond_rank_r_without_a_zero_diagonal():
    """r = c = 1, k = 2, A = B = 1: λ = (1, −1) cancels."""
    a, b = torch.ones(2, 1), torch.ones(1, 2)
    delta, beta = torch.tensor([[1.0, -1.0]]), torch.ones(1, 1)
    assert delta.all()
    assert beta.all()
    assert ((delta.T * a).T @ (beta.T * b).T).item() == 0.0


def test_V4_sharing_heads_may_still_reach_everything():
    """Two groups of two query heads of one dim in a model of two: W_o E has rank 2 = C."""
    w_o = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    shared = w_o.view(2, 2, 2).sum(2)  # W_o E
    assert torch.linalg.matrix_rank(shared) == 2
    g, target = Draws(0), torch.tensor([3.0, -1.0], dtype=torch.float64)
    x, w_q, w_kv = g.normal(1, 3, 2), g.normal(4, 2), g.normal(2, 2)
    b_v = torch.linalg.solve(shared, target)
    moved, still = (attend(x, w_q, w_kv, w_kv, w_o, heads=4, kv_heads=2, b_v=b).output for b in (b_v, None))
    torch.testing.assert_close(moved - still, target.expand(1, 3, 2))


def test_Q5_equal_values_hide_what_b_q_does_to_P():
    g = Draws(0)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    p = Instance(
        g.normal(1, 4, 2), g.normal(2, 2), g.normal(2, 2), zero, None, g.normal(2), None, g.normal(2), None, 1, 1
    )
    assert (p.weights() - p.weights(b_q=None)).abs().max() > 0.01
    torch.testing.assert_close(p.outputs(), p.outputs(b_q=None))


def test_Q7_and_K4_read_the_same_shift():
    """β under rotary positions, as Instance gives it, is what b_q adds to the logits."""
    g = Draws(0)
    turn = Rotary(4).rotate(torch.arange(5)).double()
    x, w_q, w_k, w_v, b_q, b_k = (g.normal(*shape) for shape in ((2, 5, 3), (4, 3), (4, 3), (4, 3), (4,), (4,)))
    p = Instance(x, w_q, w_k, w_v, None, b_q, b_k, None, None, heads=1, kv_heads=1, rotate=turn)
    assert p.b_q is not None
    added = p.factor * (p.q(p.b_q) - p.q(None)) @ p.k(p.b_k).mT
    torch.testing.assert_close(p.shift(p.b_q), added)
