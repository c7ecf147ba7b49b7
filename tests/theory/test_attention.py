"""attend() is what the formula says, entry by entry; the fused path agrees; a row that sees nothing is zero."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from checks import Attend
from hypothesis import given
from planted import first_key_only, mixed_up_groups, off_by_one, quadruple_b_q, rejects, rotated, thin_rows
from strategies import problems
from tolerance import assert_agrees, in_float64, samples

from minibeft.theory.attention import attend, masked_softmax
from minibeft.theory.bounds import gamma
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary
from minibeft.theory.statements import logit_errors, value_shift
from minibeft.theory.variants import AttentionSpec, attend_variant, position_mask, random_parameters


def by_loops(p: Instance) -> torch.Tensor:
    """O (B, T, H D) in float64 by the definition: one dot product, one exponential and one mean at a time."""
    x, y, size = p.x.tolist(), p.source.tolist(), p.w_q.shape[0] // p.heads
    mask = torch.zeros(len(x), p.heads, len(x[0]), len(y[0])) if p.mask is None else p.mask
    mask = mask.expand(len(x), p.heads, len(x[0]), len(y[0])).tolist()

    def projected(token, weight, bias, head):
        part = slice(head * size, (head + 1) * size)
        rows = zip(weight.tolist()[part], bias.tolist()[part], strict=True)
        return [math.fsum([*(w * t for w, t in zip(row, token, strict=True)), b]) for row, b in rows]

    out = torch.zeros(len(x), len(x[0]), p.heads * size, dtype=torch.float64)
    for b, sequence in enumerate(x):
        for h in range(p.heads):
            group = h // (p.heads // p.kv_heads)
            keys = [projected(token, p.w_k, p.b_k, group) for token in y[b]]
            values = [projected(token, p.w_v, p.b_v, group) for token in y[b]]
            for i, token in enumerate(sequence):
                q = projected(token, p.w_q, p.b_q, h)
                z = [
                    p.factor * math.fsum(a * c for a, c in zip(q, k, strict=True)) + m
                    for k, m in zip(keys, mask[b][h][i], strict=True)
                ]
                if max(z) == -math.inf:
                    continue
                e = [math.exp(value - max(z)) for value in z]
                for d in range(size):
                    mean = math.fsum(w * v[d] for w, v in zip(e, values, strict=True)) / math.fsum(e)
                    out[b, i, h * size + d] = mean
    return out


def allowed_error(p: Instance) -> torch.Tensor:
    """How far a computed O may lie from the exact one, (B, H, T): P moves by tanh(ε/2) in total variation, ε with the
    rounding of both projections; evaluating it by 2η; and the values round."""
    epsilon, eta = logit_errors(p, p.b_q)
    v = p.exact().v(p.exact().b_v)
    diameter = (v.amax(-2) - v.amin(-2)).amax(-1).unsqueeze(-1)
    sizes = p.sizes("v", p.b_v).amax((-2, -1)).unsqueeze(-1)
    return diameter * torch.tanh(epsilon / 2) + (2 * eta + gamma(p.arithmetic.roundings, p.arithmetic.u)) * sizes


def check_definition(p: Instance, function: Attend = attend) -> None:
    """Both paths, in float32 and float64, lie within rounding of the loops."""
    gold = by_loops(p).unflatten(-1, (p.heads, -1)).transpose(1, 2)
    for problem in (p, p.exact()):
        for fused in (True, False):
            wrong = (replace(problem, function=function).outputs(fused=fused) - gold).abs().amax(-1)
            assert (wrong <= allowed_error(problem)).all(), f"off by {wrong.max():.3e}, fused={fused}"


@given(problems((torch.float32,), blind=True, magnitude=3.0))
def test_attend_is_its_definition(p):
    check_definition(p)


@pytest.mark.parametrize("bug", [first_key_only, mixed_up_groups, off_by_one, quadruple_b_q, rotated, thin_rows])
def test_the_definition_rejects(bug):
    assert rejects(check_definition, problems((torch.float32,), magnitude=3.0), function=bug)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_two_paths_agree(heads, kv_heads, masked):
    """The fused path in float32 against the plain one in float64, for every argument."""
    g = Draws(heads + kv_heads)
    shapes = {"x": (2, 9, 12), "w_q": (24, 12), "w_k": (6 * kv_heads, 12), "w_v": (6 * kv_heads, 12), "w_o": (12, 24)}
    shapes |= {"b_q": (24,), "b_k": (6 * kv_heads,), "b_v": (6 * kv_heads,), "b_o": (12,)}
    values = {name: g.normal(*s).float() / s[-1] ** 0.5 for name, s in shapes.items()}
    upstream = g.normal(2, 9, 12).float()
    mask = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)[None, None] if masked else None

    def gradients(inputs: Any, *, fused: bool = False) -> dict[str, torch.Tensor]:
        given, upstream = inputs
        t = {name: value.clone().requires_grad_() for name, value in given.items()}
        out = attend(
            t["x"], t["w_q"], t["w_k"], t["w_v"], t["w_o"], b_q=t["b_q"], b_k=t["b_k"], b_v=t["b_v"], b_o=t["b_o"],
            heads=heads, kv_heads=kv_heads, mask=None if mask is None else mask.to(upstream), fused=fused,
        ).output  # fmt: skip
        return dict(zip(t, torch.autograd.grad(out, tuple(t.values()), upstream), strict=True))

    inputs = values, upstream
    gold, drawn = gradients(in_float64(inputs)), samples(gradients, inputs)
    plain, fused = gradients(inputs), gradients(inputs, fused=True)
    scale = gold["b_q"].abs().max()
    for name in values:
        if name == "b_k":  # exactly 0: a sum of some hundred roundings, of the size of b_q's gradient
            assert max(g["b_k"].abs().max() for g in (plain, fused)) < gamma(100, 2.0**-24) * scale
        else:
            assert_agrees(fused[name], [run[name] for run in drawn], gold[name], what=name)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_that_sees_nothing_is_zero_and_passes_no_gradient(fused, kv_heads, dtype):
    """Our choice on both paths, and torch's: scaled_dot_product_attention returns 0 there, not NaN and not a mean."""
    g = Draws(0)
    t = [g.normal(*s).to(dtype) for s in ((2, 5, 6), (12, 6), (3 * kv_heads, 6))]
    x, w_q, w_kv = (value.requires_grad_() for value in t)
    b = torch.ones(3 * kv_heads, dtype=dtype, requires_grad=True)
    mask = torch.zeros(2, 1, 5, 5, dtype=dtype)
    mask[:, :, 2] = -torch.inf
    out = attend(x, w_q, w_kv, w_kv, heads=4, kv_heads=kv_heads, b_k=b, b_v=b, mask=mask, fused=fused).output
    assert (out[:, 2] == 0).all()
    assert (out[:, 1] != 0).any()
    for grad in torch.autograd.grad(out[:, 2].sum(), (x, w_q, w_kv, b), retain_graph=True):
        assert (grad == 0).all()
    for grad in torch.autograd.grad(out.square().sum(), (x, w_q, w_kv, b)):
        assert grad.isfinite().all()


