"""verify, inspect, simplify, merge, unmerge and finetune on a tiny random model of every family that can be loaded."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_letters
from families import drawn
from safetensors.torch import load_file
from small_decoder import PROMPT_WORDS, SPECIAL, make_tokenizer
from small_run import WORDS
from tiny import reference

from minibeft.checkpoints.adapters import make_adapter, save_adapter
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.families import BODIES, read_config
from minibeft.families.tokenizers import CLASSES, FIXED
from minibeft.models.biases import add_missing, select
from minibeft.models.config import Task
from minibeft.surgery.inspect import inspect
from minibeft.surgery.merge import merge, unmerge
from minibeft.surgery.simplify import plan, simplify
from minibeft.theory.draws import Draws
from minibeft.theory.mechanisms import null_dims
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.verification.verify import verify

VOCABULARY = SPECIAL + PROMPT_WORDS + WORDS
READS = {name: read_config(drawn(name, "hidden", 0), "hidden", "").features for name in BODIES}
SENTENCES = "".join(f"w{i} w{29 - i} w3\t{i % 2}\n" for i in range(8))
TEXTS = [name for name, features in READS.items() if features is None]


def task_of(family: str) -> Task:
    """The head that finetune trains, or hidden states where there is none."""
    heads = BODIES[family].heads
    return "lm" if BODIES[family].decodes else "classification" if "classification" in heads else "hidden"


@pytest.fixture(scope="module", params=BODIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every parameter redrawn, with biases where its format can have them, and a tokenizer."""
    folder = tmp_path_factory.mktemp("every") / request.param
    raw = drawn(request.param, task_of(request.param), 3)
    raw |= {key: True for key in ("attention_bias", "use_bias", "enable_bias", "qkv_bias") if key in raw}
    raw |= {"vocab_size": len(VOCABULARY)} if "vocab_size" in raw else {}
    raw |= {"max_position_embeddings": 40} if "max_position_embeddings" in raw else {}
    reference(raw, 3).save_pretrained(folder)
    if FIXED.get(request.param) in CLASSES:
        write_letters(folder, ["<unk>", "<pad>"], [*PROMPT_WORDS, " ".join(WORDS)])
    else:
        make_tokenizer(VOCABULARY).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "texts.txt").write_text("w0 w3 w5\nIt was w4 w3 w9\n")
    return folder


def given(folder: Path) -> Path | None:
    """Two short sentences, or nothing for models that read none."""
    return folder / "texts.txt" if folder.name in TEXTS else None


@pytest.mark.slow
def test_verify(folder: Path):
    report = verify(folder, inputs=given(folder))
    assert report.ok, [check for check in report.checks if check.verdict == "VIOLATED"]
    assert {"V1", "V3", "Q3"} <= {check.theorem for check in report.checks}


def test_inspect(folder: Path):
    """A row for each of q, k, v that has a bias, fused or not."""
    config = load_model(folder).config
    rows = inspect(folder).biases
    assert {row.term for row in rows} & {*"qkv"} == config.biases & {*"qkv"}
    assert all(len(row.norms) == config.layers and min(row.norms) > 0 for row in rows if row.term in ("q", "k", "v"))


def test_simplify(folder: Path, tmp_path: Path):
    """What is null or foldable goes; the command compares the two models itself. Nothing is left to do then."""
    before = plan(folder)
    if not {"zero", "part", "fold"} & {step.action for step in before}:
        with pytest.raises(BadInput, match="nothing to simplify"):
            simplify(folder, tmp_path / "out", text=given(folder))
        return
    assert simplify(folder, tmp_path / "out", text=given(folder)).zeroed > 0
    assert not {"zero", "part", "fold"} & {step.action for step in plan(tmp_path / "out")}
    old, after = load_model(folder), load_model(tmp_path / "out")
    for i, spec in enumerate(old.config.attention):
        name = f"blocks.{i}.attention.k.bias"
        if name in after.state_dict():
            kept, new = (model.get_parameter(name).view(spec.kv_heads, -1) for model in (old, after))
            null = list(null_dims(spec))
            live = [entry for entry in range(spec.head_size) if entry not in null]
            assert not new[:, null].any()
            assert torch.equal(new[:, live], kept[:, live])


def test_merge_and_unmerge(folder: Path, tmp_path: Path):
    """A change of b_v goes in and comes out to the bit; where the format has no place for b_v that is said."""
    model = load_model(folder)
    has_place = "v" in model.config.biases
    if not has_place:
        add_missing(model, "v")
    moving = select(model, "v")
    before = {name: value.detach().clone() for name, value in moving.items()}
    for value in moving.values():
        value.data += Draws(1).normal(*value.shape, dtype=torch.float32)
    save_adapter(make_adapter(model, before), tmp_path / "adapter")
    if not has_place:
        with pytest.raises(BadInput, match=r"place|bias"):
            merge(tmp_path / "adapter", folder, tmp_path / "out", text=given(folder))
        return
    assert merge(tmp_path / "adapter", folder, tmp_path / "out", text=given(folder)).entries > 0
    unmerge(tmp_path / "out", tmp_path / "back")
    old, new = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "back"))
    assert old.keys() == new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())


def test_finetune(folder: Path, tmp_path: Path):
    """One epoch on eight sentences; models that read no texts say so."""
    (tmp_path / "sst2").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + SENTENCES)
    settings = Settings(
        model=str(folder), task="sst2", data=str(tmp_path), device="cpu", examples=8, epochs=1, batch=4, max_length=12
    )
    if folder.name not in TEXTS:
        with pytest.raises(BadInput, match=r"reads no texts|has no classification head"):
            finetune(settings, tmp_path / "run", progress=lambda _: None)
        return
    record = finetune(settings, tmp_path / "run", progress=lambda _: None)
    assert len(record["epochs"]) == 1
