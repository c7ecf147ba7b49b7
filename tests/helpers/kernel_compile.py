"""Compile ahead of time, for a GPU that is not there, every launch the benchmark's shapes make: one JSON line each.

    python kernel_compile.py CHIP [--wide | --odd]

Every shape in bfloat16; the narrow and the wide tile in float16 too, and one shape in float32; three shapes with eight
sets of biases; every projection by descriptors. --odd instead takes sizes of one, which triton compiles as constants.
--wide instead puts the wide tile where pairs turn, which the launch configurations avoid because it spills.

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
from minibeft.kernels.key_cache.forward import plan_quantised_keys
from minibeft.kernels.lang import Launch
from minibeft.kernels.owners import Owners
from minibeft.kernels.qkv_bias.backward import plan_backward, plan_input_grad
from minibeft.kernels.qkv_bias.descriptors import describable, plan_described
from minibeft.kernels.qkv_bias.forward import Projection, plan_qkv_bias
from minibeft.kernels.shapes import SHAPES, Shape
from minibeft.kernels.tiles import matmul_tile, variants
from minibeft.theory.rotary import Rotation

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ODD = (
    Shape("one of everything", 1, 1, 1, 1, 1, 1),
    Shape("one token", 3, 1, 45, 4, 2, 24, dims=24),
    Shape("one head", 2, 7, 33, 1, 1, 80, dims=32, interleaved=True),
    Shape("one key-value head", 1, 9, 64, 8, 1, 64, dims=8),
)
PACKED = tuple(Shape(f"BERT-base {rows} packed", 1, rows, 768, 1, 1, 768) for rows in (2048, 8192))
"""As packed batches launch it, one sequence, heads side by side: the narrow tile and the wide one."""
SETS = 8
TURNED = next(shape for shape in SHAPES if shape.dims)
DESCRIPTORS = re.compile(r"\b(UTMALDG|UTMASTG)\b")
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


def launches(shape: Shape, dtype: torch.dtype, chip: int, sets: int) -> Iterator[Launch]:
    """Forward, dX, dX with the sums, and the column sums of a query bias; with so many sets of biases, if any."""

    def empty(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    def by_head(heads: int) -> Tensor:
        return empty(shape.batch, heads, shape.tokens, shape.size)

    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    outputs = by_head(heads[0]), by_head(heads[1]), by_head(heads[2])
    w_q, w_k, w_v = empty(shape.columns, shape.width).split([h * shape.size for h in heads])
    tables = (sets,) if sets else ()
    b_q, b_k, b_v = (empty(*tables, h * shape.size) for h in heads)
    found = None
    if sets:
        found = Owners(*(empty(size, kind=torch.int32) for size in (shape.rows, shape.rows, sets + 1)))
    rotation = None
    if shape.dims:
        angles = [empty(shape.tokens, shape.dims // 2, kind=torch.float32) for _ in range(2)]
        rotation = Rotation(*angles, interleaved=shape.interleaved)
    x = empty(shape.batch, shape.tokens, shape.width)
    each = found and found.each
    asked = Projection(x, (w_q, w_k, w_v), (b_q, b_k, b_v), outputs, rotation, chip, each)
    yield plan_qkv_bias(asked)
    described = dtype == torch.bfloat16 and shape in (PACKED if sets else (SHAPES[0], TURNED))
    for variant in variants(chip) if described else ():
        if describable(asked, variant):
            yield plan_described(asked, variant)
    yield plan_input_grad(outputs, (w_q, w_k, w_v), empty(*x.shape), rotation, chip)
    if not sets and dtype == torch.bfloat16:
        tile = matmul_tile(chip, dtype, "backward", shape.rows, shape.width, rotation is not None)
        sums = empty(shape.columns, kind=torch.float32)
        yield plan_backward(outputs, (w_q, w_k, w_v), empty(*x.shape), sums, rotation, chip, tile)[0]
    if not sets and dtype == torch.bfloat16 and shape.size % 2 == 0:
        steps = empty(shape.batch, shape.kv_heads, shape.tokens, kind=torch.float32)
        shift = empty(shape.kv_heads, shape.size, kind=torch.float32)
        k = outputs[1]
        for bits, codes in {8: k.to(torch.int8), 4: k[..., ::2].to(torch.uint8)}.items():
            if bits == 8 or shape == SHAPES[0]:
                yield plan_quantised_keys(x, w_k, b_k, shift, codes, steps, rotation, bits, chip)
    if dtype != torch.float16:
        yield from plan_column_sum(outputs[0], empty(*tables, shape.heads * shape.size), rotation, 1, found)


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
    options, given = launch.options, dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    blocks = [options[name] for name in ("BM", "BN", "BK", "BR", "BD", "BS") if name in options]
    return usage | {
        "kernel": launch.kernel.__name__,
        "operand": str(getattr(launch.args[0], "base", launch.args[0]).dtype),
        "head_size": options["D"],
        "turned": options.get("R", 0),
        "interleaved": options.get("INTERLEAVED", False),
        "levels": options.get("LEVELS"),
        "sets": given.get("each", given.get("starts")) is not None,
        "sums": given.get("sums") is not None,
        "tile": "×".join(map(str, blocks)),
        "warps": options["num_warps"],
        "stages": options.get("num_stages"),
        "flatten": options.get("FLATTEN", False),
        "specialize": options.get("SPECIALIZE", False),
        "shared": compiled.metadata.shared,
        "tensor_core": sorted(set(TENSOR_CORE.findall(dump))),
        "descriptors": sorted(set(DESCRIPTORS.findall(dump))),
        "spill_instructions": len(re.findall(r"\b(?:LDL|STL)\b", dump)),
    }


def chosen(option: str) -> list[tuple[Shape, torch.dtype, int]]:
    """What an option asks for: shapes, types, and how many sets of biases."""
    if option == "--wide":
        tiles.MATMUL = {key: tiles.Tiles(pair.wide, pair.wide) for key, pair in tiles.MATMUL.items()}
        return [(TURNED, torch.bfloat16, 0)]
    if option == "--odd":
        return [(shape, torch.bfloat16, 0) for shape in ODD]
    halves = [(SHAPES[0], torch.float16, 0), (SHAPES[3], torch.float16, 0)]
    mixed = [(shape, torch.bfloat16, SETS) for shape in (*PACKED, TURNED)]
    return [*((shape, torch.bfloat16, 0) for shape in SHAPES), *halves, (SHAPES[0], torch.float32, 0), *mixed]


def main(chip: int, option: str = "") -> None:
    driver.set_active(NamedChip(chip))  # pyright: ignore[reportArgumentType]
    seen = set()
    for shape, dtype, sets in chosen(option):
        for launch in launches(shape, dtype, chip, sets):
            if signature(launch) not in seen:
                seen.add(signature(launch))
                print(json.dumps(inspect(launch) | {"shape": shape.name}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
