"""Runs of transformers that differ from one another by rounding alone: what a comparison with it is measured against.

gold    its code in float64. Several models round to float32 on the way whatever their type is (softmax in OPT, LLaMA
        and Qwen2, RMSNorm, queries and keys in GPT-J); `Unrounded` lifts these casts and changes nothing else.
plain   its code in float32. One run is one sample of the rounding error, and the largest of few entries is a noisy
        measure: a sample may be exact by luck. So there are three more, gold with every parameter off by at most one
        rounding, which is what a backward stable computation may amount to.
"""

import copy
from typing import Any

import torch
from tolerance import assert_agrees, assert_close_float64, error
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibeft.theory.bounds import unit_roundoff

# How far one sample of an error may lie beyond the largest of four others, each the largest of a tensor's entries. Over
# 8,400 drawn configurations, some 200,000 comparisons, no ratio was beyond 8; a wrong formula gives 1e3 and more.
FACTOR = 8.0


class Unrounded(TorchFunctionMode):
    """Within it, float64 tensors ignore casts to float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if name == "to" and torch.float32 in (*args[1:], *kwargs.values()):
                return first
            if name == "softmax" and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = None
        return func(*args, **kwargs)


def in_float64(model: Any, nudge: int | None = None) -> Any:
    """A copy with its parameters in float64, off by at most one float32 rounding when a seed says how.

    Buffers, which hold rotary angles, stay in float32: every checkpoint was trained with these.
    """
    model = copy.deepcopy(model)
    u = unit_roundoff(torch.float32) if nudge is not None else 0.0
    generator = torch.Generator().manual_seed(nudge or 0)
    for parameter in model.parameters():
        off = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-u, u, generator=generator)
        parameter.data = parameter.data.double() * (1 + off)
    return model


def largest(plains: list[Tensor], gold: Tensor) -> Tensor:
    """The run that errs most."""
    return max(plains, key=lambda plain: error(plain, gold))


def assert_same(candidate: Tensor, candidate64: Tensor, gold: Tensor, plains: list[Tensor], what: str) -> None:
    """Both the float32 and the float64 candidate compute what gold does, as far as rounding lets one see."""
    plain = largest([plain.float() for plain in plains], gold)
    assert_agrees(candidate, plain, gold, what=f"{what}, float32", factor=FACTOR)
    allowed = error(plain, gold) + unit_roundoff(torch.float32) * gold.abs().max().item()
    assert_close_float64(candidate64, gold, allowed, what=f"{what}, float64", factor=FACTOR)
