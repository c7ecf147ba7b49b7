"""Q1 to Q7: b_q moves attention within a bound and is blind to who asks; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, breaking_ids, harmless, harmless_ids, some
from hypothesis import assume, given
from hypothesis import strategies as st
from planted import first_key_only, overshooting, quadruple_b_q, rejects, rotated, thin_rows
from strategies import Attend, Problem, problems
from torch import Tensor

from minibeft.attention import attend, project
from minibeft.bounds import (
    evaluation_error,
    gamma,
    log_weights_error,
    logit_error,
    oscillation,
    total_variation_bound,
    unit_roundoff,
)
from minibeft.layers import Rotary
from minibeft.scope import broken
from minibeft.theorems import THEOREMS
from minibeft.variants import without
from minibeft.witness import Layer, double_difference

U = unit_roundoff(torch.float64)


def beta(p: Problem, b_q: Tensor) -> Tensor:
    """β_j = s k_j·b_q in float64, (B, H, 1, S): what b_q adds to every row of logits (Q1)."""
    return p.factor * p.per_head(b_q) @ p.exact().k(p.b_k.double()).mT


def rounding(p: Problem, b_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """ε and η of the computed logits: both projections round, so |q| is replaced by |x||W_q|ᵀ + |b_q|."""
    e = p.exact()
    q, k = e.q(None if b_q is None else b_q.double()), e.k(e.b_k)
    sizes = p.sizes(p.w_q, p.heads, b_q), p.sizes(p.w_k, p.kv_heads, p.b_k)
    epsilon = logit_error(*sizes, p.mask64, p.factor, p.u, 2 * p.roundings)
    return epsilon, evaluation_error(q, k, p.mask64, p.factor, p.u)


def weight_errors(p: Problem) -> Tensor:
    """What rounding may do to the total variation between P without and with b_q: to P twice, and to β (ε again)."""
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    return torch.tanh(e0 / 2) + 2 * torch.tanh(e1 / 2) + n0 + n1


def check_form(p: Problem, function: Attend = attend) -> None:
    """Q1: log P(b_q) − log P(0) − β is constant in each row, where no weight has underflowed."""
    before, after = p.weights(function, b_q=None), p.weights(function)
    residual = (after.log() - before.log() - beta(p, p.b_q)).masked_fill((before < 1e-30) | (after < 1e-30), torch.nan)
    spread = residual.nan_to_num(-torch.inf).amax(-1) - residual.nan_to_num(torch.inf).amin(-1)
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    allowed = 2 * (log_weights_error_of(e0, n0) + log_weights_error_of(e1, n1) + e1)
    assert (spread <= allowed).all(), f"{spread.max():.3e} > {allowed.max():.3e}"


def log_weights_error_of(epsilon: Tensor, eta: Tensor) -> Tensor:
    """As bounds.log_weights_error, from its two parts; and the logarithm itself, of numbers above 1e-30."""
    return 2 * epsilon + 2 * eta + 70 * U


def check_hull(p: Problem, function: Attend = attend) -> None:
    """Q2: no direction g in which O reaches further than the visible values; tried in eight random ones."""
    v, o = p.exact().v(p.exact().b_v), p.heads_out(function)
    g = torch.randn(v.shape[-1], 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (v @ g).unsqueeze(2)  # (B, H, 1, S, 8)
    if p.mask64 is not None:
        hidden = p.mask64.isneginf().unsqueeze(-1)
        values = values.masked_fill(hidden, -torch.inf)
    excess = (o @ g - values.amax(3)).masked_fill(~p.sees.unsqueeze(-1), 0.0)
    # V rounds (γ_{C+1} |y||W_v|ᵀ); the row sum and the weighted sum err by γ_{2S+1} of the largest value.
    size = p.sizes(p.w_v, p.kv_heads, p.b_v).amax(-2, keepdim=True)
    allowed = (2 * gamma(p.roundings, p.u) + 2 * gamma(2 * v.shape[2] + 1, p.u)) * (size @ g.abs())
    assert (excess <= allowed).all(), f"excess {excess.max():.3e}, allowed {allowed.max():.3e}"


def check_bound(p: Problem, function: Attend = attend) -> None:
    """Q3: TV(P(0), P(b_q)) ≤ tanh(osc(β)/4) in every row, and the outputs move by at most diam(V) times that."""
    distance = (p.weights(function) - p.weights(function, b_q=None)).abs().sum(-1) / 2
    shape = distance.shape
    mask = None if p.mask64 is None else p.mask64.expand(*shape, -1)
    bound = total_variation_bound(oscillation(beta(p, p.b_q).expand(*shape, -1), mask)) + weight_errors(p)
    assert (distance <= bound).all(), f"TV {distance.max():.3e}, allowed {bound.max():.3e}"
    v = p.v(p.b_v)
    moved = (p.heads_out(function) - p.heads_out(function, b_q=None)).norm(dim=-1)
    diameter = torch.cdist(v, v).amax((-2, -1)).unsqueeze(-1)
    sums = 4 * gamma(2 * v.shape[2] + 1, p.u) * v.norm(dim=-1).amax(-1, keepdim=True)
    assert (moved <= diameter * bound + sums).all()


def check_blindness(p: Problem, function: Attend = attend) -> None:
    """Q4: log P_ij − log P_il − log P_rj + log P_rl does not change with b_q, where no weight has underflowed."""
    before, after = p.weights(function, b_q=None), p.weights(function)
    tiny = (before < 1e-30) | (after < 1e-30)
    changed = double_difference(before.masked_fill(tiny, 0.0), after.masked_fill(tiny, 0.0))
    (e0, n0), (e1, n1) = rounding(p, None), rounding(p, p.b_q)
    allowed = 4 * (log_weights_error_of(e0, n0) + log_weights_error_of(e1, n1)).max().item()
    assert changed <= allowed, f"changed by {changed:.3e}, allowed {allowed:.3e}"


CHECKS = {"Q1": check_form, "Q2": check_hull, "Q3": check_bound, "Q4": check_blindness}
MODERATE = 10.0  # |b_q| above it leaves most weights below what a double difference can be read from


@given(problems((torch.float64,), magnitude=MODERATE))
def test_Q1_float64(p):
    check_form(p)


@given(problems((torch.float32,), magnitude=MODERATE))
def test_Q1_float32(p):
    check_form(p)


@given(problems((torch.float64,)))
def test_Q2_float64(p):
    check_hull(p)


@given(problems((torch.float32,)))
def test_Q2_float32(p):
    check_hull(p)


@given(problems((torch.float64,)))
def test_Q3_float64(p):
    check_bound(p)


@given(problems((torch.float32,)))
def test_Q3_float32(p):
    check_bound(p)


@given(problems((torch.float64,), magnitude=MODERATE))
def test_Q4_float64(p):
    check_blindness(p)


@given(problems((torch.float32,), magnitude=MODERATE))
def test_Q4_float32(p):
    check_blindness(p)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("Q1", quadruple_b_q),
        ("Q1", rotated),
        ("Q2", overshooting),
        ("Q3", quadruple_b_q),
        ("Q3", overshooting),
        ("Q4", rotated),
    ],
)
def test_rejects(name, bug):
    assert rejects(CHECKS[name], problems((torch.float64,), magnitude=MODERATE), function=bug)


def test_Q2_rejects_a_row_sum_below_one_where_zero_is_outside_the_hull():
    assert rejects(check_hull, problems((torch.float64,)), function=thin_rows)


def test_rejects_only_what_is_wrong():
    """The harness itself accepts attend(), and a bug that Q4 cannot see."""
    for check in CHECKS.values():
        assert not rejects(check, problems((torch.float64,), magnitude=MODERATE))
    assert not rejects(check_blindness, problems((torch.float64,), magnitude=MODERATE), function=quadruple_b_q)
    assert not rejects(check_hull, problems((torch.float64,), magnitude=MODERATE), function=first_key_only)


@given(st.floats(0.01, 30.0))
def test_Q3_is_sharp(osc):
    """Two keys and logits (−osc/2, 0): b_q turns σ(−osc/2) into σ(osc/2), and tanh(osc/4) is attained."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    w = torch.eye(1, dtype=torch.float64)

    def weights(b_q: float) -> Tensor:
        p = attend(one, -osc / 2 * w, w, w, heads=1, y=y, b_q=torch.tensor([b_q], dtype=torch.float64), weights=True)
        assert p.weights is not None
        return p.weights[0, 0, 0]

    moved = (weights(osc) - weights(0.0)).abs().sum() / 2
    # exp and quotient of either softmax: a few u each (evaluation_error with S = 2).
    assert moved.item() == pytest.approx(
        torch.tanh(torch.tensor(osc / 4, dtype=torch.float64)).item(), rel=0, abs=2 * (osc + 10) * U
    )


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


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("q"), ids=breaking_ids("q"))
def test_Q1_Q3_Q4_Q5_need(hypothesis, spec):
    """A b_q that must do nothing (Q5: β is constant, so Q3's bound is 0) moves P; Q4's double difference changes."""
    assert broken(spec, "q") == (hypothesis,)
    layer = Layer.random(spec)
    assert moved_along(layer, null_direction(layer)) > 1e-4
    before, after = layer.run(without(layer.params, "q"))[1], layer.run(layer.params)[1]
    assert double_difference(before, after) > 1e-4


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
    twins = {h for h, _ in breaking("q")}
    assert set(THEOREMS["Q1"].needs) | set(THEOREMS["Q4"].needs) == twins
    elsewhere = {"no-sink", "rows-sum-to-one", "visible-key", "ungated", "unique-maximiser"}
    for name in ("Q2", "Q3", "Q5", "Q6"):
        assert set(THEOREMS[name].needs) <= twins | elsewhere


