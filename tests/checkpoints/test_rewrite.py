"""Checkpoint files written anew: aligned, in little memory, and never half."""

import subprocess
import sys
import textwrap

import torch
from safetensors.torch import load_file, save_file

from minibeft.checkpoints.rewrite import read_header, rewrite_file


def test_a_file_of_mixed_types_stays_aligned_and_else_as_it_was(tmp_path):
    """Three bfloat16 entries before a float32 tensor would put it at an odd place; nothing changed: the same bytes."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    values = {"half": torch.ones(3, dtype=torch.bfloat16), "long": torch.arange(2), "none": torch.zeros(0)}
    save_file(values, old, {"format": "pt", "note": "kept"})
    rewrite_file(old, new, {}, set())
    assert new.read_bytes() == old.read_bytes()
    rewrite_file(old, new, {"single": torch.full((2,), 0.1), "scalar": torch.tensor(2.0)}, {"long"})
    header, _ = read_header(new)
    assert header.pop("__metadata__") == {"format": "pt", "note": "kept"}
    sizes = {"BF16": 2, "F32": 4}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())
    found = load_file(new)
    assert found.keys() == {"half", "none", "single", "scalar"}
    assert torch.equal(found["single"], torch.full((2,), 0.1))
    assert torch.equal(found["half"], values["half"])


def test_rewriting_takes_the_memory_of_a_buffer(tmp_path):
    """A file of 96 MiB is rewritten while the process grows by less than an eighth of it."""
    save_file({f"w{i}": torch.zeros(6, 1 << 20) for i in range(4)} | {"b": torch.zeros(8)}, tmp_path / "a.safetensors")
    script = """
        import resource, sys
        from pathlib import Path
        import torch
        from minibeft.checkpoints.rewrite import rewrite_file
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rewrite_file(Path(sys.argv[1]), Path(sys.argv[2]), {"b": torch.ones(8)}, {"w0"})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown * 1024 < (tmp_path / "a.safetensors").stat().st_size / 8
    assert (tmp_path / "b.safetensors").stat().st_size > 3 * 24 * 2**20
