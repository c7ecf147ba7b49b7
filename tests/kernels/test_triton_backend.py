"""backend="triton" computes what the plain path computes, on every family, forward and in each bias gradient."""

from functools import cache
from typing import Any

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import DEVICE
from tiny import LAYOUTS, typical
from tolerance import SAMPLES, assert_agrees, nudge

from minibeft.checkpoints.load import build_model
from minibeft.families import BODIES
from minibeft.kernels import lang
from minibeft.models.config import Backend, Task
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws

TASKS: dict[str, Task] = {family: next(iter(BODIES[family].heads)) for family in LAYOUTS}
INPUTS = torch.tensor([[3, 7, 11, 5, 2, 1], [9, 4, 33, 21, 17, 2]])  # the first row ends in padding
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def model(family: str, backend: Backend, dtype: torch.dtype) -> Transformer:
    """Every parameter redrawn, the same for each backend and type."""
    drawn = build_model(typical(family, TASKS[family]), task=TASKS[family], backend=backend)
    generator = Draws(0)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(generator.normal(*parameter.shape, dtype=torch.float32) / 2)
    return drawn.to(DEVICE, dtype).eval()


def results(net: Transformer) -> dict[str, Any]:
    """The hidden states of real tokens, and the gradient of each attention bias."""
    hidden = net(INPUTS.to(DEVICE), MASK.to(DEVICE)).hidden[MASK.bool().to(DEVICE)]
    direction = Draws(1).normal(*hidden.shape, dtype=torch.float32).to(hidden)
    (hidden * direction).sum().backward()
    biases = {name: p for name, p in net.named_parameters() if ".attention." in name and name.endswith("bias")}
    return {"hidden": hidden.detach()} | {name: bias.grad for name, bias in biases.items()}


@pytest.mark.parametrize("family", LAYOUTS)
def test_parity_with_the_plain_path(family: str, monkeypatch: pytest.MonkeyPatch):
    launches: list[str] = []
    run = lang.Launch.run
    monkeypatch.setattr(lang.Launch, "run", lambda self: (launches.append(self.kernel.__name__), run(self)))
    fused = results(model(family, "triton", torch.float32))
    assert launches.count("qkv_bias_kernel") == 2, "one launch per layer"
    assert launches.count("input_grad_kernel") == 2
    gold, *drawn = plain_runs(family)
    assert fused.keys() == gold.keys()
    null = [name for name in fused if fused[name] is None]
    live = [name for name in fused if fused[name] is not None]
    for name in null:
        # K2: without rotary b_k is not loaded and gets no gradient; the exact one is zero, float64's is rounding.
        assert name.endswith("attention.k.bias")
        assert gold[name].abs().max() < 1e-12 * gold[name.replace(".k.", ".q.")].abs().max()
    for name in live:
        assert_agrees(fused[name], [run[name] for run in drawn], gold[name], what=f"{family}, {name}")


@cache
def plain_runs(family: str) -> list[dict[str, Any]]:
    """The plain path in float64: gold, and samples of float32's rounding."""
    net = model(family, "plain", torch.float64)
    return [results(net), *(results(nudge(net, seed)) for seed in range(1, SAMPLES + 1))]


@pytest.mark.parametrize("family", LAYOUTS)
def test_off_without_a_gpu(family: str, monkeypatch: pytest.MonkeyPatch):
    """On the CPU outside the interpreter, plain torch does the projections."""
    if DEVICE.type == "cuda":
        pytest.skip("has a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(lang.Launch, "run", lambda self: pytest.fail("launched"))
    off, (gold, *drawn) = results(model(family, "triton", torch.float32)), plain_runs(family)
    assert_agrees(off["hidden"], [run["hidden"] for run in drawn], gold["hidden"], what=family)
