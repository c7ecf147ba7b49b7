"""The correctness gate of the benchmark: nothing is measured before the fused results are right.

A result is right when every entry lies within the bound of rounding.py. The error of plain torch on the same draw is
no substitute: it is a random maximum too, and a limit of twice that error refused right results on 4 of 60 draws.
"""

import torch
from torch import Tensor

from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.contestants import Inputs
from minibeft.kernels.qkv_bias.reference import input_grad_reference, qkv_bias_reference
from minibeft.kernels.rounding import Reach, rounding_bound
from minibeft.kernels.shapes import Shape


def assert_right(name: str, fused: Tensor, gold: Tensor, allowed: Tensor) -> None:
    """Every entry lies within its own bound. What is not finite never passes."""
    error = (fused.double() - gold).abs()
    if not ((error <= allowed) & allowed.isfinite()).all():
        raise RuntimeError(
            f"the correctness gate is red, nothing is measured: {name} errs {error.max():.1e}, "
            f"up to {(error / allowed).max():.3g} times its bound"
        )


def sizes(inputs: Inputs) -> tuple[Tensor, ...]:
    """Of each entry of Q, K, V, dX, db_q, db_k and db_v: the sum of its terms without their signs."""
    d_q, d_k, d_v = (t.double().abs() for t in inputs.grads)
    w_q, w_k, w_v = (t.double().abs() for t in inputs.weights)
    x, b_q, b_k, b_v = (t.detach().double().abs() for t in (inputs.x, *inputs.biases))
    turn = inputs.rotation and Reach(inputs.rotation.double())
    out = qkv_bias_reference(x, (w_q, w_k, w_v), (b_q, b_k, b_v), turn, inputs.shape.heads)  # type: ignore[arg-type]
    d_x = input_grad_reference((d_q, d_k, d_v), (w_q, w_k, w_v), turn)  # type: ignore[arg-type]
    sums = (column_sum_reference(d, t, 1, torch.float64) for d, t in ((d_q, turn), (d_k, turn), (d_v, None)))  # type: ignore[arg-type]
    return *out, d_x, *sums


def check(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Q, K, V, dX, the bias gradients and the column sum of one shape in one type."""
    inputs = Inputs(shape, dtype, device, seed=0)
    fused_out, (gold_out, gold_grads) = inputs.fused(), inputs.double()
    biases = ["db_q", "db_k", "db_v"] if shape.dims else ["db_q", "db_v"]  # without rotary b_k has none (theorem K2)
    fused = dict(zip(("q", "k", "v", "d_x", *biases), (*fused_out, *inputs.backward_of(fused_out)), strict=True))
    gold = dict(zip(fused, (*gold_out, *gold_grads), strict=True))
    every = ["q", "k", "v", "d_x", "db_q", "db_k", "db_v"]
    size = dict(zip(every, sizes(inputs), strict=True))
    terms = dict.fromkeys("qkv", shape.width) | {"d_x": shape.columns} | dict.fromkeys(biases, shape.rows)
    for name, result in fused.items():
        exact, turned = gold[name].detach(), name == "d_x" and shape.dims > 0
        allowed = rounding_bound(exact, size[name], terms[name], dtype, turned=turned)
        assert_right(f"{shape.name} {dtype} {name}", result.detach(), exact, allowed)
    summed = inputs.grads[0].double()
    exact = column_sum_reference(summed, None, 1, torch.float64)
    allowed = rounding_bound(exact, column_sum_reference(summed.abs(), None, 1, torch.float64), shape.rows, dtype)
    assert_right(f"{shape.name} {dtype} column sum", inputs.fused_sum(), exact, allowed)
