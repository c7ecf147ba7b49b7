"""Input that cannot be used ends in one line that names the file, the key and the remedy, and changes nothing."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import WEIGHTS, Damage, config, lay, outcome, refusal
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minibeft.checkpoints.find import check_digest
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.models.config import Task

QUERY = "bert.encoder.layer.1.attention.self.query.bias"


def file(name: str, content: bytes | str) -> Damage:
    """Exchange a file."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Exchange tensors."""

    def damage(folder: Path) -> None:
        state = change(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).unlink()
        save_file(state, folder / WEIGHTS)

    return damage


def index(weight_map: Any) -> Damage:
    """Exchange the weights for an index of shards."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def binary(content: Any) -> Damage:
    """Exchange the weights for a pytorch_model.bin: bytes as they are, anything else pickled."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        target = folder / "pytorch_model.bin"
        target.write_bytes(content) if isinstance(content, bytes) else torch.save(content, target)

    return damage


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


FILES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "config.json: missing; a model folder holds config.json beside its weights"),
    "config is not JSON": (file("config.json", "{,}"), "config.json: is not valid JSON (Expecting property name"),
    "config is not text": (file("config.json", b"\xff\xfe\x00"), "config.json: is not valid JSON ("),
    "config is a list": (file("config.json", "[]"), "config.json: must hold a JSON object, holds a list"),
    "config is deep": (file("config.json", "[" * 100_000), "config.json: is not valid JSON ("),
    "unknown model": (config(model_type="t5"), "config.json: model_type = 't5' is not one of bert, roberta, xlm-"),
    "no model": (config(model_type=None), "config.json: model_type = None is not one of bert"),
    "odd model": (config(model_type=["bert"]), "config.json: model_type = ['bert'] is not one of bert"),
    "no weights": (remove(WEIGHTS), "has no weights; model.safetensors (or its shards) or pytorch_model.bin must be"),
    "truncated": (cut, "model.safetensors: is truncated or corrupt ("),
    "corrupt": (file(WEIGHTS, b"\xff" * 500), "model.safetensors: is truncated or corrupt ("),
    "zero bytes": (file(WEIGHTS, b""), "model.safetensors: is truncated or corrupt ("),
    "a pointer": (file(WEIGHTS, "version https://git-lfs"), "model.safetensors: is truncated or corrupt ("),
    "index without map": (index(None), "model.safetensors.index.json: has no weight_map"),
    "index of numbers": (index({"a": 1}), "model.safetensors.index.json: has no weight_map"),
    "missing shard": (index({"a": "none.safetensors"}), "names the shard none.safetensors, which is not in the folder"),
    "shard elsewhere": (index({"a": "../shard.safetensors"}), "names the shard ../shard.safetensors, which is not in"),
    "shard at the root": (index({"a": "/etc/passwd"}), "names the shard /etc/passwd, which is not in the folder"),
    "shard is a folder": (index({"a": ".."}), "names the shard .., which is not in the folder"),
    "shard lacks": (
        index({"a": "shard.safetensors"}),
        "shard.safetensors: lacks a, which model.safetensors.index.json",
    ),
    "missing tensor": (
        tensors(lambda s: {n: t for n, t in s.items() if n != QUERY}),
        f"lacks the tensor {QUERY}; the checkpoint is incomplete",
    ),
    "unexpected tensor": (
        tensors(lambda s: s | {"bert.encoder.gate": torch.ones(2)}),
        "holds the tensor bert.encoder.gate, which a bert model here does not have",
    ),
    "one layer more": (
        tensors(lambda s: s | {QUERY.replace("layer.1", "layer.2"): torch.ones(24)}),
        "holds the tensor bert.encoder.layer.2.attention.self.query.bias, which a bert model here does not have",
    ),
    "wrong shape": (
        tensors(lambda s: s | {QUERY: torch.ones(25)}),
        f"{QUERY} has shape (25,), config.json asks for (24,)",
    ),
    "scalar": (tensors(lambda s: s | {QUERY: torch.tensor(1.0)}), f"{QUERY} has shape (), config.json asks for (24,)"),
    "NaN": (tensors(lambda s: s | {QUERY: torch.full((24,), torch.nan)}), f"{QUERY} holds NaN or infinite values"),
    "infinite": (tensors(lambda s: s | {QUERY: torch.full((24,), -torch.inf)}), f"{QUERY} holds NaN or infinite"),
    "integers": (
        tensors(lambda s: s | {QUERY: torch.ones(24).int()}),
        f"{QUERY} has type int32; weights must be float64",
    ),
    "float8": (
        tensors(lambda s: s | {QUERY: torch.ones(24).to(torch.float8_e4m3fn)}),
        f"{QUERY} has type float8_e4m3fn; weights must be float64, float32, bfloat16, float16",
    ),
    "binary is text": (binary(b"no weights"), "pytorch_model.bin: is "),
    "binary is empty": (binary(b""), "pytorch_model.bin: is truncated or corrupt (EOFError)"),
    "binary is a list": (binary([torch.ones(1)]), "pytorch_model.bin: must hold a dictionary of tensors"),
    "binary is a checkpoint": (binary({"epoch": 1}), "pytorch_model.bin: must hold a dictionary of tensors"),
    "not the tied tensor": (
        tensors(lambda s: s | {"cls.predictions.decoder.weight": torch.ones(40, 24)}),
        "cls.predictions.decoder.weight is not what config.json ties it to; set tie_word_embeddings to false",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path):
    damage, message = FILES[name]
    folder = lay(tmp_path, "bert")
    damage(folder)
    assert message in refusal(folder)


