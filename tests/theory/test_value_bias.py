"""V1 to V6: b_v is a shift that folds into b_o; where it is not, what it is; each with what must be rejected."""

import math
from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, far_above, harmless, some, twins
from checks import U, check_fold, check_gradient, check_shift
from hypothesis import assume, given
from planted import mixed_up_groups, off_by_one, rejects, thin_rows
from strategies import problems

from minibeft.certificate.witness import Layer, fold, reach
from minibeft.theory.attention import attend
from minibeft.theory.bounds import (
    gamma,
    value_fold_bound,
    value_gradient_bound,
    value_shift_bound,
)
from minibeft.theory.draws import Draws
from minibeft.theory.mechanisms import broken, restore
from minibeft.theory.statements import logit_errors, value_fold, value_shift
from minibeft.theory.theorems import THEOREMS
from minibeft.theory.variants import without


@given(problems((torch.float64,), blind=True))
def test_V1_float64(p):
    check_shift(p)


@given(problems((torch.float32,), blind=True))
def test_V1_float32(p):
    check_shift(p)


@pytest.mark.parametrize("bug", [mixed_up_groups, thin_rows, off_by_one])
def test_V1_rejects(bug):
    assert rejects(check_shift, problems((torch.float32,)), function=bug)


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("v"))
def test_V1_and_V2_need(hypothesis, spec):
    """V5: the hypothesis removed, folding changes the output far above rounding; restored, it does not."""
    assert broken(spec, "v") == (hypothesis,)
    assert far_above(fold(spec))
    assert fold(restore(spec, "v", {hypothesis})).holds
    if hypothesis != "raw-output":  # which V1 does not need: it is about O itself
        assert far_above(value_shift(Layer.random(spec).instance()))


def test_V1_and_V2_need_all_that_the_catalogue_says():
    """Every hypothesis of V2 has a twin here; 'visible-key' has test_V1_needs_visible_key."""
    assert twins("v") | {"visible-key"} == set(THEOREMS["V2"].needs)
    assert set(THEOREMS["V2"].needs) - set(THEOREMS["V1"].needs) == {"raw-output"}


@pytest.mark.parametrize("fused", [True, False])
def test_V1_needs_visible_key(fused):
    """A row that sees no key is zero with and without b_v, on both paths."""
    layer = Layer.random(PLAIN)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    mask[..., 3, :] = -torch.inf
    p = layer.params
    out = attend(layer.x, p.w_q, p.w_k, p.w_v, heads=2, kv_heads=1, b_v=p.b_v, mask=mask, fused=fused).output
    assert (out[:, 3] == 0).all()
    assert (out[:, 2] != 0).all()


@pytest.mark.parametrize("spec", harmless("v"))
def test_V1_scope(spec):
    assert broken(spec, "v") == ()
    assert fold(spec).holds
    assert value_shift(Layer.random(spec).instance()).holds


@given(problems())
def test_V2(p):
    check_fold(p)


def test_V2_rejects_a_wrong_repeat():
    assert rejects(check_fold, problems(), function=mixed_up_groups)


@given(problems((torch.float64,), blind=True))
def test_V3_float64(p):
    check_gradient(p)


@given(problems((torch.float32,), blind=True))
def test_V3_float32(p):
    check_gradient(p)


@pytest.mark.parametrize("bug", [mixed_up_groups, thin_rows, off_by_one])
def test_V3_rejects(bug):
    assert rejects(check_gradient, problems((torch.float32,), magnitude=1.0), function=bug)


