"""V8 and V9: who reads the outputs linearly cannot tell b_v; a bias on MLA's latent is one; each with its twins."""

import math
from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, breaking, some
from checks import check_fold, check_invariance, check_shift
from hypothesis import given
from hypothesis import strategies as st
from planted import mixed_up_groups, rejects, thin_rows
from strategies import problems
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import attend, linear
from minibeft.theory.bounds import gamma
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.statements import value_fold


def scores(p: Instance, reader: Tensor, **changes) -> Tensor:
    """r·(the layer's output) of every row; each row is an example."""
    return p.run(w_o=p.w_o, b_o=p.b_o, **changes).output.double().flatten(0, 1) @ reader


def shifts(p: Instance, reader: Tensor) -> tuple[Tensor, Tensor]:
    """By how much b_v moves each example's score, less r·W_o b_v; and what rounding allows."""
    w_o, b_v = some(p.w_o).double(), p.per_head(some(p.b_v)).flatten()
    moved = scores(p, reader) - scores(p, reader, b_v=None) - reader @ w_o @ b_v
    fold = value_fold(p).allowed  # (C,)
    size = p.run(w_o=p.w_o, b_o=p.b_o).output.double().abs().amax((0, 1)) + (w_o.abs() @ b_v.abs())
    # each output is off by V2's bound, b_o + W_o b_v by its own rounding, which that bound holds as well
    return moved, reader.abs() @ (
        2 * fold + gamma(w_o.shape[1] + 4, p.arithmetic.u) * (size + some(p.b_o).double().abs())
    )


def check_scores(p: Instance, function=attend) -> None:
    """V8: the shift is r·W_o b_v for every example; where two scores are further apart than rounding, their order
    stays, and with it the AUC."""
    p = replace(p, function=function)
    reader = Draws(0).normal(some(p.w_o).shape[0])
    moved, allowed = shifts(p, reader)
    assert (moved.abs() <= allowed).all(), f"{moved.abs().max():.3e}, allowed {allowed:.3e}"
    before, after = scores(p, reader, b_v=None), scores(p, reader)
    gaps, turned = before[:, None] - before, after[:, None] - after
    clear = gaps.abs() > 2 * allowed
    assert (gaps[clear].sign() == turned[clear].sign()).all()


@given(problems((torch.float32, torch.float64)))
def test_V8_b_v_shifts_all_scores_alike(p):
    check_scores(p)


@pytest.mark.parametrize("bug", [mixed_up_groups, thin_rows])
def test_V8_rejects(bug):
    assert rejects(check_scores, problems((torch.float64,)), function=bug)


def auc(positive: Tensor, negative: Tensor) -> float:
    """How many pairs of a positive and a negative example are in order, level ones by half."""
    gap = positive[:, None] - negative
    return ((gap > 0).double() + (gap == 0).double() / 2).mean().item()


@pytest.mark.parametrize(("hypothesis", "spec"), breaking("v"))
def test_V8_needs(hypothesis, spec):
    """A hypothesis removed, b_v moves examples apart."""
    p = Layer.random(spec).instance()
    reader = Draws(1).normal(some(p.w_o).shape[0])
    moved = scores(p, reader) - scores(p, reader, b_v=None)
    spread = moved.max() - moved.min()
    if spec.differential is None:
        assert spread > 1e-4, hypothesis
    else:  # every row is shifted by (1 − λ) b_v: another number than r·W_o b_v, but one
        assert spread < 1e-10


