"""What the kernels refuse, naming both sides, and what they say where there is no triton."""

import importlib.util
import subprocess
import sys
from typing import Any

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import DEVICE, Case

from minibeft.errors import BadInput
from minibeft.kernels import lang
from minibeft.kernels.owners import owners
from minibeft.kernels.qkv_bias.function import qkv_bias
from minibeft.theory.rotary import Rotation

CASE = Case(2, 5, 12, 4, 2, 6)
DRAWN = CASE.draw(torch.float32)
GOOD: dict[str, Any] = dict(zip(("w_q", "w_k", "w_v", "b_q", "b_k", "b_v"), DRAWN.weights + DRAWN.biases, strict=True))
GOOD["x"] = DRAWN.x
REFUSED = {
    "w_k is torch.float16, x is torch.float32": {"w_k": GOOD["w_k"].half()},
    "x is torch.int64, the kernels take": {"x": GOOD["x"].long()},
    "b_v is on meta, x on": {"b_v": GOOD["b_v"].to("meta")},
    "x has shape .5, 12., expected three axes": {"x": GOOD["x"][0]},
    "w_v has shape .12, 11., x has C = 12": {"w_v": GOOD["w_v"][:, 1:]},
    "w_q has 23 rows, which heads = 4": {"w_q": GOOD["w_q"][1:]},
    "w_k has 11 rows, w_q 24 for 4 heads": {"w_k": GOOD["w_k"][1:]},
    "w_k has 18 rows, w_q 24 for 4 heads": {"w_k": torch.cat((GOOD["w_k"], GOOD["w_k"][:6]))},
    "w_v has shape .6, 12., expected .12, 12.: w_k has": {"w_v": GOOD["w_v"][:6]},
    "b_q has shape .23,., expected .24,.: w_q has shape .24, 12.": {"b_q": GOOD["b_q"][1:]},
    "cos has shape .4, 3., x needs .5, R/2. or .2, 5, R/2.": {"rotation": Rotation(torch.ones(4, 3), torch.ones(4, 3))},
    "sin has shape .5, 2., expected .5, 3.: cos": {"rotation": Rotation(torch.ones(5, 3), torch.ones(5, 2))},
    "cos turns 8 entries, heads have D = 6": {"rotation": Rotation(torch.ones(5, 4), torch.ones(5, 4))},
    "b_q is torch.float16, x is torch.float32": {"b_q": GOOD["b_q"].half()},
    "b_q has shape .3, 24., expected .2, 24.: w_q has shape .24, 12., and there are 2 sets": {
        "b_q": torch.ones(3, 24, device=DEVICE),
        "sets": owners(torch.zeros(10, dtype=torch.long, device=DEVICE), 2),
    },
    "sets has shape .9,., expected .10,.: x has": {"sets": owners(torch.zeros(9, dtype=torch.long, device=DEVICE), 2)},
    "cos is torch.float16, x is torch.float32": {"rotation": Rotation(torch.ones(5, 3).half(), torch.ones(5, 3))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_before_any_launch(message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lang.Launch, "run", lambda self: pytest.fail("launched"))
    with pytest.raises(ValueError, match=message):
        qkv_bias(**(GOOD | REFUSED[message]), heads=CASE.heads)


def test_sets_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"rows belong to sets 0 … 2; there are 2, from 0"):
        owners(torch.tensor([0, 2]), 2)


def test_operators_load_without_triton():
    code = "import sys, minibeft.kernels.qkv_bias.function; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_says_that_triton_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("lang_without_triton", lang.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(BadInput, match=r"need the package triton.*pip install 'minibeft\[kernels\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_device_is_the_one_the_tests_say():
    assert DRAWN.x.device.type == DEVICE.type
    assert DEVICE.type == "cuda" or lang.INTERPRETED
