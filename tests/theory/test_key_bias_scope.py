"""K4: where b_k begins to matter, and by how much: every hypothesis of K1 removed, and the arithmetic made coarse."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, far_above, harmless, some, twins
from checks import check_invariance
from hypothesis import given
from strategies import problems
from tolerance import assert_agrees, samples
from torch import Tensor

from minibeft.certificate.witness import Layer, key_effect
from minibeft.theory.attention import attend, project
from minibeft.theory.mechanisms import broken, null_dims, restore
from minibeft.theory.rotary import Rotary
from minibeft.theory.theorems import THEOREMS
from minibeft.theory.variants import without


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("k"))
def test_K1_needs(hypothesis, spec):
    """K4: the hypothesis removed, b_k has an effect far above rounding; restored, it has none."""
    assert broken(spec, "k") == (hypothesis,)
    assert far_above(key_effect(spec))
    assert key_effect(restore(spec, "k", {hypothesis})).holds


def test_K1_needs_all_that_the_catalogue_says():
    """Every hypothesis of K1 has a twin here; 'exact' has test_K4_rounding."""
    assert twins("k") | {"exact"} == set(THEOREMS["K1"].needs)


@pytest.mark.parametrize("spec", harmless("k"))
def test_K1_scope(spec):
    assert broken(spec, "k") == ()
    assert key_effect(spec).holds


@pytest.mark.parametrize("interleaved", [False, True])
def test_K4_partial_rotary_spares_the_dims_it_does_not_turn(interleaved):
    spec = replace(PLAIN, rotary=Rotary(4, interleaved=interleaved))
    assert null_dims(spec) == range(4, 16)
    assert key_effect(spec, range(4, 16)).holds
    assert all(far_above(key_effect(spec, range(i, i + 1))) for i in range(4))


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
    expected, actual, w, rho = by_sink_formula(layer)
    rounding = samples(lambda off: by_sink_formula(off)[0], layer, torch.float64)
    assert_agrees(actual, rounding, expected)
    assert (rho - w).abs().max() > 0.01


def by_sink_formula(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The heads' outputs by the formula and by the layer; w and ρ."""
    heads = replace(layer.params, w_o=None)
    w = layer.run(without(heads, "k"))[1].sum(-1)  # (B, H, T)
    plain, _ = replace(layer, spec=replace(layer.spec, sink=None)).run(heads)
    c = (project(layer.x, heads.w_q, heads.b_q, 2) * some(heads.b_k)).sum(-1) / 4
    rho = w / (w + (1 - w) * torch.exp(-c))
    expected = plain.unflatten(-1, (2, -1)) * rho.transpose(1, 2).unsqueeze(-1)  # (B, T, H, D)
    return expected.flatten(2), layer.run(heads)[0], w, rho


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
