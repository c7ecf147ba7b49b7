"""The correctness gate of the benchmark: nothing is measured before the fused results are right."""

import torch
from torch import Tensor

from minibeft.kernels.contestants import Inputs
from minibeft.kernels.shapes import Shape
from minibeft.theory.agreement import distance, within

FACTOR = 2.0
"""How much more than plain torch the fused result may err, for another order of summation; as in the tests."""


def assert_right(name: str, fused: Tensor, plain: Tensor, gold: Tensor) -> None:
    """‖fused − gold‖∞ ≤ FACTOR ‖plain − gold‖∞ + u‖gold‖∞, gold in float64. What is not finite never passes."""

    error = distance(fused, gold)
    allowed = FACTOR * distance(plain, gold) + torch.finfo(fused.dtype).eps / 2 * gold.abs().max().item()
    if not within(error, allowed):
        raise RuntimeError(
            f"the correctness gate is red, nothing is measured: {name} errs {error:.1e}, allowed {allowed:.1e}"
        )


def check(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Q, K, V, dX, the bias gradients and the column sum of one shape in one type."""
    inputs = Inputs(shape, dtype, device, seed=0)
    gold_out, gold_grads = inputs.double()
    fused_out, plain_out = inputs.fused(), inputs.linears()
    fused_grads, plain_grads = inputs.backward_of(fused_out), inputs.backward_of(plain_out)
    names = ("q", "k", "v", "d_x", *(["db_q", "db_k", "db_v"] if shape.dims else ["db_q", "db_v"]))
    results = (*fused_out, *fused_grads), (*plain_out, *plain_grads), (*gold_out, *gold_grads)
    for name, fused, plain, gold in zip(names, *results, strict=True):
        assert_right(f"{shape.name} {dtype} {name}", fused.detach(), plain.detach(), gold.detach())
    gold_sum = inputs.grads[0].double().sum((0, 2)).flatten()
    assert_right(f"{shape.name} {dtype} column sum", inputs.fused_sum(), inputs.torch_sum(), gold_sum)
