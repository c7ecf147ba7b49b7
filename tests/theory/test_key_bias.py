"""K1, K2, K3 and K5: b_k has no effect, no gradient and no use; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from breakers import breaking, some
from checks import check_invariance, check_zero_gradient
from hypothesis import given
from hypothesis import strategies as st
from planted import first_key_only, off_by_one, rejects, rotated
from strategies import problems
from tolerance import assert_agrees, error, samples

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws
from minibeft.theory.rotary import Rotary
from minibeft.theory.statements import key_effect_allowed


@given(problems((torch.float64,), blind=True))
def test_K1_float64(p):
    check_invariance(p)


@given(problems((torch.float32,), blind=True))
def test_K1_float32(p):
    check_invariance(p)


@given(problems((torch.float64,), magnitude=1.0))
def test_K1_the_weights_and_the_bound_is_no_excuse(p):
    """In float64 with unit biases the bound is below 1e-9 of the values, and P itself stays put."""
    assert key_effect_allowed(p).max() < 1e-9 * (1 + p.v(p.b_v).abs().max())
    torch.testing.assert_close(p.weights(), p.weights(b_k=None), atol=1e-9, rtol=0)


@given(problems((torch.float64,)), st.sampled_from((0.1, 0.5)))
def test_K1_with_dropout_on_P(p, rate):
    """The same entries are dropped from the same P."""
    outputs = []
    for bias in (p.b_k, None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(p.outputs(b_k=bias, dropout=rate, fused=False))
    # Kept weights are P/(1 − rate). They no longer sum to one, so errors of P meet v itself, not differences of it: the
    # bound for values that reach from −max|v| to max|v|.
    largest = p.v(p.b_v).abs().amax(-2, keepdim=True)
    allowed = key_effect_allowed(p, torch.cat([largest, -largest], -2)) / (1 - rate)
    assert ((outputs[0] - outputs[1]).abs().amax(-1) <= allowed).all()


@pytest.mark.parametrize("bug", [first_key_only, off_by_one, rotated])
def test_K1_rejects(bug):
    assert rejects(check_invariance, problems((torch.float32,), magnitude=1.0), function=bug)


@given(problems((torch.float64,), blind=True))
def test_K2_float64(p):
    check_zero_gradient(p)


@given(problems((torch.float32,), blind=True))
def test_K2_float32(p):
    check_zero_gradient(p)


@pytest.mark.parametrize("bug", [first_key_only, off_by_one, rotated])
def test_K2_rejects(bug):
    assert rejects(check_zero_gradient, problems((torch.float32,), magnitude=1.0), function=bug)


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("k"))
def test_K2_needs(hypothesis, spec):
    """Without the hypothesis, b_k's gradient is of the order of b_q's."""
    layer = Layer.random(spec)
    b_q, b_k = (some(b).clone().requires_grad_() for b in (layer.params.b_q, layer.params.b_k))
    output, _ = layer.run(replace(layer.params, b_q=b_q, b_k=b_k))
    g_q, g_k = torch.autograd.grad(output.square().sum(), (b_q, b_k))
    assert g_k.norm() > 1e-3 * g_q.norm()


def toy(seed: int = 0) -> dict[str, torch.Tensor]:
    """A toy task's inputs, an attention's weights and biases, and a head, in float64."""
    g = Draws(7)
    x = g.normal(24, 5, 6)
    w = {f"w_{n}": g.normal(6, 6) for n in "qkv"}
    b = {f"b_{n}": g.normal(6) for n in "qkv"}
    return {"x": x} | w | b | {"head": 0.1 * Draws(seed).normal(2, 6)}


def train(names: tuple[str, ...], dtype, optimiser, *, rotate=None, seed=0, steps=12, task=None, **settings):
    """Fine-tune these biases and a head on the toy task; the head's weights after every step, and the final b_k."""
    given = {name: value.to(dtype, copy=True) for name, value in (task or toy(seed)).items()}
    x, head = given["x"], given["head"]
    labels = (x[:, 0, 0] * x[:, 1, 1] > 0).long()
    w, b = given, given
    trained = [head.requires_grad_(), *(b[name].requires_grad_() for name in names)]
    opt = optimiser(trained, lr=0.05, **settings)
    order = Draws(seed).permutation(24)
    path = []
    for step in range(steps):
        rows = order.roll(8 * step)[:8]
        o = attend(
            x[rows], w["w_q"], w["w_k"], w["w_v"], heads=2, b_q=b["b_q"], b_k=b["b_k"], b_v=b["b_v"], rotate=rotate
        )
        opt.zero_grad()
        F.cross_entropy(F.linear(o.output.mean(1), head), labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        opt.step()
        path.append(head.detach().clone())
    return torch.stack(path), b["b_k"].detach()


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_K3_training_b_k_with_the_head_is_training_the_head(optimiser):
    alone, _ = train((), torch.float64, optimiser)
    both, _ = train(("b_k",), torch.float64, optimiser)
    rounding = samples(lambda task: train((), torch.float64, optimiser, task=task)[0], toy(), torch.float64)
    assert error(alone[-1], alone[0]) > 0.01  # the head does move
    assert_agrees(both, rounding, alone, what="the head's trajectory")


@pytest.mark.parametrize("name", ["b_q", "b_v"])
def test_K3_is_about_b_k(name):
    alone, _ = train((), torch.float64, torch.optim.Adam)
    both, _ = train((name,), torch.float64, torch.optim.Adam)
    assert error(both, alone) > 1e-3


def test_K3_needs_unrotated():
    turn = Rotary(2).rotate(torch.arange(5))
    alone, _ = train((), torch.float64, torch.optim.Adam, rotate=turn)
    both, _ = train(("b_k",), torch.float64, torch.optim.Adam, rotate=turn)
    assert error(both, alone) > 1e-3


def test_K3_needs_same_randomness():
    assert (
        error(train((), torch.float64, torch.optim.Adam)[0], train((), torch.float64, torch.optim.Adam, seed=1)[0])
        > 1e-3
    )


def test_K2_needs_no_weight_decay():
    """Decay moves b_k, though its gradient is 0; without decay it rests but for rounding."""
    start = train(("b_k",), torch.float64, torch.optim.SGD, steps=1)[1]
    rest = train(("b_k",), torch.float64, torch.optim.AdamW, weight_decay=0.0)[1]
    decayed = train(("b_k",), torch.float64, torch.optim.AdamW, weight_decay=0.5)[1]
    # Each step may move a resting entry by lr·|g|/eps with |g| of rounding size, 2e-16 × a loss of order 1 / 1e-8.
    assert error(rest, start) < 12 * 0.05 * 1e-15 / 1e-8
    torch.testing.assert_close(decayed, start * (1 - 0.05 * 0.5) ** 12, rtol=1e-4, atol=0)


@given(st.floats(-12, 0), st.sampled_from((1e-6, 1e-8)), st.floats(-5, -1))
def test_K5_adam_moves_noise_by_lr_g_over_g_plus_eps(exponent, eps, rate):
    """A gradient of noise g moves b_k by lr·g/(|g| + eps) a step, first and later, whatever it means."""
    g, lr = 10.0**exponent, 10.0**rate
    b = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.Adam([b], lr=lr, eps=eps)
    for step in range(1, 4):
        b.grad = torch.full_like(b, g)
        opt.step()
        # betas .9, .999: the moments and their corrections are a few products each, 1 − β₂^t loses three digits.
        assert b.item() == pytest.approx(-step * lr * g / (g + eps), rel=1e-12)


def drift(optimiser, **settings) -> float:
    """How far float32 training moves a b_k whose exact gradient is 0."""
    start = train(("b_k",), torch.float32, torch.optim.SGD, steps=1)[1]
    return (train(("b_k",), torch.float32, optimiser, **settings)[1] - start).abs().max().item()


def test_K5_the_drift_tells_eps_not_use():
    small, large = drift(torch.optim.Adam, eps=1e-8), drift(torch.optim.Adam, eps=1e-6)
    assert small > 3 * large > 0
    assert drift(torch.optim.SGD) < 1e-3 * large  # needs adaptive
