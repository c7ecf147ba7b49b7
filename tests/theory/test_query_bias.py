"""Q1 to Q7: b_q moves attention within a bound and is blind to who asks; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN
from checks import (
    U,
    check_blindness,
    check_bound,
    check_form,
    check_hull,
    log_errors_of,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from planted import first_key_only, overshooting, quadruple_b_q, rejects, rotated, thin_rows
from strategies import problems
from torch import Tensor

from minibeft.certificate.witness import Layer, double_difference
from minibeft.theory.attention import attend, project
from minibeft.theory.bounds import (
    gamma,
    oscillation,
    total_variation_bound,
)
from minibeft.theory.rotary import Rotary
from minibeft.theory.statements import query_errors
from minibeft.theory.variants import without

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
    """The harness itself accepts attend(), as the tests above do, and bugs that Q4 and Q2 cannot see."""
    assert not rejects(check_form, problems((torch.float64,), magnitude=MODERATE))
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
        rounds = query_errors(replace(p, b_q=direction)).max()
        if index >= rank:
            assert moved.max() <= rounds + spread
        elif p.mask is None:  # the log-weights spread as β does, which is not constant
            ratio = p.weights(b_q=direction).log() - p.weights(b_q=None).log()
            errors = sum(log_errors_of(p, b).max() for b in (None, direction))
            assert (oscillation(ratio) >= oscillation(p.factor * centred @ direction) - 2 * errors).all()


@given(problems((torch.float64,), keys=2, magnitude=1.0, masks=("none",)), st.floats(1.0, 300.0))
def test_Q6_saturation(p, t):
    """1 − P_ij* ≤ (m−1) e^{osc(z_i) − tΔ} where one key alone maximises k_j·b_q, Δ its lead times s."""
    lead = p.shift(p.b_q)
    top = lead.topk(2, -1).values
    assume((top[..., 0] - top[..., 1]).min() > 1e-3)
    k, q = p.k(p.b_k), p.q(None)
    z = p.factor * q @ k.mT
    missing = 1 - p.weights(b_q=t * p.b_q).gather(-1, lead.argmax(-1, keepdim=True).expand(*z.shape[:3], 1))[..., 0]
    exponent = oscillation(z) - t * (top[..., 0] - top[..., 1])
    allowed = (k.shape[2] - 1) * exponent.clamp(max=50).exp() + query_errors(replace(p, b_q=t * p.b_q))
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
    assert double_difference(layer.instance()) > 100 * angles
