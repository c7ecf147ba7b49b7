"""Each planted bug makes the kernels' own checks fail: the checks of test_qkv_bias.py can be trusted.

A bug is one edit of a kernel's source. The edited module is loaded under another name and its plan put to the check
that its original passes.
"""

import importlib.util
import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import (
    Case,
    Run,
    check_backward,
    check_column_sums,
    check_described,
    check_forward,
    check_input_grad,
    check_quantised_keys,
)

from minibeft.kernels.bias_grad import forward as column_sum
from minibeft.kernels.key_cache import forward as key_cache
from minibeft.kernels.qkv_bias import backward, descriptors, forward

PLAIN = Case(2, 5, 33, 3, 3, 24)
GROUPED = Case(2, 5, 45, 4, 2, 24, layout="strided")
HALF = Case(2, 5, 33, 2, 1, 24, dims=24)
PARTIAL = Case(2, 5, 33, 2, 1, 24, dims=8, interleaved=True, positions="own")
LONG = Case(3, 70, 33, 2, 2, 24)  # more than one tile of rows
SETS = Case(3, 70, 8, 4, 2, 64, sets=2)
HEADS = Case(2, 37, 32, 3, 3, 16)  # two heads per tile, and one beyond them
WHOLE = Case(2, 33, 32, 2, 1, 32, dims=32, sets=2)


class Bug(NamedTuple):
    """`old` becomes `new` wherever it stands in the module; the case that shows it."""

    name: str
    old: str
    new: str
    case: Case


ADD_BIAS = """    if bias is not None:
        low += load_bias(bias, each, stride, r, live, head * D + d0, used).to(acc.dtype)
        high += load_bias(bias, each, stride, r, live, head * D + d1, used).to(acc.dtype)
"""
TURN = """    c, s = load_angles(cos, sin, angle, live, p, R, acc.dtype)
    low, high = low * c - high * s, high * c + low * s
"""

FORWARD = [
    Bug("a wrong output stride", "b * heads * T + t, b * angle_b", "b * H * T + t, b * angle_b", GROUPED),
    Bug("a wrong input stride", "t * x_t", "t * C", GROUPED),
    Bug("no mask along C", "mask=live[:, None] & inside[None, :]", "mask=live[:, None]", PLAIN),
    Bug("no mask on the stored rows", "mask=live[:, None] & used[None, :])\n", "mask=used[None, :])\n", PLAIN),
    Bug("no mask on the stored columns", "mask=live[:, None] & used[None, :])\n", "mask=live[:, None])\n", PLAIN),
    Bug("biases added after rotary", ADD_BIAS + TURN, TURN + ADD_BIAS, HALF),
    Bug("a bias added twice", "acc += load_bias", "acc += 2 * load_bias", PLAIN),
    Bug("a bias added twice before rotary", "low += load_bias", "low += 2 * load_bias", HALF),
    Bug("no bias at all", "if bias is not None:", "if False:", PLAIN),
    Bug("the first head's bias for every head", "live, head * D + d1", "live, d1", HALF),
    Bug("the key's bias for the query", "acc, b_q, each", "acc, b_k, each", PLAIN),
    Bug(
        "a turn the other way", "low * c - high * s, high * c + low * s", "low * c + high * s, high * c - low * s", HALF
    ),
    Bug("values turned too", "tl.where(is_v, n,", "tl.where(is_q, n,", HALF),
    Bug("every sequence at the first one's positions", "b * angle_b + t", "b * 0 + t", PARTIAL),
    Bug("only the last step of the sum over C", "w_part, acc, input", "w_part, acc * 0, input", PLAIN),
    Bug("the last tile of rows left out", "(triton.cdiv(rows, tile.rows) *", "(rows // tile.rows *", LONG),
    Bug("every row adds the first set's bias", ".to(tl.int64) * stride", ".to(tl.int64) * 0", WHOLE),
    Bug("a row adds its neighbour's bias", "tl.load(each + r,", "tl.load(each + r // 2,", WHOLE),
    Bug("the length of another table", "b_k, each, bk_r", "b_k, each, bq_r", WHOLE),
]

INPUT_GRAD = [
    Bug("no values", "acc = add_plain(\n        acc, sums_v", "add_plain(\n        acc, sums_v", PLAIN),
    Bug("values twice", "acc = add_plain(\n        acc, sums_v", "acc = 2 * add_plain(\n        acc, sums_v", PLAIN),
    Bug("a turn forward instead of back", "high * si, high * co - low", "high * -si, high * co + low", HALF),
    Bug("a wrong head stride", "head += g_h", "head += D", Case(2, 5, 33, 2, 1, 24, dims=24, layout="strided")),
    Bug("every head multiplies the first one's weights", "w_low += D * w_n", "w_low += 0", HALF),
    Bug("what does not turn is forgotten", "if R < D:", "if False:", PARTIAL),
    Bug("no mask on the heads' columns", "mask=live[:, None] & inside[None, :]", "mask=live[:, None]", PLAIN),
    Bug("no mask on the stored rows", "mask=live[:, None] & used[None, :])\n", "mask=used[None, :])\n", LONG),
]  # fmt: skip

SUMS = [
    Bug("no program sums", "summing = tile_c == 0", "summing = tile_c < 0", LONG),
    Bug("all tiles of rows in one place", "tile_m.to(tl.int64) * (H + 2 * G)", "0 * (H + 2 * G)", LONG),
    Bug("the values' sums over the keys'", "sums_v = sums_k + G * D", "sums_v = sums_k", GROUPED),
    Bug("sums of the first head", "tl.store(sums + head * D", "tl.store(sums + 0 * D", GROUPED),
    Bug("sums before turning back", "tl.sum(low, 0), mask=p", "tl.sum(low * co - high * si, 0), mask=p", HALF),
    Bug("both members in one place", "tl.store(sums + h * D + d1", "tl.store(sums + h * D + d0", PARTIAL),
]  # fmt: skip

