"""K1 to K5: b_k has no effect, no gradient and no use; where it has, how much; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from breakers import PLAIN, breaking, breaking_ids, harmless, harmless_ids, some
from hypothesis import given
from hypothesis import strategies as st
from planted import first_key_only, off_by_one, rejects, rotated
from strategies import Attend, Problem, problems
from tolerance import assert_close_float64, error
from torch import Tensor

from minibeft.attention import attend, project
from minibeft.bounds import key_bias_effect_bound, key_gradient_bound
from minibeft.layers import Rotary
from minibeft.scope import broken, null_dims, restore
from minibeft.theorems import THEOREMS
from minibeft.variants import without
from minibeft.witness import Layer, key_effect


def check_invariance(p: Problem, function: Attend = attend) -> None:
    """K1: adding b_k moves no output by more than K4's rounding bound."""
    moved = (p.heads_out(function) - p.heads_out(function, b_k=None)).abs().amax(-1)
    assert (moved <= effect_bound(p)).all(), f"moved {moved.max():.3e}, allowed {effect_bound(p).max():.3e}"


def effect_bound(p: Problem, v: Tensor | None = None) -> Tensor:
    return key_bias_effect_bound(
        p.q(p.b_q), p.k(None), p.v(p.b_v) if v is None else v, p.sizes(p.w_k, p.kv_heads), p.per_head(p.b_k),
        mask=p.mask64, scale=p.factor, u=p.u, roundings=p.roundings,
    )  # fmt: skip


@given(problems((torch.float64,), blind=True))
def test_K1_float64(p):
    check_invariance(p)


@given(problems((torch.float32,), blind=True))
def test_K1_float32(p):
    check_invariance(p)


@given(problems((torch.float64,), magnitude=1.0))
def test_K1_the_weights_and_the_bound_is_no_excuse(p):
    """In float64 with unit biases the bound is below 1e-9 of the values, and P itself stays put."""
    assert effect_bound(p).max() < 1e-9 * (1 + p.v(p.b_v).abs().max())
    torch.testing.assert_close(p.weights(), p.weights(b_k=None), atol=1e-9, rtol=0)


@given(problems((torch.float64,)), st.sampled_from((0.1, 0.5)))
def test_K1_with_dropout_on_P(p, rate):
    """The same entries are dropped from the same P."""
    outputs = []
    for bias in (p.b_k, None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(p.heads_out(b_k=bias, dropout=rate, fused=False))
    # Kept weights are P/(1 − rate). They no longer sum to one, so errors of P meet v itself, not differences of it: the
    # bound for values that reach from −max|v| to max|v|.
    largest = p.v(p.b_v).abs().amax(-2, keepdim=True)
    allowed = effect_bound(p, torch.cat([largest, -largest], -2)) / (1 - rate)
    assert ((outputs[0] - outputs[1]).abs().amax(-1) <= allowed).all()


@pytest.mark.parametrize("bug", [first_key_only, off_by_one, rotated])
def test_K1_rejects(bug):
    assert rejects(check_invariance, problems((torch.float32,), magnitude=1.0), function=bug)


def bias_gradients(p: Problem, function: Attend = attend, **changes) -> tuple[Tensor, dict[str, Tensor]]:
    """∂L/∂O (B, H, T, D) of a random linear loss, and ∂L/∂b for each of b_q, b_k, b_v in float64."""
    names = ("b_q", "b_k", "b_v")
    leaves = {name: getattr(p, name).clone().requires_grad_() for name in names}
    output = p.run(function, **leaves, **changes).output
    loss_weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(output)
    grads = torch.autograd.grad(output, list(leaves.values()), loss_weights)
    d_o = loss_weights.double().unflatten(-1, (p.heads, -1)).transpose(1, 2)
    return d_o, {name: grad.double() for name, grad in zip(names, grads, strict=True)}


def check_zero_gradient(p: Problem, function: Attend = attend) -> None:
    """K2: ∂L/∂b_k is within rounding of 0."""
    d_o, grads = bias_gradients(p, function)
    k_abs = p.sizes(p.w_k, p.kv_heads, p.b_k)
    bound = key_gradient_bound(
        d_o, p.q(p.b_q), p.k(p.b_k), p.v(p.b_v), k_abs,
        mask=p.mask64, scale=p.factor, u=p.u, roundings=p.roundings,
    )  # fmt: skip
    allowed = bound.view(p.kv_heads, p.group, -1).sum(1).flatten()
    assert (grads["b_k"].abs() <= allowed).all(), (
        f"|∂L/∂b_k| {grads['b_k'].abs().max():.3e}, allowed {allowed.max():.3e}"
    )


@given(problems((torch.float64,), blind=True))
def test_K2_float64(p):
    check_zero_gradient(p)


@given(problems((torch.float32,), blind=True))
def test_K2_float32(p):
    check_zero_gradient(p)


@pytest.mark.parametrize("bug", [first_key_only, off_by_one, rotated])
def test_K2_rejects(bug):
    assert rejects(check_zero_gradient, problems((torch.float32,), magnitude=1.0), function=bug)


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("k"), ids=breaking_ids("k"))
def test_K2_needs(hypothesis, spec):
    """Without the hypothesis, b_k's gradient is of the order of b_q's."""
    layer = Layer.random(spec)
    b_q, b_k = (some(b).clone().requires_grad_() for b in (layer.params.b_q, layer.params.b_k))
    output, _ = layer.run(replace(layer.params, b_q=b_q, b_k=b_k))
    g_q, g_k = torch.autograd.grad(output.square().sum(), (b_q, b_k))
    assert g_k.norm() > 1e-3 * g_q.norm()


