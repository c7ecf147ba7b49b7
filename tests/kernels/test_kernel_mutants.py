"""Each planted bug makes the kernels' own checks fail: the checks of test_qkv_bias.py can be trusted.

A bug is one edit of a kernel's source. The edited module is loaded under another name and its plan put to the check
that its original passes.
"""

import importlib.util
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from kernel_cases import Case, Run, check_column_sums, check_forward, check_input_grad

from minibeft.kernels.bias_grad import forward as column_sum
from minibeft.kernels.qkv_bias import backward, forward

PLAIN = Case(2, 5, 33, 3, 3, 24)
GROUPED = Case(2, 5, 45, 4, 2, 24, layout="strided")
HALF = Case(2, 5, 33, 2, 1, 24, dims=24)
PARTIAL = Case(2, 5, 33, 2, 1, 24, dims=8, interleaved=True, positions="own")
LONG = Case(3, 70, 33, 2, 2, 24)  # more than one tile of rows


class Bug(NamedTuple):
    """`old` becomes `new` wherever it stands in the module; the case that shows it."""

    name: str
    old: str
    new: str
    case: Case


ADD_BIAS = """    if bias is not None:
        low += tl.load(bias + head * D + d0, mask=used, other=0.0).to(acc.dtype)[None, :]
        high += tl.load(bias + head * D + d1, mask=used, other=0.0).to(acc.dtype)[None, :]
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
    Bug("a bias added twice", "acc += tl.load", "acc += 2 * tl.load", PLAIN),
    Bug("a bias added twice before rotary", "low += tl.load", "low += 2 * tl.load", HALF),
    Bug("no bias at all", "if bias is not None:", "if False:", PLAIN),
    Bug("the first head's bias for every head", "bias + head * D + d1", "bias + d1", HALF),
    Bug("the key's bias for the query", "acc, b_q, q, row", "acc, b_k, q, row", PLAIN),
    Bug(
        "a turn the other way", "low * c - high * s, high * c + low * s", "low * c + high * s, high * c - low * s", HALF
    ),
    Bug("values turned too", "tl.where(is_v, n,", "tl.where(is_q, n,", HALF),
    Bug("every sequence at the first one's positions", "b * angle_b + t", "b * 0 + t", PARTIAL),
    Bug("only the last step of the sum over C", "w_part, acc, input", "w_part, acc * 0, input", PLAIN),
    Bug("the last tile of rows left out", "(triton.cdiv(rows, tile.rows) *", "(rows // tile.rows *", LONG),
]

INPUT_GRAD = [
    Bug("no values", "acc = add_plain(acc, d_v", "add_plain(acc, d_v", PLAIN),
    Bug("values counted twice", "acc = add_plain(acc, d_v", "acc = 2 * add_plain(acc, d_v", PLAIN),
    Bug("a turn forward instead of back", "high * si, high * co - low", "high * -si, high * co + low", HALF),
    Bug("a wrong head stride", "head += g_h", "head += D", Case(2, 5, 33, 2, 1, 24, dims=24, layout="strided")),
    Bug("every head multiplies the first one's weights", "w_low += D * w_n", "w_low += 0", HALF),
    Bug("what does not turn is forgotten", "if R < D:", "if False:", PARTIAL),
    Bug("no mask on the heads' columns", "mask=live[:, None] & inside[None, :]", "mask=live[:, None]", PLAIN),
    Bug("no mask on the stored rows", "mask=live[:, None] & used[None, :])\n", "mask=used[None, :])\n", LONG),
]  # fmt: skip

COLUMN_SUM = [
    Bug("no mask on the rows", "(r < M)[:, None] & (d < D)", "(r < 2 * M)[:, None] & (d < D)", PLAIN),
    Bug("no mask on the splits", "(s < splits)[:, None]", "(s < splits - 1)[:, None]", LONG),
    Bug("a run too short", "for first in range(0, RUN, BR)", "for first in range(BR, RUN + BR, BR)", LONG),
    Bug("one head of a group", "range(0, SHARED)", "range(0, 1)", GROUPED),
    Bug("neighbours of the wrong group", "(n // D * SHARED + member)", "(n // D + member)", GROUPED),
    Bug("a turn forward instead of back", "low * c + high * s", "low * c - high * s", HALF),
    Bug("a wrong token stride", "(r % T).to(tl.int64) * g_t\n", "(r % T).to(tl.int64) * D\n", GROUPED),
]  # fmt: skip

SUBJECTS = [
    (forward, "plan_qkv_bias", check_forward, FORWARD),
    (backward, "plan_input_grad", check_input_grad, INPUT_GRAD),
    (column_sum, "plan_column_sum", check_column_sums, COLUMN_SUM),
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
    check(HALF, torch.float32, getattr(edited(module, Bug("none", "", "", HALF), tmp_path), plan))
