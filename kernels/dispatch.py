"""Which tensors use the kernels: those on a GPU, or all with TRITON_INTERPRET=1. Others use the reference code."""

import os

from torch import Tensor


def on_kernels(tensor: Tensor) -> bool:
    """Decided without importing triton, so that the operators also exist where triton is not installed."""
    return tensor.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