@given(problems((torch.float64,)))
def test_V3_through_the_output_projection(p):
    """∂L/∂b_v = W_oᵀ ∂L/∂b_o, summed over the group: no backward pass through the attention."""
    b_v, b_o = p.b_v.clone().requires_grad_(), p.b_o.clone().requires_grad_()
    output = p.run(w_o=p.w_o, b_v=b_v, b_o=b_o).output
    d_out = Draws(1).normal(*output.shape, dtype=output.dtype)
    g_v, g_o = torch.autograd.grad(output, (b_v, b_o), d_out)
    by_head = (p.w_o.mT @ g_o).view(p.kv_heads, p.group, -1).sum(1).flatten()
    # Both are sums of B T C H products; P's rows sum to one within the error of two evaluations of its logits.
    terms = (d_out.abs() @ p.w_o.abs()).unflatten(-1, (p.heads, -1)).transpose(1, 2)  # (B, H, T, D)
    sizes = p.sizes("k", p.b_k)
    rows = value_gradient_bound(terms, p.q(p.b_q), p.k(p.b_k), sizes, p.arithmetic)
    sums = gamma(p.x.shape[0] * p.x.shape[1] + p.w_o.numel(), p.arithmetic.u) * terms.sum((0, 2))
    allowed = (rows + 2 * sums).view(p.kv_heads, p.group, -1).sum(1).flatten()
    assert ((g_v - by_head).abs() <= allowed).all()


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("v"))
def test_V3_needs(hypothesis, spec):
    """Without the hypothesis, ∂L/∂b_v is not W_oᵀ ∂L/∂b_o."""
    layer = Layer.random(spec)
    p = layer.params
    b_v, b_o = (some(b).clone().requires_grad_() for b in (p.b_v, p.b_o))
    output, _ = layer.run(replace(p, b_v=b_v, b_o=b_o))
    g_v, g_o = torch.autograd.grad(output.square().sum(), (b_v, b_o))
    by_head = (some(p.w_o).mT @ g_o).view(spec.kv_heads, -1, spec.head_size).sum(1).flatten()
    assert (g_v - by_head).norm() > 1e-3 * by_head.norm()


@given(problems((torch.float64,)))
def test_V4_b_v_reaches_what_b_o_reaches(p):
    """With as many heads' dims as model dims and no sharing, W_o b_v = s is solved for every shift s of the output."""
    assume(p.kv_heads == p.heads)
    size = p.w_q.shape[0]
    g = Draws(size)
    w_o, target = (g.normal(*shape) for shape in ((size, size), (size,)))
    assume(torch.linalg.cond(w_o) < 1e3)
    b_v = torch.linalg.solve(w_o, target)
    moved = p.run(w_o=w_o, b_v=b_v).output - p.run(w_o=w_o, b_v=None).output
    heads = b_v.view(p.heads, 1, -1)
    sizes = p.sizes("v")
    shift = value_shift_bound(sizes, heads, p.arithmetic).amax((0, 2)).flatten()
    allowed = value_fold_bound(shift, 2 * sizes.amax((0, 2)).flatten(), w_o, b_v, target, p.arithmetic)
    missed = (w_o @ b_v - target).abs()
    assert missed.max() < 1e-9 * target.abs().max()  # solving costs some cond(W_o) u, of order 1e-12
    assert ((moved - target).abs() <= allowed + missed).all()


@pytest.mark.parametrize(("heads", "kv_heads", "size", "width"), [(4, 2, 3, 12), (4, 1, 3, 12), (2, 2, 3, 9)])
def test_V4_needs_full_rank_output(heads, kv_heads, size, width):
    """GQA, or a W_o of rank below C: some output shift that b_o makes is out of b_v's reach (V6 says by how much)."""
    layer = Layer.random(replace(PLAIN, heads=heads, kv_heads=kv_heads, head_size=size, width=width))
    w_o = some(layer.params.w_o)
    columns = [layer.instance().per_head(e).flatten() for e in torch.eye(kv_heads * size, dtype=torch.float64)]
    reachable = w_o @ torch.stack(columns, 1)  # (C, GD)
    target = Draws(0).normal(width)
    residual = target - reachable @ torch.linalg.lstsq(reachable, target).solution
    assert residual.norm() > 0.05 * target.norm()