def test_V8_b_q_alone_reverses_a_ranking():
    """Keys ±log(2)/2, of which A's first, B's second has the value 1: the query −1 turned around by b_q = 2."""
    one, two = torch.ones(1, 1, 1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
    half = math.log(2) / 2

    def score(first: float, b_q: Tensor | None) -> float:
        y = torch.tensor([[[half, first], [-half, 1 - first]]], dtype=torch.float64)
        w_k, w_v = torch.eye(2, dtype=torch.float64).split(1)
        return attend(-one, one[0], w_k, w_v, heads=1, y=y, b_q=b_q).output.item()

    without, with_it = ([score(first, b) for first in (1.0, 0.0)] for b in (None, two))
    assert without == pytest.approx([1 / 3, 2 / 3])
    assert with_it == pytest.approx([2 / 3, 1 / 3])
    assert [auc(*map(torch.tensor, ([a], [b]))) for a, b in (without, with_it)] == [0.0, 1.0]


# ---------------------------------------------------------------- V9


def latent(p: Instance, size: int, seed: int) -> tuple[Instance, Tensor, Tensor, Tensor]:
    """The problem with keys and values of latents, y being these; and b_c, U_k, U_v."""
    g = Draws(seed)
    kv = p.w_k.shape[0]
    up_k, up_v, b_c = g.normal(kv, size), g.normal(kv, size), g.normal(size)
    y = g.normal(p.x.shape[0], p.source.shape[1], size)
    return replace(p, y=y, w_k=up_k, w_v=up_v, b_k=None, b_v=None), b_c, up_k, up_v


@given(problems((torch.float64,), magnitude=10.0), st.integers(1, 6), st.integers(0, 2**31))
def test_V9_a_bias_on_the_latent_is_b_v(p, size, seed):
    """c + b_c, made into keys and values, gives what U_k b_c and U_v b_c give as b_k and b_v: nothing, and a shift."""
    plain, b_c, up_k, up_v = latent(p, size, seed)
    made = replace(plain, b_k=up_k @ b_c, b_v=up_v @ b_c)
    check_invariance(made)
    check_shift(made)
    check_fold(made)
    through = replace(plain, y=plain.source + b_c).outputs()
    # The same sums in another order: C + 2 roundings more of each key and value.
    sizes = [made.sizes(name, bias) for name, bias in (("k", made.b_k), ("v", made.b_v))]
    off = gamma(2 * size + 4, made.arithmetic.u)
    logits = made.factor * (made.q(made.b_q).abs() @ sizes[0].mT).amax(-1, keepdim=True) * 4 * off
    allowed = sizes[1].amax((-2, -1))[..., None, None] * (
        4 * torch.tanh(logits) + 8 * off + gamma(8 * 6, made.arithmetic.u)
    )
    evaluated = made.factor * (made.q(made.b_q).abs() @ sizes[0].mT).amax(-1, keepdim=True) * 64 * made.arithmetic.u
    mask = 0.0 if p.mask is None else p.mask.double().nan_to_num(neginf=0.0).abs().amax() * 64 * made.arithmetic.u
    residual = (through - made.outputs()).abs()
    assert (residual <= allowed + sizes[1].amax() * (evaluated + mask)).all()


@pytest.mark.parametrize("change", [{"qk_norm": "rms"}, {"sink": "one"}, {"value_norm": True}, {"gate": True}], ids=str)
def test_V9_needs(change):
    """b_c is no shift where the keys it makes are normalised or meet a sink, or the values or outputs are changed."""
    layer = Layer.random(replace(PLAIN, **change))
    p, b_c, up_k, up_v = latent(layer.instance(), 6, 0)

    def residual(layer: Layer) -> float:
        params = replace(layer.params, w_k=up_k, w_v=up_v, b_k=None, b_v=None, w_o=None)
        run = lambda off: replace(layer, y=p.source + off).run(params)[0]  # noqa: E731
        shift = replace(p, b_v=up_v @ b_c).per_head(up_v @ b_c).flatten()
        return (run(b_c) - run(0 * b_c) - shift).abs().max().item()

    assert residual(layer) > 1e-3
    assert residual(replace(layer, spec=PLAIN)) < 1e-12


def test_V9_needs_the_bias_after_the_norm():
    """Before the latent's norm, b_c changes each latent in its own way."""
    g = Draws(0)
    c, b_c, up = g.normal(1, 5, 4), g.normal(4), g.normal(3, 4)
    norm = torch.nn.functional.rms_norm
    moved = linear(norm(c + b_c, (4,)), up, None) - linear(norm(c, (4,)), up, None)
    assert (moved - moved[:, :1]).abs().max() > 0.1
    after = linear(norm(c, (4,)) + b_c, up, None) - linear(norm(c, (4,)), up, None)
    torch.testing.assert_close(after, (up @ b_c).expand_as(after))
