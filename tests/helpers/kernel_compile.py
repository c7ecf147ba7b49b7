"""Compile ahead of time, for a GPU that is not there, every launch the benchmark's shapes make: one JSON line each.

    python kernel_compile.py CHIP [--wide | --odd]

Every shape in bfloat16; the narrow and the wide tile in float16 too, and one shape in float32. --odd instead takes
sizes of one, which triton compiles as constants. --wide instead puts the wide tile where pairs turn, which the launch
configurations avoid because it spills.

Run as a program of its own: the test process may have triton in interpreter mode, which cannot compile. The launches
come from the plans that a GPU runs; meta tensors stand in for its memory, and a driver that only names the chip for its
driver.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from minibeft.kernels import tiles
from minibeft.kernels.bias_grad.forward import plan_column_sum
from minibeft.kernels.lang import Launch
from minibeft.kernels.qkv_bias.backward import plan_input_grad
from minibeft.kernels.qkv_bias.forward import plan_qkv_bias
from minibeft.kernels.shapes import SHAPES, Shape
from minibeft.theory.rotary import Rotation

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ODD = (
    Shape("one of everything", 1, 1, 1, 1, 1, 1),
    Shape("one token", 3, 1, 45, 4, 2, 24, dims=24),
    Shape("one head", 2, 7, 33, 1, 1, 80, dims=32, interleaved=True),
    Shape("one key-value head", 1, 9, 64, 8, 1, 64, dims=8),
)
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")


class NamedChip:
    """What triton asks of a driver in order to compile."""

    def __init__(self, chip: int):
        self.chip = chip

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(shape: Shape, dtype: torch.dtype, chip: int) -> Iterator[Launch]:
    """Forward, dX, and the column sums of a query bias."""

    def empty(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    def by_head(heads: int) -> Tensor:
        return empty(shape.batch, heads, shape.tokens, shape.size)

    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    outputs = by_head(heads[0]), by_head(heads[1]), by_head(heads[2])
    w_q, w_k, w_v = (empty(h * shape.size, shape.width) for h in heads)
    b_q, b_k, b_v = (empty(h * shape.size) for h in heads)
    rotation = None
    if shape.dims:
        angles = [empty(shape.tokens, shape.dims // 2, kind=torch.float32) for _ in range(2)]
        rotation = Rotation(*angles, interleaved=shape.interleaved)
    x = empty(shape.batch, shape.tokens, shape.width)
    yield plan_qkv_bias(x, (w_q, w_k, w_v), (b_q, b_k, b_v), outputs, rotation, chip)
    yield plan_input_grad(outputs, (w_q, w_k, w_v), empty(*x.shape), rotation, chip)
    yield from plan_column_sum(outputs[0], empty(shape.heads * shape.size), rotation, 1)


def signature(launch: Launch) -> tuple[Any, ...]:
    """Equal for launches whose binaries differ at most in which sizes triton knows to be multiples of 16."""
    kinds = (argument.dtype if isinstance(argument, Tensor) else argument is None for argument in launch.args)
    return launch.kernel.__name__, *kinds, *launch.options.items()


def inspect(launch: Launch) -> dict[str, Any]:
    """Compile, and read the binary's registers, stack, local memory, shared memory and tensor-core instructions."""
    compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", "--dump-sass", binary.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key.lower(): int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump)}
    return usage | {
        "kernel": launch.kernel.__name__,
        "operand": str(launch.args[0].dtype),
        "shared": compiled.metadata.shared,
        "tensor_core": sorted(set(TENSOR_CORE.findall(dump))),
        "spill_instructions": len(re.findall(r"\b(?:LDL|STL)\b", dump)),
    }


def chosen(option: str) -> list[tuple[Shape, torch.dtype]]:
    """What an option asks for."""
    if option == "--wide":
        tiles.MATMUL = {key: tiles.Tiles(pair.wide, pair.wide) for key, pair in tiles.MATMUL.items()}
        return [(next(shape for shape in SHAPES if shape.dims), torch.bfloat16)]
    if option == "--odd":
        return [(shape, torch.bfloat16) for shape in ODD]
    halves = [(SHAPES[0], torch.float16), (SHAPES[3], torch.float16)]
    return [*((shape, torch.bfloat16) for shape in SHAPES), *halves, (SHAPES[0], torch.float32)]


def main(chip: int, option: str = "") -> None:
    driver.set_active(NamedChip(chip))  # pyright: ignore[reportArgumentType]
    seen = set()
    for shape, dtype in chosen(option):
        for launch in launches(shape, dtype, chip):
            if signature(launch) not in seen:
                seen.add(signature(launch))
                print(json.dumps(inspect(launch) | {"shape": shape.name}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