@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
def test_any_damage_loads_or_is_refused(form: str, tmp_path_factory: pytest.TempPathFactory):
    """Bytes exchanged anywhere, most often where a file says what it holds."""
    folder = lay(tmp_path_factory.mktemp("damaged"), "qwen2")
    if form != "safetensors":
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    weights = next(file for file in folder.iterdir() if file.suffix in (".bin", ".safetensors"))
    sound = weights.read_bytes()

    @given(
        st.lists(st.tuples(st.integers(0, 4000) | st.integers(-3000, -1), st.integers(0, 255)), min_size=1, max_size=3)
    )
    def damage(changes: list[tuple[int, int]]):
        content = bytearray(sound)
        for place, byte in changes:
            content[place] = byte
        weights.unlink()  # a file that is mapped must not be written
        weights.write_bytes(content)
        assert str(folder) in outcome(folder)

    damage()


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_pickle_that_would_run_code(form: str, tmp_path: Path):
    folder, marker = lay(tmp_path, "bert"), tmp_path.parent / f"{tmp_path.name}-ran"
    state = {"w": torch.ones(2), "trap": Trap(marker)}
    (folder / WEIGHTS).unlink()
    if form == "bare":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"trap": Trap(marker)}))
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    text = refusal(folder)
    assert "pytorch_model.bin: is not plain weights and was not run; ask for a safetensors file" in text
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists(), "the trap does not work, so the test said nothing"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{tmp}/none", "no such folder; give a Hugging Face folder, a hub id such as org/name, or minilm"),
        ("{tmp}/config.json", "is a file; give the folder that holds config.json and the weights"),
        ("", "no such folder; give a Hugging Face folder"),
        ("nul\0byte", "no such folder; give a Hugging Face folder"),
        ("a/b/c", "no such folder; give a Hugging Face folder"),
        ("~nobody-here/x/y", "no such folder; give a Hugging Face folder"),
    ],
)
def test_names(name: str, message: str, tmp_path: Path):
    lay(tmp_path, "bert")
    with pytest.raises(BadInput, match=re.escape(message)):
        load_model(name.format(tmp=tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/name", "org/name: no such folder, not in the hub's cache, and HF_HUB_OFFLINE is set; give a folder, or"),
        ("no--name", "no--name: no such folder, and no hub id (Cannot have -- or .); give a folder or org/name"),
    ],
)
def test_hub_ids_offline(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput) as caught:
        load_model(name)
    assert message in str(caught.value)


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match=r"not in the hub's cache, and the hub cannot be reached \(.*\); give a folder"):
        load_model("org/name")


