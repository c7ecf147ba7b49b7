"""The kernels compute what plain torch computes, on awkward shapes, in every type, without touching anything else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_cases import Case, check_column_sums, check_forward, check_input_grad

CHECKS = pytest.mark.parametrize("check", [check_forward, check_input_grad, check_column_sums])

CASES = [
    Case(17, 33, 45, 3, 3, 15),  # nothing is a multiple of anything
    Case(3, 1, 45, 4, 2, 24, dims=24, positions="own"),  # one token, half-split rotary
    Case(2, 7, 33, 1, 1, 80, dims=32, interleaved=True),  # one head, partial interleaved rotary
    Case(2, 9, 40, 4, 1, 80, dims=80, layout="strided"),  # one key-value head for all
    Case(2, 5, 33, 6, 2, 24, dims=8, layout="strided", positions="own", biases="q"),  # partial half-split
    Case(1, 5, 70, 2, 2, 64, layout="strided", biases="v"),
    Case(1, 3, 33, 2, 1, 256, dims=64, interleaved=True, biases="qv"),  # GPT-J's heads
    Case(0, 5, 16, 2, 2, 8),  # empty batch
    Case(2, 0, 16, 2, 1, 8, dims=8, biases=""),  # no tokens
]


@CHECKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_plain_torch(check, case, dtype):
    check(case, dtype)
