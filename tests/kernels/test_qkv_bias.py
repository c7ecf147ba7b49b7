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


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape; heads in groups; rotary of any kind where the head size is even."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    dims = 2 * draw(st.integers(0, size // 2)) if size % 2 == 0 else 0
    return Case(
        batch=draw(st.integers(1, 3)),
        tokens=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 70)),
        heads=groups * draw(st.integers(1, 3)),
        groups=groups,
        size=size,
        dims=dims,
        interleaved=draw(st.booleans()),
        positions=draw(st.sampled_from(["shared", "own"])),
        layout=draw(st.sampled_from(["contiguous", "strided"])),
        biases=draw(st.sampled_from(["", "q", "k", "v", "qv", "qkv"])),
    )


@settings(max_examples=20)
@given(cases())
def test_agrees_on_any_shape(case: Case):
    for check in (check_forward, check_input_grad, check_column_sums):
        check(case, torch.float32)
