"""The statements of minibeft.theory as checks on one problem; each takes the function that it is about."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minibeft.theory import query_slope, statements
from minibeft.theory.attention import Attended, attend
from minibeft.theory.bounds import log_weights_error, unit_roundoff
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.statements import Gap, logit_errors

U = unit_roundoff(torch.float64)
Attend = Callable[..., Attended]
Check = Callable[..., None]


def checked(*parts: Callable[[Instance], Gap]) -> Check:
    """check(p, function): each of these statements holds for the problem."""

    def check(p: Instance, function: Attend = attend) -> None:
        for statement in parts:
            gap = statement(replace(p, function=function))
            assert gap.holds, f"{gap.value.max():.3e}, allowed {gap.allowed.max():.3e}"

    return check


def some_loss(p: Instance) -> Tensor:
    """∂L/∂O (B, H, T, D) of a random linear loss, in numbers that the layer's type holds."""
    shape = p.x.shape[0], p.heads, p.x.shape[1], p.w_q.shape[0] // p.heads
    return Draws(0).normal(*shape).to(p.x.dtype).double()


def some_directions(p: Instance) -> Tensor:
    """Eight random directions (D, 8) of the values' space."""
    return Draws(0).normal(p.w_q.shape[0] // p.heads, 8)


def log_errors_of(p: Instance, b_q: Tensor | None) -> Tensor:
    """What rounding may do to log P with this b_q, the logarithm included."""
    return log_weights_error(*logit_errors(p, b_q)) + 70 * U


check_invariance = checked(statements.key_effect)
check_zero_gradient = checked(lambda p: statements.key_gradient(p, some_loss(p)))
check_shift = checked(statements.value_shift)
check_fold = checked(statements.value_fold)
check_gradient = checked(lambda p: statements.value_gradient(p, some_loss(p)))
check_form = checked(statements.query_form)
check_hull = checked(lambda p: statements.hull(p, some_directions(p)))
check_bound = checked(statements.query_variation, statements.query_effect)
check_blindness = checked(statements.blindness)
check_slope = checked(
    lambda p: query_slope.covariance(p, some_loss(p)), lambda p: query_slope.slope_bound(p, some_loss(p))
)
check_nats = checked(statements.nats)
check_price = checked(statements.query_price)
check_enough = checked(lambda p: statements.saturated(p, 0.01))
CHECKS = {"Q1": check_form, "Q2": check_hull, "Q3": check_bound, "Q4": check_blindness}