def train(names: tuple[str, ...], dtype, optimiser, *, rotate=None, seed=0, steps=12, **settings):
    """Fine-tune these biases and a head on a toy task; the head's weights after every step, and the final b_k."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(24, 5, 6, generator=g, dtype=torch.float64).to(dtype)
    labels = (x[:, 0, 0] * x[:, 1, 1] > 0).long()
    w = {f"w_{n}": torch.randn(6, 6, generator=g, dtype=torch.float64).to(dtype) for n in "qkv"}
    b = {f"b_{n}": torch.randn(6, generator=g, dtype=torch.float64).to(dtype) for n in "qkv"}
    head = (0.1 * torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
    trained = [head.requires_grad_(), *(b[name].requires_grad_() for name in names)]
    opt = optimiser(trained, lr=0.05, **settings)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
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
    single, _ = train((), torch.float32, optimiser)
    assert error(alone[-1], alone[0]) > 0.01  # the head does move
    assert_close_float64(both, alone, error(single, alone), what="the head's trajectory")


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


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("k"), ids=breaking_ids("k"))
def test_K1_needs(hypothesis, spec):
    """K4: the hypothesis removed, b_k has an effect far above rounding; restored, it has none."""
    assert broken(spec, "k") == (hypothesis,)
    layer, whole = Layer.random(spec), Layer.random(restore(spec, "k", {hypothesis}))
    assert key_effect(layer) > 1e6 * layer.key_rounding()
    assert key_effect(whole) <= whole.key_rounding()


def test_K1_needs_all_that_the_catalogue_says():
    """Every hypothesis of K1 has a twin here; 'exact' has test_K4_rounding."""
    assert {h for h, _ in breaking("k")} | {"exact"} == set(THEOREMS["K1"].needs)


@pytest.mark.parametrize("spec", harmless("k"), ids=harmless_ids("k"))
def test_K1_scope(spec):
    layer = Layer.random(spec)
    assert broken(spec, "k") == ()
    assert key_effect(layer) <= layer.key_rounding()


@pytest.mark.parametrize("interleaved", [False, True])
def test_K4_partial_rotary_spares_the_dims_it_does_not_turn(interleaved):
    spec = replace(PLAIN, rotary=Rotary(4, interleaved=interleaved))
    layer = Layer.random(spec)
    assert null_dims(spec) == range(4, 16)
    assert key_effect(layer, range(4, 16)) <= layer.key_rounding()
    assert all(key_effect(layer, range(i, i + 1)) > 1e6 * layer.key_rounding() for i in range(4))


def test_K4_rotary_adds_a_term_that_depends_on_the_distance():
    """The logits change by s q_iᵀ R_{j−i} b_k; read off the weights, up to a constant in each row."""
    turn = Rotary(4)
    layer = Layer.random(replace(PLAIN, head_size=4, heads=1, causal=False, rotary=turn))
    p = layer.params
    q = project(layer.x, p.w_q, p.b_q, 1)
    gap = torch.arange(7) - torch.arange(7)[:, None]  # j − i
    turned = turn.rotate(gap.flatten())(some(p.b_k).view(1, 1, 1, 4).expand(1, 1, 49, 4)).view(7, 7, 4)
    term = torch.einsum("bhid,ijd->bhij", q, turned) / 2
    change = layer.run(p)[1].log() - layer.run(without(p, "k"))[1].log()
    # Rotary angles are float32: cos and sin err by 2u32, so the term by about 8 u32 |q||b_k|.
    allowed = 8 * 2.0**-24 * (q.norm(dim=-1).max() * some(p.b_k).norm()) + 1e-12
    residual = change - term
    assert (residual - residual.mean(-1, keepdim=True)).abs().max() < allowed
    assert (term - term.mean(-1, keepdim=True)).abs().max() > 1e3 * allowed


@pytest.mark.parametrize("sink", ["learned", "one"])
def test_K4_sink_formula(sink):
    """O'_i = ρ_i (P̂V)_i with ρ = w/(w + (1−w)e^{−c}), w the real keys' mass without b_k, c_i = s q_i·b_k."""
    layer = Layer.random(replace(PLAIN, sink=sink))
    heads = replace(layer.params, w_o=None)
    w = layer.run(without(heads, "k"))[1].sum(-1)  # (B, H, T)
    plain, _ = replace(layer, spec=replace(layer.spec, sink=None)).run(heads)
    c = (project(layer.x, heads.w_q, heads.b_q, 2) * some(heads.b_k)).sum(-1) / 4
    rho = (w / (w + (1 - w) * torch.exp(-c))).transpose(1, 2)  # (B, T, H)
    expected = plain.unflatten(-1, (2, -1)) * rho.unsqueeze(-1)
    torch.testing.assert_close(layer.run(heads)[0], expected.flatten(2), rtol=1e-11, atol=1e-11)
    assert (rho - w.transpose(1, 2)).abs().max() > 0.01


@pytest.mark.parametrize("foreign", [{"prefix": 2}, {"bias_kv": True}, {"zero_key": True}])
def test_K4_foreign_key_formula(foreign):
    """O' = ρ P̂V + (1−ρ) F, F the mixture of the foreign values alone, which b_k does not change."""
    layer = Layer.random(replace(PLAIN, **foreign))
    heads = replace(layer.params, w_o=None)
    before, weights = layer.run(without(heads, "k"))
    w = weights.sum(-1)
    plain, _ = replace(layer, spec=PLAIN).run(heads)
    plain, before = (t.unflatten(-1, (2, -1)) for t in (plain, before))
    c = (project(layer.x, heads.w_q, heads.b_q, 2) * some(heads.b_k)).sum(-1) / 4
    rho, w = ((t.transpose(1, 2).unsqueeze(-1)) for t in (w / (w + (1 - w) * torch.exp(-c)), w))
    mixture = (before - w * plain) / (1 - w)
    expected = rho * plain + (1 - rho) * mixture
    # Dividing by 1 − w magnifies rounding by as much.
    torch.testing.assert_close(layer.run(heads)[0], expected.flatten(2), rtol=0, atol=float(1e-13 / (1 - w).min()))


