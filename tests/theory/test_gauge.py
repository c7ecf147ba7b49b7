"""G2 and G1: a head's gradients agree, and weight decay fixes what may be traded; each with what must be rejected."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from breakers import PLAIN, far_above, some
from checks import some_loss
from hypothesis import given
from planted import rejects, rotated
from strategies import problems

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws
from minibeft.theory.gauge import at_rest, queries_and_keys, values_and_output
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary, Rotation
from minibeft.theory.statements import Gap


def some_output_loss(p: Instance) -> torch.Tensor:
    return Draws(0).normal(*p.x.shape).to(p.x.dtype).double()


def parts(p: Instance) -> list[Gap]:
    return [queries_and_keys(p, some_loss(p)), values_and_output(p, some_output_loss(p))]


def check_agreement(p: Instance, function=attend) -> None:
    for gap in parts(replace(p, function=function)):
        assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"


@given(problems((torch.float64,), blind=True))
def test_G2_float64(p):
    check_agreement(p)


@given(problems((torch.float32,), blind=True, magnitude=10.0))
def test_G2_float32(p):
    check_agreement(p)


@given(problems((torch.float64,), magnitude=1.0))
def test_G2_and_the_bound_is_no_excuse(p):
    for gap in parts(p):
        assert gap.allowed.max() < 1e-7


def swapped(x, w_q, w_k, w_v, w_o=None, **given):
    """The gradients of W_k and W_v come out with their rows rolled: a backward pass with a wrong index."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(_, weight):
            return weight.clone()

        @staticmethod
        def backward(_, grad):  # type: ignore[override]
            return grad.roll(1, 0)

    return attend(x, w_q, Wrong.apply(w_k), Wrong.apply(w_v), w_o, **given)


@pytest.mark.parametrize("bug", [swapped, rotated])
def test_G2_rejects(bug):
    assert rejects(check_agreement, problems((torch.float64,), magnitude=1.0), function=bug)


