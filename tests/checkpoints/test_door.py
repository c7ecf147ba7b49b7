"""All foreign files are read in one place: regular, bounded, inside their folder, and checked against what they say."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import as_old_pickle, as_pickle, digests, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file

from minibeft.certificate.certify import certify
from minibeft.checkpoints.adapters import load_adapter
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tensors import open_tensors
from minibeft.checkpoints.tokenizer import load_tokenizer
from minibeft.errors import BadInput
from minibeft.surgery.quantkeys import quantkeys
from minibeft.surgery.report import render_study
from minibeft.surgery.simplify import simplify
from minibeft.surgery.source import Source
from minibeft.training.rows import read_rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "bert", "bert", shard="1GB")


def change(folder: Path, **keys: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_refused(name: str, model: Path, tmp_path: Path):
    (model / name).rename(tmp_path / "elsewhere")
    (model / name).symlink_to("../elsewhere")
    with pytest.raises(BadInput, match=f"{name}: is a link that leads out of its folder; put the file itself there"):
        simplify(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_a_link_out_is_refused(tmp_path: Path):
    model = write_checkpoint(tmp_path / "bert", "bert")
    shard = sorted(model.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to("../elsewhere")
    for command in (load_model, lambda folder: simplify(folder, tmp_path / "out")):
        with pytest.raises(BadInput, match="is a link that leads out of its folder"):
            command(model)


def test_links_of_the_hubs_cache_and_inside_the_folder_are_followed(model: Path, tmp_path: Path):
    home = tmp_path / "models--org--name"
    snapshot, blobs = home / "snapshots" / "0", home / "blobs"
    (snapshot / "deep").mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        os.symlink(Path("../../blobs") / str(number), snapshot / file.name)
    simplify(snapshot, tmp_path / "out")
    os.symlink(Path("../../../blobs") / "0", snapshot / "deep" / "config.json")
    assert certify(snapshot / "deep").model_type == "bert"
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    assert load_model(model).config.layers == 2


def test_blobs_that_are_a_link_elsewhere_are_no_cache(model: Path, tmp_path: Path):
    home = tmp_path / "models--org--name"
    (home / "snapshots" / "0").mkdir(parents=True)
    (home / "blobs").symlink_to(model)
    for name in FILES:
        (home / "snapshots" / "0" / name).symlink_to(f"../../blobs/{name}")
    with pytest.raises(BadInput, match="is a link that leads out"):
        load_model(home / "snapshots" / "0")


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_is_called_one(name: str, model: Path, tmp_path: Path):
    (model / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadInput, match=rf"{name}: is a git-lfs pointer, not the file itself; run git lfs pull"):
        simplify(model, tmp_path / "out")


def test_huge_files_pipes_and_devices_are_not_read(model: Path, tmp_path: Path):
    with (model / "config.json").open("r+b") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(BadInput, match=r"config.json: has 3,221,225,472 bytes, more than"):
        certify(model)
    other = write_checkpoint(tmp_path / "other", "bert")
    os.mkfifo(tmp_path / "train.tsv")
    for file in (tmp_path / "train.tsv", Path("/dev/zero")):
        with pytest.raises(BadInput, match="is no regular file"):
            next(read_rows(file, ("sentence",)))
        with pytest.raises(BadInput, match="is no regular file"):
            quantkeys(other, text=file)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 must be at least 1 and less than 65536"),
        ({"num_hidden_layers": 60_000}, "lacks .* of the 60000 layers; the checkpoint is incomplete"),
        ({"num_labels": 10**8}, "num_labels = 100000000 must be at least 1 and less than 65536"),
        ({"pad_token_id": -1}, "pad_token_id = -1 must be null or one of the"),
        ({"pad_token_id": 10**6}, "pad_token_id = 1000000 must be null or one of the"),
        (
            {"hidden_size": 2**31 - 1, "num_attention_heads": 1, "intermediate_size": 2**31 - 1},
            "than a tensor can have",
        ),
    ],
)
def test_sizes_are_compared_before_anything_is_built(keys: dict, message: str, model: Path):
    change(model, **keys)
    with pytest.raises(BadInput, match=message):
        load_model(model, task="classification")


@pytest.mark.parametrize("size", [10_007, 2**20, 2**31 - 1])
def test_certify_takes_no_time_on_large_sizes(size: int):
    for heads in (1, size):
        found = certify({"model_type": "bert", "hidden_size": size, "num_attention_heads": heads})
        assert [found.verdict(bias).status for bias in "qkv"] == ["limited", "null", "foldable"]
    group = {"hidden_size": 2**20, "num_attention_heads": 2**20, "num_key_value_heads": 1, "head_dim": 2}
    assert certify({"model_type": "llama", **group}).verdict("v").status == "foldable"


ODD = {
    "expanded": torch.zeros(1).expand(10**9, 10**3),
    "sparse": torch.eye(4).to_sparse(),
    "meta": torch.empty(2**40, device="meta"),
}


@pytest.mark.parametrize("write", [as_pickle, as_old_pickle])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_show_more_than_they_hold_are_refused(kind: str, write, model: Path):
    (model / "model.safetensors").unlink()
    write(model, {"x": ODD[kind]})
    with pytest.raises(BadInput, match=r"x does not hold its own numbers|is not plain weights|truncated or corrupt"):
        open_tensors(model)


def test_a_zip_bomb_is_refused(model: Path):
    as_pickle(model, load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    file = model / "pytorch_model.bin"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(model / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) if "/data/" not in name else bytes(1 << 20))
    (model / "new").replace(file)
    with pytest.raises(BadInput, match=r"unpacks to [\d,]+ bytes, more than it has"):
        load_model(model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_types_that_nothing_computes_in_are_refused(dtype: torch.dtype, model: Path, tmp_path: Path):
    state = load_file(model / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in state.items()}, model / "model.safetensors")
    for command in (load_model, lambda folder: simplify(folder, tmp_path / "out")):
        with pytest.raises(BadInput, match=r"has type .*; weights must be float64, float32"):
            command(model)
    source = Source.open(model)
    with pytest.raises(BadInput, match="weights must be"):
        source["blocks.0.attention.q.bias"]


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": 5},
        {"base_model_name_or_path": {}},
        {"modules_to_save": [[]]},
        {"task_type": []},
        {"peft_type": []},
    ],
)
def test_an_adapter_that_is_no_adapter_is_refused(keys: dict, model: Path, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter", model)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    with pytest.raises(BadInput, match=next(iter(keys))):
        load_adapter(adapter)
    (model / "adapter_config.json").write_text(file.read_text())
    certify(model)  # which says unknown, or what it knows


def test_a_constant_sentence_has_a_study(model: Path, tmp_path: Path):
    (tmp_path / "text").write_text("the\n" * 4)
    list(render_study(quantkeys(model, text=tmp_path / "text")))


def test_a_text_too_long_for_memory_is_refused(tmp_path: Path):
    llama = write_checkpoint(tmp_path / "llama", "llama")
    (tmp_path / "text").write_text("the " * 20_000)
    with pytest.raises(BadInput, match="1 texts of up to 20000 tokens may not fit in memory"):
        simplify(llama, tmp_path / "out", text=tmp_path / "text")


def test_a_tokenizer_of_another_model_is_named(model: Path, tmp_path: Path):
    before = digests(model)
    raw = json.loads((model / "tokenizer.json").read_text())
    raw["model"]["vocab"]["the"] = 10**6
    (model / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "text").write_text("the the\n")
    with pytest.raises(BadInput, match=r"tokenizer.json: gives the token 1000000, and config.json says vocab_size"):
        simplify(model, tmp_path / "out", text=tmp_path / "text")
    assert digests(model).keys() == before.keys()


def frame(**keys: object) -> dict:
    """A post-processor with one special token."""
    token = {"id": "[UNK]", "ids": [0], "tokens": ["[UNK]"]}
    return {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {"[UNK]": token}} | keys


A, UNKNOWN = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[UNK]", "type_id": 0}}
DOUBLES = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
MANY = {"[UNK]": {"id": "[UNK]", "ids": [0] * 1000, "tokens": ["[UNK]"] * 1000}}
RUNAWAY = {
    "a text doubled 40 times": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLES] * 40}},
    "doubled inside": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [DOUBLES] * 40}]}
    },
    "a letter to a book": {"normalizer": DOUBLES | {"content": "e" * (1 << 20)}},
    "a text repeated": {"post_processor": frame(single=[A] * 10_000)},
    "a frame of tokens": {"post_processor": frame(single=[A, UNKNOWN], special_tokens=MANY)},
    "one among others": {"post_processor": {"type": "Sequence", "processors": [frame(single=[A] * 10_000)]}},
}


@pytest.mark.parametrize("kind", RUNAWAY)
def test_a_runaway_tokenizer_is_refused(kind: str, model: Path, tmp_path: Path):
    file = model / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | RUNAWAY[kind]))
    with pytest.raises(BadInput, match="its tokenizer makes texts more than 256 times as long"):
        simplify(model, tmp_path / "out")


def test_an_ordinary_frame_and_normaliser_are_read(model: Path):
    file = model / "tokenizer.json"
    keys = {"normalizer": DOUBLES | {"content": "E"}, "post_processor": frame(single=[UNKNOWN, A, UNKNOWN])}
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    assert load_tokenizer(model).encode("the").ids[::2] == [0, 0]


def maps(file: Path) -> int:
    """How often this process has the file in its memory map."""
    return sum(str(file.resolve()) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize("keep", [True, False])
def test_a_file_is_mapped_once_however_many_tensors_it_has(keep: bool, model: Path):
    """A map for each tensor would need the file's size of address space as many times: `ulimit -v` ends that."""
    file, most = model / "model.safetensors", 0
    held = []
    for lazy in open_tensors(model, keep=keep).values():
        held.append(lazy() if keep else lazy().double())
        most = max(most, maps(file))
    assert len(held) > 20
    assert 0 < most <= 2
