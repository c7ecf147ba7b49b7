"""Each launch that the benchmark's shapes make compiles for three chips as it should run there.

No register spills, shared memory within the limit, tensor cores in half precision. No GPU is needed.
"""

import json
from importlib.metadata import version
from pathlib import Path

import needs_triton  # noqa: F401
import pytest
from kernel_binaries import CHIPS, compiled, spills

from minibeft.kernels.tiles import variants

pytestmark = pytest.mark.toolchain
RECORD = json.loads((Path(__file__).parents[2] / "records" / "kernel-binaries.json").read_text(encoding="utf-8"))
SAME_TRITON = RECORD["versions"]["triton"] == version("triton")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have, CUDA programming guide
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
KERNELS = {"qkv_bias_kernel", "input_grad_kernel", "partial_sum_kernel", "final_sum_kernel", "quantised_keys_kernel"}
ODD = {"one of everything", "one token", "one head", "one key-value head"}
HALF, KEYS = "torch.bfloat16", "quantised_keys_kernel"
MATMULS = {"qkv_bias_kernel", "input_grad_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_without_spills_for_tensor_cores(chip: int):
    binaries = compiled(chip)
    described = {"described_kernel"} if variants(chip) else set()
    assert {binary["kernel"] for binary in binaries} == KERNELS | described
    for binary in binaries:
        assert not spills(binary), f"registers spill: {binary}"
        assert binary["shared"] <= SHARED_LIMIT[chip], f"more shared memory than sm_{chip} has: {binary}"
        if binary["kernel"] in MATMULS | described | {KEYS} and binary["operand"] in (
            "torch.bfloat16",
            "torch.float16",
        ):
            assert TENSOR_CORE[chip] in binary["tensor_core"], f"not on tensor cores: {binary}"
        if binary["kernel"] in described:
            assert binary["descriptors"] == ["UTMALDG", "UTMASTG"], f"tiles are not moved by descriptors: {binary}"
    made = {(b["tile"], b["warps"], b["flatten"], b["specialize"]) for b in binaries if b["kernel"] in described}
    assert len(made) == len(variants(chip))
    halves = {(b["kernel"], b["operand"]) for b in binaries if b["tensor_core"]} - {
        (n, HALF) for n in (*described, KEYS)
    }
    assert halves == {(kernel, f"torch.{half}") for kernel in MATMULS for half in ("bfloat16", "float16")}
    if SAME_TRITON:
        assert binaries == RECORD["chips"][str(chip)], "run: make binaries"


def test_the_record_is_of_this_triton():
    """Another version makes other binaries: then they are held to all the above, and not to the record."""
    if not SAME_TRITON:
        pytest.skip(f"the record is of Triton {RECORD['versions']['triton']}; here is {version('triton')}")


@pytest.mark.slow
def test_spills_are_seen():
    """The wide tile does spill where pairs turn on sm_90: the check above can fail."""
    assert any(spills(binary) for binary in compiled(90, "--wide"))


@pytest.mark.slow
def test_sizes_of_one_compile():
    """The interpreter cannot test this: there, a size of one is a number like any other, not a constant."""
    binaries = compiled(90, "--odd")
    assert {binary["kernel"] for binary in binaries} == KERNELS
    assert {binary["shape"] for binary in binaries if binary["kernel"] == "qkv_bias_kernel"} == ODD
