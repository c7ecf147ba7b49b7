"""Checkpoint files written anew: aligned, in little memory, and never half."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from checkpoints import (
    digests,
    in_transformers,
    logits,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file

from minibeft.checkpoints.rewrite import read_header, rewrite_file
from minibeft.surgery.simplify import simplify


def run_until(script: str, *arguments: Path) -> subprocess.Popen:
    """A Python process that has printed 'now'."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "now"
    return process


def test_a_killed_run_leaves_the_input_and_no_half_output(tmp_path):
    model = write_checkpoint(tmp_path / "opt", "opt")
    before = digests(model)
    process = run_until(
        """
        import sys, time
        from pathlib import Path
        from minibeft.checkpoints import rewrite
        from minibeft.surgery.simplify import simplify

        honest = rewrite.rewrite_file
        def slow(source, target, *rest):
            honest(source, target, *rest)
            if source.name.startswith("model-00002"):
                print("now", flush=True)
                time.sleep(600)
        rewrite.rewrite_file = slow
        simplify(sys.argv[1], sys.argv[2])
        """,
        model,
        tmp_path / "out",
    )
    with process:
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert digests(model) == before
    assert not (tmp_path / "out").exists()
    simplify(model, tmp_path / "out")
    assert torch.equal(*(logits(in_transformers(f), f).argmax(-1) for f in (model, tmp_path / "out")))


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