@pytest.mark.parametrize("spec", harmless("q"), ids=harmless_ids("q"))
def test_Q4_scope(spec):
    layer = Layer.random(spec)
    assert broken(spec, "q") == ()
    before, after = layer.run(without(layer.params, "q"))[1], layer.run(layer.params)[1]
    assert double_difference(before, after) <= 16 * layer_rounding(layer)


def layer_rounding(layer: Layer) -> float:
    """log_weights_error of a witness layer."""
    given = layer.rounding()
    q_size = project(layer.x.abs(), layer.params.w_q.abs(), some(layer.params.b_q).abs(), layer.spec.heads)
    return (
        log_weights_error(**{**given, "q": q_size, "k_abs": given["k_abs"] + some(layer.params.b_k).abs().max()})
        .max()
        .item()
    )


@given(problems((torch.float64,), keys=2, magnitude=1.0, single=True))
def test_Q5_null_directions(p):
    """b_q in the null space of the centred keys moves nothing; the rest of the space has dimension ≤ min(d, m − 1)."""
    k = p.k(p.b_k)[0, 0]
    centred = k - k.mean(0)
    _, singular, vh = torch.linalg.svd(centred, full_matrices=True)
    rank = int((singular > 1e-9 * singular[:1]).sum())
    assert rank <= min(k.shape[1], k.shape[0] - 1)
    for index, direction in enumerate(vh):
        moved = (p.weights(b_q=direction) - p.weights(b_q=None)).abs().sum(-1) / 2
        spread = (centred @ direction).abs().max() * p.factor
        rounds = weight_errors(replace(p, b_q=direction)).max()
        if index >= rank:
            assert moved.max() <= rounds + spread
        elif p.mask is None:  # the log-weights spread as β does, which is not constant
            ratio = p.weights(b_q=direction).log() - p.weights(b_q=None).log()
            errors = sum(log_weights_error_of(*rounding(p, b)).max() for b in (None, direction))
            assert (oscillation(ratio) >= oscillation(p.factor * centred @ direction) - 2 * errors).all()