def test_the_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The layout of huggingface_hub's cache: refs name the snapshot."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    lay(snapshot, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_model("org/name").config.family == "llama"


def test_the_packaged_model_is_checked(tmp_path: Path):
    """A digest that is not the published one is an error."""
    weights = tmp_path / WEIGHTS
    with pytest.raises(BadInput, match="missing; reinstall the package"):
        check_digest(weights, "0" * 64)
    weights.write_bytes(b"weights")
    with pytest.raises(BadInput, match=r"sha256 is [0-9a-f]{64}, must be 0{64}; reinstall the package"):
        check_digest(weights, "0" * 64)


def test_a_digest_is_computed_once_and_again_for_a_changed_file(tmp_path, monkeypatch):
    """A file of the same size that was written later is another one."""
    file, read = tmp_path / "weights", list[str]()
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: read.append(kind) or whole(stream, kind))
    file.write_bytes(b"ab")
    right = hashlib.sha256(b"ab").hexdigest()
    for _ in range(3):
        check_digest(file, right)
    assert len(read) == 1
    before = file.stat().st_mtime_ns
    file.write_bytes(b"ba")
    os.utime(file, ns=(before + 1, before + 1))
    with pytest.raises(BadInput, match="sha256 is"):
        check_digest(file, right)


@pytest.mark.parametrize(("task", "family"), [("tokens", "opt"), ("ponies", "bert")])
def test_a_task_that_is_not_there(task: Task, family: str, tmp_path: Path):
    folder = lay(tmp_path, family)
    assert re.search(f"{family} has no {task} head here, only .*lm and hidden", refusal(folder, task=task))


def test_too_large_for_half_precision(tmp_path: Path):
    folder = lay(tmp_path, "bert")
    tensors(lambda s: s | {QUERY: torch.full((24,), 1e5)})(folder)
    load_model(folder, dtype=torch.bfloat16)
    assert f"{QUERY} reaches 1e+05, more than torch.float16 holds; load it as bfloat16" in refusal(
        folder, dtype=torch.float16
    )


@pytest.mark.parametrize("value", [3e4, 65504.0])
def test_large_values_are_not_infinite(value: float, tmp_path: Path):
    """All of them are finite, and their sum in their own type is not."""
    folder = lay(tmp_path, "bert")
    large = torch.full((24,), value, dtype=torch.float16)
    tensors(lambda s: {name: t.half() for name, t in s.items()} | {QUERY: large})(folder)
    assert torch.equal(load_model(folder).state_dict()["blocks.1.attention.q.bias"], large)


def test_tensors_in_two_types_load_in_one(tmp_path: Path):
    """The remedy that the refusal names works."""
    folder = lay(tmp_path, "bert")
    tensors(lambda s: s | {QUERY: s[QUERY].half()})(folder)
    types = {value.dtype for value in load_model(folder, dtype=torch.float32).state_dict().values()}
    assert types == {torch.float32}


@pytest.mark.parametrize("damage", ["missing", "truncated", "offline"])
def test_the_command_line(damage: str, tmp_path: Path):
    """One line on stderr, nothing on stdout, exit status 2, no traceback."""
    folder = lay(tmp_path, "bert")
    cut(folder)
    name = {"missing": str(tmp_path / "none"), "truncated": str(folder), "offline": "org/name"}[damage]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "minibeft", "verify", name], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stdout + run.stderr
    assert sum("minibeft: " in line for line in run.stderr.splitlines()) == 1
    assert name in run.stderr
