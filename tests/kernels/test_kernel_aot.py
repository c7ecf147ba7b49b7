"""Each launch that the benchmark's shapes make compiles for three chips as it should run there.

No register spills, shared memory within the limit, tensor cores in half precision. No GPU is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have, CUDA programming guide
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
KERNELS = {"qkv_bias_kernel", "input_grad_kernel", "partial_sum_kernel", "final_sum_kernel"}
ODD = {"one of everything", "one token", "one head", "one key-value head"}
MATMULS = {"qkv_bias_kernel", "input_grad_kernel"}


def compiled(chip: int, *options: str) -> list[dict[str, Any]]:
    """What kernel_compile.py says of every binary, from a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).parents[1] / "helpers" / "kernel_compile.py"
    command = [sys.executable, str(program), str(chip), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def spills(binary: dict[str, Any]) -> bool:
    return bool(binary["stack"] or binary["local"] or binary["spill_instructions"])


@pytest.mark.slow
@pytest.mark.parametrize("chip", [80, 90, 100])
def test_compiles_without_spills_for_tensor_cores(chip: int):
    binaries = compiled(chip)
    assert {binary["kernel"] for binary in binaries} == KERNELS
    for binary in binaries:
        assert not spills(binary), f"registers spill: {binary}"
        assert binary["shared"] <= SHARED_LIMIT[chip], f"more shared memory than sm_{chip} has: {binary}"
        if binary["kernel"] in MATMULS and binary["operand"] in ("torch.bfloat16", "torch.float16"):
            assert TENSOR_CORE[chip] in binary["tensor_core"], f"not on tensor cores: {binary}"
    halves = {(b["kernel"], b["operand"]) for b in binaries if b["tensor_core"]}
    assert halves == {(kernel, f"torch.{half}") for kernel in MATMULS for half in ("bfloat16", "float16")}


@pytest.mark.slow
def test_spills_are_seen():
    """The wide tile does spill where pairs turn on sm_90: the check above can fail."""
    assert any(spills(binary) for binary in compiled(90, "--wide"))


@pytest.mark.slow
def test_sizes_of_one_compile():
    """Which the interpreter cannot tell: there, a size of one is a number like any other."""
    binaries = compiled(90, "--odd")
    assert {binary["kernel"] for binary in binaries} == KERNELS
    assert {binary["shape"] for binary in binaries if binary["kernel"] == "qkv_bias_kernel"} == ODD
