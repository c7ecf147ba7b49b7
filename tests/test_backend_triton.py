"""Every family computes the same on the kernels, run by Triton's interpreter, as on the plain path."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CASES, batch, configurations, reference
from tolerance import assert_agrees

import minibeft
from minibeft.checkpoint import their_state
from minibeft.config import Task
from minibeft.model import Attention, Output, Transformer

pytest.importorskip("triton")


def load(raw: dict[str, Any], seed: int, dtype: torch.dtype, backend: Any) -> Transformer:
    """A model of ours with transformers' redrawn parameters, biases included."""
    theirs = reference(raw, seed)
    ours = minibeft.build_model(raw, backend=backend)
    state = dict(theirs.state_dict())
    for name, value in their_state(ours).items():
        value.copy_(state[name])
    return ours.to(dtype).eval()


def gradients(model: Transformer, output: Output) -> dict[str, torch.Tensor]:
    """∂/∂b_q and ∂/∂b_v of the first layer, for one loss."""
    (output.hidden**2).sum().backward()
    first = next(module for module in model.modules() if isinstance(module, Attention))
    return {n: b.grad for n in "qv" if (b := getattr(first, n).bias) is not None and b.grad is not None}


@pytest.mark.parametrize(("family", "task"), [case for case in CASES if case[1] == "hidden"])
def test_the_kernels_compute_what_the_plain_path_does(family: str, task: Task):
    @settings(max_examples=2)  # the interpreter takes seconds each; test_qkv_bias.py has the many shapes
    @given(configurations(family, task), st.integers(0, 2**31), st.sampled_from(["none", "right"]))
    def agrees(raw: dict[str, Any], seed: int, padding: str):
        b = batch(raw, seed, rows=2, length=4, padding=padding)
        real = b.attention_mask.bool()
        results = []
        for dtype, backend in ((torch.float32, "triton"), (torch.float32, "plain"), (torch.float64, "plain")):
            model = load(raw, seed, dtype, backend)
            output = model(*b)
            results.append({"hidden": output.hidden[real].detach()} | gradients(model, output))
        candidate, plain, gold = results
        assert candidate.keys() == gold.keys()
        for name in gold:
            # factor 8: the plain run is one sample of a rounding error that the layers after it amplify
            assert_agrees(candidate[name], plain[name], gold[name], what=f"{family} {name}", factor=8.0)

    agrees()
