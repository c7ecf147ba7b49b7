"""Names given in a file stay inside its folder: they cannot make a command read or write anywhere else."""

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoints import write_adapter, write_checkpoint

from minibeft.checkpoints.rewrite import INDEX, Edit, rewrite_folder
from minibeft.errors import BadInput
from minibeft.show.files import new_folder
from minibeft.surgery.merge import merge, unmerge
from minibeft.surgery.simplify import simplify


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "bert", "bert")


def point_shards_at(folder: Path, name: str) -> None:
    """Let the index say that every tensor lies in this file."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["{victim}", "../victim.safetensors", "", "..", "sub/../../victim.safetensors", "a\0b"]
)
@pytest.mark.parametrize("command", [simplify, unmerge])
def test_an_index_cannot_name_a_file_elsewhere(command, name: str, model: Path, tmp_path: Path):
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(next(model.glob("*.safetensors")).read_bytes())
    before = victim.read_bytes()
    folder = model
    if command is unmerge:
        folder = tmp_path / "merged"
        merge(write_adapter(tmp_path / "adapter", model), model, folder)
    point_shards_at(folder, name.format(victim=victim))
    with pytest.raises(BadInput, match="which is not in the folder"):
        command(folder, tmp_path / "out")
    assert victim.read_bytes() == before
    assert not (tmp_path / "out").exists()


def copied(source: Path, target: Path) -> set[str]:
    """The files of a copy with nothing changed."""
    with new_folder(target) as ready:
        rewrite_folder(source, ready, Edit())
    return {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}


def test_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", model / "notes.txt")
    os.symlink(model / "config.json", model / "same.json")
    found = copied(model, tmp_path / "out")
    assert "notes.txt" not in found
    assert "same.json" in found
    assert "notes.txt" in caplog.text


def test_the_hubs_cache_of_links_is_a_folder_like_any_other(model: Path, tmp_path: Path):
    home = tmp_path / "models--org--name"
    snapshot, blobs = home / "snapshots" / "0", home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        os.symlink(Path("../../blobs") / str(number), snapshot / file.name)
    assert copied(snapshot, tmp_path / "out") == {file.name for file in model.iterdir()}


OTHER = (
    "pytorch_model.bin pytorch_model.bin.index.json tf_model.h5 model.tflite model.onnx model.onnx_data weights.gguf "
    "model.ckpt.data-00000-of-00001 openvino_model.xml model.mlmodel flax_model.msgpack other.safetensors"
).split()


def test_weights_in_other_formats_are_left_out_and_named(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in (*OTHER, "README.md", "LICENSE", "sentencepiece.bpe.model"):
        (model / name).write_bytes(b"x")
    found = copied(model, tmp_path / "out")
    assert not found & set(OTHER)
    assert found >= {"README.md", "LICENSE", "sentencepiece.bpe.model", "config.json", "tokenizer.json"}
    assert all(name in caplog.text for name in OTHER)


@pytest.mark.parametrize("command", [simplify, merge])
def test_outputs_that_overflow_verify_nothing(command, tmp_path: Path):
    """Finite float16 weights whose products are not: 'differ by inf, rounding explains inf' is no agreement."""
    model = write_checkpoint(tmp_path / "opt", "opt", dtype=torch.float16, shard="1GB")
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    for name, value in state.items():
        if name.endswith("embed_tokens.weight"):  # the head's as well: logits are sums of 24 such products
            state[name] = value.sign() * 6e4
    adapter = write_adapter(tmp_path / "adapter", model)
    save_file(state, model / "model.safetensors", {"format": "pt"})
    arguments = (adapter, model) if command is merge else (model,)
    with pytest.raises(BadInput, match="so nothing is verified"):
        command(*arguments, tmp_path / "out")
    assert not (tmp_path / "out").exists()