COLUMN_SUM = [
    Bug("no mask on the rows", "live = place < end", "live = place < 2 * end", PLAIN),
    Bug("no mask on the splits", "(s < splits)[:, None]", "(s < splits - 1)[:, None]", LONG),
    Bug("a run too short", "for first in range(0, run, BR)", "for first in range(BR, run + BR, BR)", LONG),
    Bug("one head of a group", "range(0, SHARED)", "range(0, 1)", GROUPED),
    Bug("neighbours of the wrong group", "(n // D * SHARED + member)", "(n // D + member)", GROUPED),
    Bug("a turn forward instead of back", "low * c + high * s", "low * c - high * s", HALF),
    Bug("a wrong token stride", "(r % T).to(tl.int64) * g_t\n", "(r % T).to(tl.int64) * D\n", GROUPED),
    Bug("rows as they lie", "tl.load(order + place, mask=live, other=0)", "place", SETS),
    Bug("the next set's rows too", "tl.load(starts + own + 1)", "tl.load(starts + own + 1) + BR", SETS),
    Bug("a set's last rows left out", "tl.cdiv(end - begin, BR), tl", "(end - begin) // BR, tl", WHOLE),
    Bug("the first set's partial sums for each", "partial += own *", "partial += 0 *", SETS),
]  # fmt: skip

DESCRIBED = [
    Bug("rows of the first sequence", "x.load([b * T + t, c])", "x.load([t, c])", HEADS),
    Bug("the query's weights for the keys", "before, n, heads = H * D, (", "before, n, heads = 0, (", HEADS),
    Bug("all in the first heads", "out.store([b, head, t, d]", "out.store([b, 0, t, d]", HEADS),
    Bug("the heads of a tile exchanged", "(1, 0, 2)", "(0, 1, 2)", HEADS),
    Bug("the last tile left out", "rows * columns, tl.num", "rows * columns - 1, tl.num", HEADS),
    Bug("second members do not turn", "low * c - high * s, high * c + low * s", "low * c - high * s, high", WHOLE),
    Bug("the first members' bias for the second", "column + D // 2, used", "column, used", WHOLE),
    Bug("the first members' weights for the second", "before + n + D // 2", "before + n", WHOLE),
    Bug("sets of the first sequence", "r = b * T + place", "r = place", WHOLE),
]

KEYS = [
    Bug("the shift added", "low -= tl.load", "low += tl.load", PARTIAL),
    Bug("a turn the other way", "low * co - high * si, high * co + low * si", "low * co + high * si, high", PARTIAL),
    Bug("a step for the first members alone", "tl.maximum(tl.abs(low), tl.abs(high))", "tl.abs(low)", GROUPED),
    Bug("cut off, not rounded", "+ 0.5", "+ 0.0", GROUPED),
    Bug("the first head's bias for every head", "bias + g * D + d1", "bias + d1", GROUPED),
    Bug("a code over the other", "(high & 15) << 4", "(high & 15) << 3", GROUPED),
    Bug("every head in the first one's place", "(b * G + g) * T", "b * G * T", GROUPED),
    Bug(
        "no mask on the rows",
        "steps + key, step.to(tl.float32), mask=live",
        "steps + key, step.to(tl.float32)",
        GROUPED,
    ),
]

SUBJECTS = [
    (forward, "plan_qkv_bias", check_forward, FORWARD),
    (backward, "plan_input_grad", check_input_grad, INPUT_GRAD),
    (backward, "plan_backward", check_backward, SUMS),
    (column_sum, "plan_column_sum", check_column_sums, COLUMN_SUM),
    (descriptors, "plan_described", check_described, DESCRIBED),
    (key_cache, "plan_quantised_keys", check_quantised_keys, KEYS),
]


def edited(module: ModuleType, bug: Bug, folder: Path) -> ModuleType:
    """The module with the bug in it, loaded from `folder`: triton reads a kernel's source from its file."""
    source = inspect.getsource(module)
    assert bug.old in source, f"{module.__name__} no longer has the text that “{bug.name}” edits"
    path = folder / "mutant.py"
    path.write_text(source.replace(bug.old, bug.new))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant


@cache
def original_passes(check: Run, case: Case) -> None:
    """Once for all bugs that a case shows."""
    check(case, torch.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says so when the interpreter meets NaN; here it should
@pytest.mark.parametrize(
    ("module", "plan", "check", "bug"),
    [pytest.param(m, p, c, bug, id=f"{p}: {bug.name}") for m, p, c, bugs in SUBJECTS for bug in bugs],
)
def test_planted_bug_is_caught(module: ModuleType, plan: str, check: Run, bug: Bug, tmp_path: Path):
    original_passes(check, bug.case)
    with pytest.raises(AssertionError, match=r"error|written"):
        check(bug.case, torch.float32, getattr(edited(module, bug, tmp_path), plan))


@pytest.mark.parametrize(("module", "plan", "check"), [s[:3] for s in SUBJECTS], ids=[s[1] for s in SUBJECTS])
def test_unedited_copy_passes(module: ModuleType, plan: str, check: Run, tmp_path: Path):
    """It is the bug that the test above catches, not the loading."""
    case = replace(WHOLE, sets=0)
    check(case, torch.float32, getattr(edited(module, Bug("none", "", "", case), tmp_path), plan))