@given(problems((torch.float64,), keys=2, magnitude=1.0, masks=("none",)), st.floats(1.0, 300.0))
def test_Q6_saturation(p, t):
    """1 − P_ij* ≤ (m−1) e^{osc(z_i) − tΔ} where one key alone maximises k_j·b_q, Δ its lead times s."""
    lead = beta(p, p.b_q)
    top = lead.topk(2, -1).values
    assume((top[..., 0] - top[..., 1]).min() > 1e-3)
    k, q = p.k(p.b_k), p.q(None)
    z = p.factor * q @ k.mT
    missing = 1 - p.weights(b_q=t * p.b_q).gather(-1, lead.argmax(-1, keepdim=True).expand(*z.shape[:3], 1))[..., 0]
    exponent = oscillation(z) - t * (top[..., 0] - top[..., 1])
    allowed = (k.shape[2] - 1) * exponent.clamp(max=50).exp() + weight_errors(replace(p, b_q=t * p.b_q))
    assert (missing <= allowed).all()


def test_Q6_needs_unique_maximiser():
    """Two equal keys share the mass however large b_q is."""
    y = torch.tensor([[[1.0], [1.0], [0.0]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    b_q = torch.tensor([1e6], dtype=torch.float64)
    p = attend(torch.ones(1, 1, 1, dtype=torch.float64), one, one, one, heads=1, y=y, b_q=b_q, weights=True).weights
    assert p is not None
    assert p[0, 0, 0].tolist() == pytest.approx([0.5, 0.5, 0.0])


@given(st.integers(0, 2**31), st.sampled_from((2, 4)), st.booleans())
def test_Q7_rotary(seed, dims, interleaved):
    """β_ij = s k_j·R_{i−j} b_q: the hull and the bound hold row by row, with osc of that; blindness fails."""
    turn = Rotary(dims, interleaved=interleaved)
    spec = replace(PLAIN, heads=1, head_size=4, rotary=turn)
    layer = Layer.random(spec, seed)
    p = layer.params
    assert p.b_q is not None
    k = project(layer.y, p.w_k, p.b_k, 1)
    gap = torch.arange(7)[:, None] - torch.arange(7)
    turned = turn.rotate(gap.flatten())(p.b_q.view(1, 1, 1, 4).expand(1, 1, 49, 4)).view(7, 7, 4)  # R_{i−j} b_q
    row_beta = torch.einsum("bhjd,ijd->bhij", k, turned) / 2
    before, after = layer.run(without(p, "q"))[1], layer.run(p)[1]
    mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(gap < 0, -torch.inf).expand_as(after)
    # Angles are float32: β errs by some 8 u32 |k||b_q|.
    angles = 8 * 2.0**-24 * (k.norm(dim=-1).max() * p.b_q.norm())
    distance = (after - before).abs().sum(-1) / 2
    assert (distance <= total_variation_bound(oscillation(row_beta, mask)) + angles).all()
    residual = (after.log() - before.log() - row_beta).nan_to_num(torch.nan, posinf=torch.nan, neginf=torch.nan)
    spread = residual.nan_to_num(-torch.inf).amax(-1) - residual.nan_to_num(torch.inf).amin(-1)
    assert spread.max() <= 4 * angles
    v = project(layer.y, p.w_v, p.b_v, 1)
    output = layer.run(replace(p, w_o=None))[0].unflatten(-1, (1, -1)).transpose(1, 2)
    highest = (v.unsqueeze(2) + mask.unsqueeze(-1)).amax(3)
    assert (output <= highest + gamma(16, U) * v.abs().max()).all()
    assert double_difference(before, after) > 100 * angles
