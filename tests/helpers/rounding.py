"""transformers' models in real float64: what a comparison with them takes for gold.

Several models round to float32 on the way whatever their type is (softmax in OPT, LLaMA and Qwen2, RMSNorm, queries
and keys in GPT-J); `Unrounded` lifts these casts and changes nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tolerance import assert_agrees
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Unrounded(TorchFunctionMode):
    """Within it, float64 tensors ignore casts to float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if name == "float":
                return first
            if name == "to" and torch.float32 in (*args[1:], *kwargs.values()):
                return first
            if name == "softmax" and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = None
        return func(*args, **kwargs)


def assert_same(
    candidate: Tensor,
    candidate64: Tensor,
    gold: Tensor,
    singles: Sequence[Tensor],
    doubles: Sequence[Tensor],
    what: str,
) -> None:
    """The float32 and the float64 candidate compute what gold does, each beside the samples of its own rounding."""
    assert_agrees(candidate, singles, gold, what=f"{what}, float32")
    assert_agrees(candidate64, doubles, gold, what=f"{what}, float64")
