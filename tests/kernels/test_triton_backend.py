"""backend="triton" computes what the plain path computes, on every family, forward and in each bias gradient."""

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from tiny import CONFIGS, typical
from tolerance import assert_agrees

from minibeft.checkpoints.load import build_model
from minibeft.families import FAMILIES
from minibeft.kernels import lang
from minibeft.models.config import Backend, Task
from minibeft.models.transformer import Transformer

TASKS: dict[str, Task] = {family: next(iter(FAMILIES[family].heads)) for family in CONFIGS}
INPUTS = torch.tensor([[3, 7, 11, 5, 2, 1], [9, 4, 33, 21, 17, 2]])  # the first row ends in padding
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def model(family: str, backend: Backend, dtype: torch.dtype) -> Transformer:
    """Every parameter redrawn, the same for each backend and type."""
    drawn = build_model(typical(family, TASKS[family]), task=TASKS[family], backend=backend)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return drawn.to(DEVICE, dtype).eval()


def results(family: str, backend: Backend, dtype: torch.dtype) -> dict[str, Any]:
    """The hidden states of real tokens, and the gradient of each attention bias."""
    net = model(family, backend, dtype)
    hidden = net(INPUTS.to(DEVICE), MASK.to(DEVICE)).hidden[MASK.bool().to(DEVICE)]
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden)
    (hidden * direction).sum().backward()
    biases = {name: p for name, p in net.named_parameters() if ".attention." in name and name.endswith("bias")}
    return {"hidden": hidden.detach()} | {name: bias.grad for name, bias in biases.items()}


def test_every_family_is_here():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_parity_with_the_plain_path(family: str, monkeypatch: pytest.MonkeyPatch):
    launches: list[str] = []
    run = lang.Launch.run
    monkeypatch.setattr(lang.Launch, "run", lambda self: (launches.append(self.kernel.__name__), run(self)))
    fused = results(family, "triton", torch.float32)
    assert launches.count("qkv_bias_kernel") == 2, "one launch a layer"
    assert launches.count("input_grad_kernel") == 2
    plain, gold = (results(family, "plain", dtype) for dtype in (torch.float32, torch.float64))
    assert fused.keys() == plain.keys() == gold.keys()
    null = [name for name in fused if fused[name] is None]
    live = [name for name in fused if fused[name] is not None]
    for name in null:
        # K2: without rotary b_k is not loaded and gets no gradient; the exact one is zero, float64's is rounding.
        assert name.endswith("attention.k.bias")
        assert gold[name].abs().max() < 1e-12 * gold[name.replace(".k.", ".q.")].abs().max()
    # Together, each relative to its own size: rounding early in a network is large or small in one of them by chance.
    size = {name: gold[name].abs().max().item() for name in live}
    together = [torch.cat([(r[name] / size[name]).flatten() for name in live]) for r in (fused, plain, gold)]
    assert_agrees(*together, what=family)


@pytest.mark.parametrize("family", CONFIGS)
def test_off_without_a_gpu(family: str, monkeypatch: pytest.MonkeyPatch):
    """On the CPU outside the interpreter, plain torch does the projections."""
    if DEVICE.type == "cuda":
        pytest.skip("has a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(lang.Launch, "run", lambda self: pytest.fail("launched"))
    off, fused = (results(family, backend, torch.float32)["hidden"] for backend in ("triton", "fused"))
    assert_agrees(off, fused, results(family, "plain", torch.float64)["hidden"], what=family)
