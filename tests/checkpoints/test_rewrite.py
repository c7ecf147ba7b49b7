"""Checkpoint files written anew: aligned, in little memory, and never half."""

import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibeft.checkpoints.rewrite import (
    INDEX,
    Edit,
    copy_others,
    is_shard,
    read_header,
    rewrite_file,
    rewrite_folder,
    shards,
)
from minibeft.errors import BadInput


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


def folder_of(path: Path, *files: str) -> Path:
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text("{}")
    return path


CARRIED = ["tokenizer.json", "LICENSE", "notes.TXT", "onnx/card.md", "readme", "license.txt"]
LEFT = ["model.onnx", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "other.safetensors", "data"]
STALE = ["merge/residual.json", ".cache/x.json", "model-00001-of-00002.safetensors", "model.safetensors"]


def test_what_may_hold_the_old_weights_is_left_and_named(tmp_path, caplog):
    """Shards are written anew, and what was merged is out of date: neither is carried over, nor named."""
    source, target = folder_of(tmp_path / "source", *CARRIED, *LEFT, *STALE), tmp_path / "target"
    (source / "link.md").symlink_to(folder_of(tmp_path / "elsewhere", "secret.md") / "secret.md")
    target.mkdir()
    copy_others(source, target)
    assert {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()} == set(CARRIED)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith(": " + ", ".join(sorted(["link.md", *LEFT])))
    caplog.clear()
    copy_others(folder_of(tmp_path / "clean", "config.json"), target)
    assert not caplog.records


@pytest.mark.parametrize("name", ["model-1-of-2.txt", "model.safetensors", "of-2.safetensors"])
def test_what_is_no_shard(name):
    assert not is_shard(Path(name))
    assert is_shard(Path("adapter-00001-of-00003.safetensors"))


@pytest.mark.parametrize("counted", [False, True])
def test_the_index_states_the_sizes_of_what_it_names(counted, tmp_path):
    """12 numbers in 40 bytes after the edit; total_parameters only where it was."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": torch.zeros(2, 3), "gone": torch.zeros(5)}, source / one)
    save_file({"b": torch.zeros(4, dtype=torch.bfloat16)}, source / two)
    metadata = {"total_size": 1, "kept": "as it was"} | ({"total_parameters": 1} if counted else {})
    where = {"a": one, "gone": one, "b": two}
    (source / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": where}))
    assert shards(source) == where
    rewrite_folder(source, target, Edit({"c": torch.ones(2)}, {"gone"}, {"c": "a"}))
    index = json.loads((target / INDEX).read_text())
    assert index["weight_map"] == {"a": one, "b": two, "c": one}
    assert index["metadata"] == {"total_size": 40, "kept": "as it was"} | ({"total_parameters": 12} if counted else {})
    assert load_file(target / one).keys() == {"a", "c"}
    assert not (target / "config.json").exists()


def test_a_key_of_the_configuration_is_changed_added_or_taken_out(tmp_path):
    """A null that stood there before stays; the header's own entry is no tensor."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    save_file({"a": torch.zeros(2)}, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text('{"gone": 1, "old": null, "kept": 2, "changed": true}')
    assert shards(source) == {"a": "model.safetensors"}
    rewrite_folder(source, target, Edit(config={"gone": None, "changed": False, "new": 3}))
    found = json.loads((target / "config.json").read_text())
    assert found == {"old": None, "kept": 2, "changed": False, "new": 3}


def test_what_is_no_safetensors_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no safetensors; minibeft convert writes them"):
        shards(tmp_path)
    file = tmp_path / "model.safetensors"
    for content, why in (
        (struct.pack("<Q", 16) + b"{}      ", r"corrupt; download"),  # a header as long as the file: it is not read
        (struct.pack("<Q", 10**12) + b"{}", r"corrupt; download"),
        (struct.pack("<Q", 2) + b"{x", r"corrupt \(.+\); download"),
        (b"{}", r"corrupt \(.+\); download"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=f"is truncated or {why} it again"):
            read_header(file)
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BadInput, match="is shorter than its header says"):
        rewrite_file(file, tmp_path / "new.safetensors", {}, set())


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