@given(problems((torch.bfloat16, torch.float16, torch.float32), magnitude=1e2))
def test_K4_rounding_bound_in_every_type(p):
    check_invariance(replace(p, fused=False))


def lost_at(dtype: torch.dtype) -> float:
    """The power of two for |b_k| at which b_k moves some output by a tenth of the values' spread, through rounding."""
    layer = Layer.random(replace(PLAIN, causal=False))
    p, size = layer.params, layer.spec.head_size
    x, w_q, w_k, w_v = (t.to(dtype) for t in (layer.x, p.w_q, p.w_k, p.w_v))
    v = project(x, w_v, None, 1).double()
    spread = (v.amax(-2) - v.amin(-2)).max()

    def outputs(b_k):
        return attend(x, w_q, w_k, w_v, heads=2, kv_heads=1, b_k=b_k, fused=False).output.double()

    for exponent in range(60):
        b_k = (2.0**exponent * torch.ones(size)).to(dtype)
        moved = (outputs(b_k) - outputs(None)).abs().max()
        if not moved < 0.1 * spread:
            return 2.0**exponent
    return float("inf")


def test_K4_rounding_loses_the_answer_in_the_order_of_the_types():
    """needs exact: in bfloat16 a b_k of tens already matters; the magnitude grows as 1/u."""
    at = {dtype: lost_at(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
    assert at[torch.bfloat16] < at[torch.float16] < at[torch.float32] < at[torch.float64] < float("inf")
    assert at[torch.bfloat16] <= 2**8
    # Each lost magnitude is within two decades of 1/u: the answer goes when u·|z| reaches 1.
    for dtype, magnitude in at.items():
        assert 1e-2 < magnitude * torch.finfo(dtype).eps / 2 < 1e2


def test_K4_needs_in_range():
    """Where s q·b_k overflows, the row is no longer finite, and no bound holds."""
    p = Layer.random(replace(PLAIN, causal=False)).params
    x = torch.ones(1, 3, 6, dtype=torch.float16)
    b_k = torch.full((16,), 6e4, dtype=torch.float16)
    w_q, w_k, w_v = (w.to(torch.float16) for w in (p.w_q, p.w_k, p.w_v))
    out = attend(x, w_q, w_k, w_v, heads=2, kv_heads=1, b_q=torch.ones(32, dtype=torch.float16), b_k=b_k, fused=False)
    assert not out.output.isfinite().all()


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
