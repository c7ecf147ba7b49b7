"""R1: what each form reaches, its size and start. R2: K1, K2 and V1 hold whatever a bias is made of."""

import math
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_agrees, error, samples
from torch import Tensor, nn

from minibeft.checkpoints.load import build_model
from minibeft.errors import BadInput
from minibeft.models.biases import count, freeze_except
from minibeft.theory.attention import attend, project
from minibeft.theory.bounds import (
    Arithmetic,
    gamma,
    key_bias_effect_bound,
    key_gradient_bound,
    unit_roundoff,
    value_shift_bound,
)
from minibeft.theory.draws import Draws
from minibeft.training.reparam import FORMS, DoRA, LoRA, Plus, merge, most_square, reparametrise

U = unit_roundoff(torch.float64)
seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 60)
ranks = st.integers(1, 9)
forms = pytest.mark.parametrize("form", FORMS)


def make(form: str, width: int, rank: int, seed: int, scale: float = 1 / 8):
    """A bias and its form, both float64; the form as it starts."""
    bias = Draws(seed).normal(width)
    return bias, FORMS[form](bias, rank, scale, torch.Generator().manual_seed(seed + 1))


def redraw(module: nn.Module, seed: int, *, integers: bool = False) -> None:
    """Other values for everything the form holds; small integers make products exact."""
    generator = Draws(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        value = generator.integers(-3, 4, *tensor.shape)
        tensor.data.copy_(value if integers else generator.normal(*tensor.shape))


@given(st.integers(1, 3000))
def test_r1_the_view_is_the_most_square_one(width):
    rows, columns = most_square(width)
    assert rows * columns == width
    assert rows >= columns
    assert not any(width % c == 0 for c in range(columns + 1, math.isqrt(width) + 1))


def test_r1_the_view_of_bert_is_the_papers():
    assert [most_square(d) for d in (768, 1024, 384, 13)] == [(32, 24), (32, 32), (24, 16), (13, 1)]


@pytest.mark.parametrize(("form", "size"), [("lora", 448), ("vera", 32), ("vera1d", 1), ("dora", 449)])
def test_r1_parameter_counts_at_bert_base(form, size):
    """k(R + C), k + C, 1, k(R + C) + 1 with k = 8, R×C = 32×24."""
    assert sum(p.numel() for p in make(form, 768, 8, 0)[1].parameters()) == size


@given(widths, ranks, seeds)
def test_r1_starts(width, rank, seed):
    bias, lora = make("lora", width, rank, seed)
    assert torch.equal(lora(bias), bias)
    _, constant = make("vera1d", width, rank, seed)
    assert torch.equal(constant(bias), bias + 0.125)
    _, dora = make("dora", width, rank, seed)
    # ‖b‖ twice (γ_{d+2} each), then times, over, times s, plus
    assert ((dora(bias) - 1.125 * bias).abs() <= gamma(2 * (width + 2) + 5, U) * 1.125 * bias.abs()).all()
    _, vera = make("vera", width, rank, seed)
    assert not torch.equal(vera(bias), bias)


@given(widths, ranks, seeds)
def test_r1_lora_reaches_rank_k_and_no_more(width, rank, seed):
    """Integer factors: every product is exact, and so is the rank. Reached: Δ = XY for any X (R×k), Y (k×C)."""
    bias, lora = make("lora", width, rank, seed)
    redraw(lora, seed, integers=True)
    rows, columns = most_square(width)
    step = lora.step(bias).detach().reshape(rows, columns) * 8
    assert sympy.Matrix(step.long().tolist()).rank() <= rank
    x, y = Draws(seed + 1).normal(rows, rank), Draws(seed + 2).normal(rank, columns)
    lora.A.data, lora.B.data = x.T, y.T
    bound = gamma(rank + 1, U) * (x.abs() @ y.abs())
    assert ((lora.step(bias).reshape(rows, columns) * 8 - x @ y).abs() <= 2 * bound).all()


def test_r1_lora_reaches_more_than_rank_k_only_with_a_larger_k():
    """Negative twin: the identity has rank 4; rank 4 reaches it, and rank 3 falls short of some entry."""
    bias = torch.zeros(16, dtype=torch.float64)
    for rank, reached in ((4, True), (3, False)):
        lora = LoRA(bias, rank, 1.0, torch.Generator().manual_seed(0))
        lora.A.data, lora.B.data = torch.eye(4, dtype=torch.float64)[:rank], torch.eye(4, dtype=torch.float64)[:, :rank]
        assert torch.equal(lora(bias).reshape(4, 4), torch.eye(4, dtype=torch.float64)) == reached


@given(widths, ranks, seeds, st.integers(-4, 4))
def test_r1_vera_loses_one_dimension_to_scale_and_is_zero_iff_a_diagonal_is(width, rank, seed, power):
    """(2ᵖδ, β/2ᵖ) is the same bias, exactly; so k + C numbers reach at most k + C − 1 dimensions."""
    bias, vera = make("vera", width, rank, seed)
    before = vera(bias)
    vera.delta.data *= 2.0**power
    vera.beta.data /= 2.0**power
    assert torch.equal(vera(bias), before)
    names = [name for name, _ in vera.named_parameters()]
    redraw(vera, seed, integers=True)
    jacobians = [torch.func.jacrev(replaced(vera, name, bias))(vera.get_parameter(name).detach()) for name in names]
    jacobian = torch.cat([j.reshape(width, -1) for j in jacobians], 1) * 8  # type: ignore[union-attr]
    assert sympy.Matrix(jacobian.long().tolist()).rank() <= rank + most_square(width)[1] - 1
    for name in names:
        _, vera = make("vera", width, rank, seed)
        getattr(vera, name).data.zero_()
        assert torch.equal(vera(bias), bias)


def replaced(form: nn.Module, name: str, bias: Tensor):
    """The bias as a function of one of the form's parameters."""
    return lambda value: torch.func.functional_call(form, {name: value}, (bias,))


@given(widths, ranks, seeds)
def test_r1_dora_steps_by_its_magnitude(width, rank, seed):
    bias, dora = make("dora", width, rank, seed)
    assert isinstance(dora, DoRA)
    redraw(dora, seed)
    length = 0.125 * dora.magnitude.abs().item()
    # each entry: norm γ_{d+2}, times, over, times s; the norm of the result γ_{d+2} again
    assert abs(dora.step(bias).norm().item() - length) <= gamma(2 * (width + 2) + 3, U) * length


def test_r1_dora_needs_a_bias_that_is_not_zero():
    with pytest.raises(BadInput, match="not zero"):
        FORMS["dora"](torch.zeros(8), 2, 1.0, torch.Generator())


def problem(form: str, seed: int) -> tuple[Tensor, dict[str, Any], Tensor, Tensor, Plus, Tensor]:
    """Attention in float64 whose bias under test has width 12 and is made by `form`; q, k and v are given."""
    generator = Draws(seed)
    draw = lambda *shape: generator.normal(*shape)  # noqa: E731
    x, weights = draw(2, 5, 12), {f"w_{n}": draw(12, 12) for n in "qkv"}
    bias, made = make(form, 12, 3, seed)
    redraw(made, seed)
    return x, weights, draw(12), bias, made, draw(2, 5, 12)


@forms
@given(seed=seeds)
def test_r2_k1_and_k2_hold_for_a_reparametrised_key_bias(form, seed):
    x, weights, b_q, bias, made, upstream = problem(form, seed)
    q = project(x, weights["w_q"], b_q, 3)
    k, v = (project(x, weights[w], None, 3) for w in ("w_k", "w_v"))
    k_abs = project(x.abs(), weights["w_k"].abs(), None, 3)
    arithmetic = Arithmetic(None, 0.5, U, 13)
    b_k = made(bias)
    base = attend(x, **weights, b_q=b_q, heads=3).output
    output = attend(x, **weights, b_q=b_q, b_k=b_k, heads=3).output
    shaped = b_k.detach().reshape(3, 1, 4)
    bound = key_bias_effect_bound(q, k, v, k_abs, shaped, arithmetic)  # (B, H, T)
    moved = (output - base).detach().unflatten(-1, (3, 4)).transpose(1, 2).abs().amax(-1)
    assert (moved <= bound).all()

    gradients = torch.autograd.grad((output * upstream).sum(), list(made.parameters()))
    d_o = upstream.unflatten(-1, (3, 4)).transpose(1, 2)
    at_bias = key_gradient_bound(d_o, q, k + shaped, v, k_abs + shaped.abs(), arithmetic).flatten()
    for (name, value), gradient in zip(made.named_parameters(), gradients, strict=True):
        jacobian = torch.autograd.functional.jacobian(replaced(made, name, bias), value).reshape(12, -1)
        # Jᵀ applied to a gradient within `at_bias` of 0; the roundings of doing so are far from 1 % of that bound
        assert (gradient.flatten().abs() <= 1.01 * (jacobian.abs().T @ at_bias)).all(), name


@forms
@settings(max_examples=20)
@given(seed=seeds)
def test_r2_the_gradient_is_the_jacobian_times_the_biass(form, seed):
    """For b_q, whose gradient is not 0: ∂L/∂θ = Jᵀ ∂L/∂b, so nothing but the bias passes the gradient on."""
    x, weights, _, bias, made, upstream = problem(form, seed)

    def loss(b: Tensor, x: Tensor, weights: dict[str, Any], upstream: Tensor) -> Tensor:
        return (attend(x, **weights, b_q=b, heads=3).output * upstream).sum()

    def direct(inputs: Any) -> list[Tensor]:
        made, bias, *rest = inputs
        return list(torch.autograd.grad(loss(made(bias), *rest), list(made.parameters())))

    def chained(inputs: Any) -> list[Tensor]:
        made, bias, *rest = inputs
        b = made(bias).detach().requires_grad_()
        (at_bias,) = torch.autograd.grad(loss(b, *rest), b)
        jacobians = [
            torch.autograd.functional.jacobian(replaced(made, name, bias), parameter)
            for name, parameter in made.named_parameters()
        ]
        return [(at_bias @ j.reshape(12, -1)).reshape(j.shape[1:]) for j in jacobians]  # type: ignore[union-attr]

    inputs = made, bias, x, weights, upstream
    rounding = zip(*samples(direct, inputs, torch.float64), strict=True)
    for one, other, drawn in zip(direct(inputs), chained(inputs), rounding, strict=True):
        assert_agrees(other, drawn, one)


@forms
@given(seed=seeds)
def test_r2_v1_holds_for_a_reparametrised_value_bias(form, seed):
    x, weights, b_q, bias, made, _ = problem(form, seed)
    b_v = made(bias).detach()
    base = attend(x, **weights, b_q=b_q, heads=3).output
    shifted = attend(x, **weights, b_q=b_q, b_v=b_v, heads=3).output
    v_abs = project(x.abs(), weights["w_v"].abs(), None, 3)
    bound = value_shift_bound(v_abs, b_v.reshape(3, 1, 4), Arithmetic(None, 0.5, U, 13))  # (B, H, 1, D)
    assert ((shifted - base - b_v).unflatten(-1, (3, 4)).transpose(1, 2).abs() <= bound).all()


def small_bert():
    draws = Draws(0)
    raw = {"model_type": "bert", "vocab_size": 11, "hidden_size": 12, "num_hidden_layers": 2}
    model = build_model({**raw, "num_attention_heads": 3, "intermediate_size": 8}, task="classification").eval()
    for parameter in model.parameters():
        parameter.data.copy_(draws.normal(*parameter.shape, std=0.5))
    return model


@forms
def test_a_model_trains_the_form_alone_and_merges_it(form):
    model = small_bert()
    chosen = freeze_except(model, "v", head=True)
    head = {name for name in chosen if name.startswith("head.")}
    trained = reparametrise(model, [name for name in chosen if name not in head], form, rank=2)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == head | set(trained)
    assert count(trained) == 2 * {"lora": 14, "vera": 5, "vera1d": 1, "dora": 15}[form]
    draws = Draws(1)
    for value in trained.values():
        value.data.copy_(draws.normal(*value.shape))
    ids = torch.arange(10).reshape(2, 5)
    before, bias = model(ids).logits, model.blocks[1].attention.v.bias.clone()  # type: ignore[union-attr]
    merge(model)
    assert set(model.state_dict()) == set(small_bert().state_dict())
    assert torch.equal(model.blocks[1].attention.v.bias, bias)  # type: ignore[union-attr]
    assert torch.equal(model(ids).logits, before)
    assert error(bias, small_bert().blocks[1].attention.v.bias) > 0  # type: ignore[union-attr]


def test_the_start_depends_on_the_seed_alone_and_leaves_torchs_stream_where_it_was():
    starts = []
    for disturb in (0, 7):
        model = small_bert()
        torch.rand(disturb)
        state = torch.get_rng_state()
        starts.append(reparametrise(model, ["blocks.1.attention.q.bias"], "vera", seed=3))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(starts[0].values(), starts[1].values(), strict=True))
    other = reparametrise(small_bert(), ["blocks.1.attention.q.bias"], "vera", seed=4)
    assert not any(torch.equal(a, b) for a, b in zip(starts[0].values(), other.values(), strict=True))


@pytest.mark.parametrize(("form", "rank", "message"), [("dara", 8, "not a form"), ("lora", 0, "at least 1")])
def test_refusals(form, rank, message):
    with pytest.raises(BadInput, match=message):
        reparametrise(small_bert(), [], form, rank=rank)
