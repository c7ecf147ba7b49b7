"""The kernels compute what plain torch computes, on awkward shapes, in every type, without touching anything else."""

import needs_triton  # noqa: F401
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, check_backward, check_column_sums, check_described, check_forward, check_input_grad

from minibeft.kernels.qkv_bias.descriptors import describable
from minibeft.kernels.qkv_bias.forward import Projection
from minibeft.kernels.tiles import INTERPRETED_VARIANT, INTERPRETER, SUM_SPLITS

CHECKS = pytest.mark.parametrize("check", [check_forward, check_input_grad, check_column_sums, check_backward])

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


def test_more_tiles_of_rows_than_are_summed_in_one_go():
    check_backward(Case(1, SUM_SPLITS * INTERPRETER.rows + 1, 8, 1, 1, 4), torch.float32)


SETS = [
    Case(3, 70, 8, 4, 2, 64, sets=2),  # a set's own partial sums, more than one
    Case(1, 37, 45, 3, 1, 24, dims=24, layout="strided", sets=5),  # one packed batch
    Case(2, 5, 33, 2, 2, 24, dims=8, interleaved=True, sets=9),  # sets without a row
    Case(0, 5, 16, 2, 2, 8, sets=2),
]


@pytest.mark.parametrize("check", [check_forward, check_column_sums])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SETS, ids=str)
def test_sets_of_biases_agree_with_plain_torch(check, case, dtype):
    check(case, dtype)


DESCRIBED = [
    Case(2, 40, 32, 4, 2, 16),  # two heads per tile, rows cut off at the sequence's end
    Case(3, 5, 24, 3, 1, 16, biases="qv"),  # a tile beyond the heads
    Case(1, 70, 40, 1, 1, 96, sets=3),  # one packed batch
    Case(2, 33, 32, 2, 1, 64, dims=64, positions="own", sets=2),  # pairs, two tiles per head
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", DESCRIBED, ids=str)
def test_descriptors_agree_with_plain_torch(case: Case, dtype: torch.dtype):
    check_described(case, dtype)


def test_what_descriptors_cannot_move():
    """Each differs in one thing from what they can."""
    rotation = Case(2, 3, 32, 2, 2, 32, dims=32).draw(torch.float32).rotation
    partial = Case(2, 3, 32, 2, 2, 32, dims=16).draw(torch.float32).rotation
    x, narrow, packed = torch.zeros(2, 3, 32), torch.zeros(2, 3, 33)[..., :32], torch.zeros(192, 32)
    q, k, v = packed.split(64)
    weights = q, k, v
    wide = INTERPRETED_VARIANT._replace(general=False)

    def can_move(x, weights, rotation, heads, sets, variant) -> bool:
        out = torch.zeros(2, heads, x.shape[1], 64 // heads)
        each = torch.zeros(6, dtype=torch.int32) if sets else None
        return describable(Projection(x, weights, (None, None, None), (out, out, out), rotation, None, each), variant)

    assert can_move(x, weights, rotation, 2, True, INTERPRETED_VARIANT)
    for wrong in (
        (narrow, weights, rotation, 2, True, INTERPRETED_VARIANT),  # rows begin anywhere
        (x[:, :0], weights, None, 2, True, INTERPRETED_VARIANT),
        (x, (q, v, k), None, 2, True, INTERPRETED_VARIANT),
        (x, (q, k, v.clone()), None, 2, True, INTERPRETED_VARIANT),
        (x, weights, rotation, 4, True, INTERPRETED_VARIANT),  # pairs of two heads in a tile
        (x, weights, partial, 2, True, INTERPRETED_VARIANT),
        (x, weights, rotation._replace(interleaved=True), 2, True, INTERPRETED_VARIANT),
        (x, weights, None, 2, True, wide),
        (x, weights, rotation, 2, False, wide),
    ):
        assert not can_move(*wrong), wrong


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
        sets=draw(st.integers(0, 3)),
    )


@settings(max_examples=20)
@given(cases())
def test_agrees_on_any_shape(case: Case):
    for check in (check_forward, check_input_grad, check_column_sums, check_backward):
        check(case, torch.float32)
