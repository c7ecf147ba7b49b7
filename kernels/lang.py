"""The one module that imports triton, and what a launch is: a kernel, a grid, arguments and options, as data.

Keeping a launch as data lets the tests compile, for a GPU that is not there, exactly what would run on one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minibeft.errors import BadInput

try:
    import triton
    import triton.language as tl
    from triton import knobs
    from triton.tools.tensor_descriptor import TensorDescriptor
except ModuleNotFoundError as missing:
    raise BadInput(
        "the kernels need the package triton, which is not installed: pip install 'minibeft[kernels]', "
        'or use backend="fused", which needs no kernel'
    ) from missing

__all__ = ["INTERPRETED", "Launch", "accumulator", "chip_of", "descriptor", "operand", "tl", "triton"]

INTERPRETED = bool(knobs.runtime.interpret)
"""TRITON_INTERPRET=1 was set when triton was imported: kernels run in numpy, on the CPU."""


@dataclass(frozen=True)
class Launch:
    """kernel[grid](*args, **options), not yet executed."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        if all(self.grid):  # an empty batch has nothing to launch
            self.kernel[self.grid](*self.args, **self.options)


def descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """With this a kernel loads and stores blocks of the tensor: beyond its edges it loads zeros and stores nothing."""
    return TensorDescriptor.from_tensor(tensor, block)


def chip_of(device: torch.device) -> int | None:
    """Compute capability, as in sm_90; None for the interpreter."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


_TYPES: dict[torch.dtype, tl.dtype] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """float32, and float64 for float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand(dtype: torch.dtype, chip: int | None) -> tl.dtype:
    """What tl.dot multiplies: the tensors' own type, except in the interpreter, whose bfloat16 dot is wrong."""
    return accumulator(dtype) if chip is None else _TYPES[dtype]
