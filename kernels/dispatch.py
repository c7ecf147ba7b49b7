"""Which tensors run on kernels: those on a GPU, and with TRITON_INTERPRET=1 all. The others run the reference."""

import os

from torch import Tensor


def on_kernels(tensor: Tensor) -> bool:
    """The answer without importing triton, so that the operators exist where it does not."""
    return tensor.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