BROKEN = {
    "unrotated": {"rotary": Rotary(16)},
    "no-relative-vectors": {"relative_key": True},
    "no-relative-vectors for q": {"relative_query": True},
    "no-qk-norm": {"qk_norm": "rms"},
    "no-foreign-keys": {"prefix": 2},
    "raw-values": {"value_norm": True},
    "ungated": {"gate": True},
    "no-foreign-values": {"bias_kv": True},
    "raw-output": {"output_norm": True},
}
HARMLESS = {
    "softcap": {"softcap": 5.0},
    "sigmoid": {"weighting": "sigmoid"},
    "sink": {"sink": "learned"},
    "ALiBi": {"position_bias": "alibi"},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_G2_needs(change):
    p = Layer.random(replace(PLAIN, **change)).instance()
    assert any(far_above(gap) for gap in parts(p))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_G2_scope(change):
    p = Layer.random(replace(PLAIN, **change)).instance()
    check_agreement(p, p.function)


SHAPES = {"w_q": (4, 3), "w_k": (2, 3), "w_v": (2, 3), "w_o": (3, 4), "b_q": 4, "b_k": 2, "b_v": 2, "b_o": 3}
DECAY = 0.01


def trained(rotate: Rotation | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Two query heads that share keys and values, trained with weight decay until they rest; and the slopes left."""
    g = Draws(3)
    leaves: dict[str, Any] = {
        name: g.normal(*([x] if isinstance(x, int) else x)).requires_grad_() for name, x in SHAPES.items()
    }
    x, target = g.normal(4, 5, 3), 1 + g.normal(4, 5, 3)
    settings = {"lr": 1.0, "max_iter": 3000, "max_eval": 4000, "tolerance_grad": 1e-11, "tolerance_change": 0.0}
    optimiser = torch.optim.LBFGS(list(leaves.values()), line_search_fn="strong_wolfe", **settings)  # type: ignore[arg-type]

    def loss():
        optimiser.zero_grad()
        output = attend(x, heads=2, kv_heads=1, rotate=rotate, **leaves).output
        penalty = torch.stack([leaf.square().sum() for leaf in leaves.values()]).sum()
        value = (output - target).square().mean() + DECAY / 2 * penalty
        value.backward()
        return value

    optimiser.step(loss)
    loss()
    slopes = {name: some(leaf.grad).clone() for name, leaf in leaves.items()}
    found: dict[str, Any] = {name: leaf.detach() for name, leaf in leaves.items()}
    return Instance(x, **found, heads=2, kv_heads=1, rotate=rotate), slopes  # type: ignore[arg-type]


def test_G1_where_training_rests():
    p, slopes = trained()
    largest = max(slope.abs().max() for slope in slopes.values())
    assert largest < 1e-6  # it rests
    assert min(p.w_q.norm(), p.w_k.norm(), p.w_v.norm(), p.w_o.norm()) > 0.1  # and not at zero
    gap = at_rest(p, {name: slope.abs() + 1e-12 for name, slope in slopes.items()}, DECAY)
    assert gap.holds, (gap.value, gap.allowed)


def test_G1_needs_unrotated():
    """Under rotary positions the key bias that training settles on is not zero."""
    p, slopes = trained(Rotary(2).rotate(torch.arange(5)).double())
    assert max(slope.abs().max() for slope in slopes.values()) < 1e-6
    gap = at_rest(p, {name: slope.abs() + 1e-12 for name, slope in slopes.items()}, DECAY)
    assert gap.value[0] > 1e-2
    assert gap.value[0] > 100 * gap.allowed[0]
    assert gap.value[1] <= gap.allowed[1]  # b_v is as it was


def test_G1_needs_a_point_of_rest():
    """Where training has not begun, nothing of it holds, and the slopes say so."""
    p, _ = trained()
    g = Draws(5)
    moved = replace(p, **{name: getattr(p, name) + 0.1 * g.normal(*getattr(p, name).shape) for name in SHAPES})
    assert not at_rest(moved, dict.fromkeys(SHAPES, torch.full((1,), 1e-12, dtype=torch.float64)), DECAY).holds


def idle_directions(heads: int, groups: int, size: int, rotate: Rotation | None) -> int:
    """How many directions of a layer's parameters move no output, to first order, at a drawn point: what the Jacobian
    of enough outputs lacks in rank. The singular values that count as zero lie far below the others."""
    draws, width, tokens = Draws(0), 5, 6
    x = draws.normal(8, tokens, width)
    shapes = [(heads * size, width), (groups * size, width), (groups * size, width), (width, heads * size)]
    shapes += [(heads * size,), (groups * size,), (groups * size,), (width,)]
    point = tuple(draws.normal(*shape) for shape in shapes)

    def outputs(w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o):
        biases = {"b_q": b_q, "b_k": b_k, "b_v": b_v, "b_o": b_o}
        given = {"heads": heads, "kv_heads": groups, "rotate": rotate, "fused": False}
        return attend(x, w_q, w_k, w_v, w_o, **biases, **given).output.flatten()

    jacobian = torch.cat([part.flatten(1) for part in torch.func.jacrev(outputs, tuple(range(8)))(*point)], 1)
    assert jacobian.shape[0] > jacobian.shape[1]
    values = torch.linalg.svdvals(jacobian) / torch.linalg.matrix_norm(jacobian, 2)
    idle = int((values < 1e-12).sum())
    assert values[-idle - 1] > 1e-7
    return idle


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (2, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("size", [1, 2])
def test_G2_how_many_directions_do_nothing(heads: int, groups: int, size: int):
    """g(2d² + 2d): an invertible matrix between q and k, another between v and W_o, b_k, and b_v against b_o."""
    assert idle_directions(heads, groups, size, None) == groups * (2 * size**2 + 2 * size)


@pytest.mark.parametrize("size", [2, 4])
def test_G2_rotary_positions_leave_fewer(size: int):
    """h(d² + 2d) where each plane turns at its own speed: a turn and a scale of each plane, v's matrix, and b_v."""
    rotate = Rotary(size, base=10.0).rotate(torch.arange(6)).double()
    assert idle_directions(1, 1, size, rotate) == size**2 + 2 * size