@pytest.mark.parametrize("rank", [None, 1, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_V6_rank(heads, kv_heads, rank):
    """b_v reaches rank(W_o E) ≤ min(C, rank W_o, G D) dimensions, measured on outputs; generic weights attain it."""
    spec = replace(PLAIN, heads=heads, kv_heads=kv_heads, head_size=3, width=8)
    layer = Layer.random(spec)
    if rank is not None:
        u, s, vt = torch.linalg.svd(some(layer.params.w_o), full_matrices=False)
        layer = replace(layer, params=replace(layer.params, w_o=(u[:, :rank] * s[:rank]) @ vt[:rank]))
    zero = layer.run(without(layer.params, "v"))[0]
    moved = [
        (layer.run(replace(layer.params, b_v=e))[0] - zero)[0, 0] for e in torch.eye(kv_heads * 3, dtype=torch.float64)
    ]
    measured = int(torch.linalg.matrix_rank(torch.stack(moved), atol=1e-9))
    assert measured == reach(layer) == min(8, 8 if rank is None else rank, kv_heads * 3)


@given(problems((torch.float64,), magnitude=1.0))
def test_V5_dropout_shifts_by_the_row_sum(p):
    """The shift is r_i b_v, r_i the row sum after dropout; the same entries are dropped in both runs."""

    def run(**changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return p.run(dropout=0.5, fused=False, **changes).output.unflatten(-1, (p.heads, -1)).transpose(1, 2)

    # The row sums, read off a run whose values are all one: W_v = 0 and b_v = 1.
    rows = run(w_v=torch.zeros_like(p.w_v), b_v=torch.ones_like(p.b_v))
    residual = (run() - run(b_v=None) - rows * p.per_head(p.b_v)).abs()
    # Twice V1's bound: kept weights are doubled.
    allowed = 2 * value_shift_bound(p.sizes("v"), p.per_head(p.b_v), p.arithmetic)
    assert (residual <= allowed).all()


def test_V5_dropout_is_right_in_expectation():
    """E r_i = 1, though no single draw is one. A row sum lies between 0 and 1/(1 − rate), so by Hoeffding's inequality
    the mean of n draws is further than t from one with a chance of at most 2 exp(−2n (t (1 − rate))²)."""
    rate, draws, chance = 0.3, 4000, 1e-12  # of a false alarm, for each of the few rows
    layer = Layer.random(replace(PLAIN, causal=False, dropout=rate))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sums = torch.stack([layer.run(layer.params, training=True)[1].sum(-1) for _ in range(draws)])
    furthest = math.sqrt(math.log(2 / chance) / (2 * draws)) / (1 - rate)
    assert furthest < 0.1 < rate  # without the division by 1 − rate the mean would be off by the rate
    assert ((sums.mean(0) - 1).abs() <= furthest).all()
    assert (sums - 1).abs().max() > 0.1
    assert (layer.run(layer.params)[1].sum(-1) - 1).abs().max() <= gamma(8, U)


@pytest.mark.parametrize(
    "change", [{"sink": "learned"}, {"sink": "one"}, {"differential": 0.3}, {"prefix": 2}, {"weighting": "sigmoid"}]
)
def test_V5_shift_is_the_row_sum_of_the_real_keys(change):
    """Sink, foreign values: (1 − their mass) b_v. λ-difference: (1 − λ) b_v. Sigmoid: Σ_j P_ij b_v."""
    layer = Layer.random(replace(PLAIN, **change))
    heads = replace(layer.params, w_o=None)
    output, weights = layer.run(heads)
    row_sums = weights.sum(-1).transpose(1, 2).unsqueeze(-1)  # (B, T, H, 1)
    if "differential" in change:
        # γ_8 for a softmax row as above, two roundings for λP and the difference, six for the sum over seven keys
        assert (row_sums - 0.7).abs().max() <= 1.3 * gamma(16, U)
    p = layer.instance()
    shift = (row_sums * p.per_head(some(p.b_v)).transpose(0, 1)).flatten(2)
    assert (output - layer.run(without(heads, "v"))[0] - shift).abs().max() <= value_shift(p).allowed.max()


def test_the_bounds_are_not_vacuous():
    """On unit-size problems V1's float64 bound is below 1e-12, V3's row error too."""
    p = Layer.random(PLAIN).instance()
    assert value_fold(p).allowed.max() < 1e-11
    assert all(error.max() < 1e-12 for error in logit_errors(p, p.b_q))