def test_masked_softmax_differs_from_torch_only_in_blind_rows():
    logits = torch.tensor([[0.0, 1.0], [-torch.inf, 2.0], [-torch.inf, -torch.inf]], dtype=torch.float64)
    assert masked_softmax(logits)[:2].equal(logits[:2].softmax(-1))
    assert masked_softmax(logits)[2].tolist() == [0.0, 0.0]
    assert logits[2].softmax(-1).isnan().all()


def test_absent_is_not_zero():
    """A zero bias is a parameter with a gradient; None is nothing; both give the same output but for the order in which
    a matrix product with a bias may be summed."""
    g = Draws(0)
    x, w = (g.normal(*s) for s in ((1, 3, 4), (4, 4)))
    zero = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    p = Instance(x, w, w, w, None, None, None, zero, None, heads=2, kv_heads=2)
    assert value_shift(p).holds
    with_zero = p.run().output
    with_zero.sum().backward()
    assert zero.grad is not None
    assert zero.grad.abs().min() > 0


@pytest.mark.parametrize("spec", [
    AttentionSpec(4, 2, 3, 5, causal=True),
    AttentionSpec(4, 4, 4, 5, rotary=Rotary(2, interleaved=True)),
    AttentionSpec(2, 1, 4, 5, position_bias="alibi", scale=1.0, cross=True),
    AttentionSpec(2, 2, 4, 5, position_bias="learned", window=2),
])  # fmt: skip
def test_attend_variant_without_the_other_mechanisms_is_attend(spec):
    g = Draws(0)
    p = random_parameters(spec, g)
    x = g.normal(2, 6, 5)
    y = g.normal(2, 6, 5) if spec.cross else None
    expected, actual = plain_attend(spec, p, x, y), attend_variant(spec, p, x, y=y)
    drawn = samples(lambda inputs: plain_attend(spec, *inputs), (p, x, y), torch.float64)
    for name in ("output", "weights"):
        assert_agrees(getattr(actual, name), [getattr(run, name) for run in drawn], getattr(expected, name), what=name)


def plain_attend(spec, p, x, y):
    """attend() with all that the spec says, weights too."""
    return attend(
        x, p.w_q, p.w_k, p.w_v, p.w_o, b_q=p.b_q, b_k=p.b_k, b_v=p.b_v, b_o=p.b_o, heads=spec.heads,
        kv_heads=spec.kv_heads, y=y, mask=position_mask(spec, p, 6, 6)[None], scale=spec.scale, weights=True,
        rotate=None if spec.rotary is None else spec.rotary.rotate(torch.arange(6)),
    )  # fmt: skip
