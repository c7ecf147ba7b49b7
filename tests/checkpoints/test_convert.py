"""Real-world folders: pickles, name prefixes of wrappers, buffers, two types, other heads; read or converted."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import tensors, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from minibeft.checkpoints.convert import convert
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tensors import wrapper
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.surgery.inspect import inspect
from minibeft.surgery.simplify import simplify

FILE = "model.safetensors"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "bert", "bert", shard="1GB")


def rewrite(folder: Path, state: dict[str, Tensor], **config: object) -> Path:
    """The folder with these tensors and keys instead."""
    save_file(state, folder / FILE, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def pickled(folder: Path, lead: str = "") -> Path:
    """The folder with pytorch_model.bin instead."""
    torch.save({lead + name: value for name, value in tensors(folder).items()}, folder / "pytorch_model.bin")
    (folder / FILE).unlink()
    return folder


def same(one: Transformer, other: Transformer) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("lead", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_taken_off_and_said(lead, bert, caplog):
    before, state = load_model(bert), load_file(bert / FILE)
    rewrite(bert, {lead + name: value for name, value in state.items()})
    with caplog.at_level(logging.WARNING, "minibeft"):
        assert same(load_model(bert), before)
    assert f"begin with {lead}, which is taken off" in caplog.text
    some = sorted(state)
    rewrite(bert, {(lead if name == some[0] else "") + name: value for name, value in state.items()})
    with pytest.raises(BadInput, match=r"holds the tensor|lacks"):  # one alone is no wrapper's work
        load_model(bert)


def test_no_names_have_no_wrapper():
    assert wrapper([]) == ""
    assert wrapper(["module.a", "module.module.b"]) == "module."


@pytest.mark.parametrize("lead", ["", "module."])
def test_convert_writes_every_number_as_it_was(lead, bert, tmp_path):
    before, state = load_model(bert), tensors(bert)
    pickled(bert, lead)
    done = CliRunner().invoke(app, ["convert", str(bert), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    after = load_file(tmp_path / "out" / FILE)
    assert after.keys() == state.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert same(load_model(tmp_path / "out"), before)
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(BadInput, match="there is nothing to convert"):
        convert(tmp_path / "out", tmp_path / "again")


def test_convert_runs_no_code(bert, tmp_path):
    pickled(bert)
    torch.save({"a": print}, bert / "pytorch_model.bin")
    with pytest.raises(BadInput, match="is not plain weights and was not run"):
        convert(bert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_simplify_takes_a_pickle_writes_the_same_as_of_safetensors_and_says_what_it_did(bert, tmp_path):
    simplify(bert, tmp_path / "one")
    simplify(pickled(bert), tmp_path / "two")
    one, two = (load_file(tmp_path / name / FILE) for name in ("one", "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    record = json.loads((tmp_path / "two" / "simplify" / "simplify.json").read_text())
    assert {step["bias"]: step["action"] for step in record["steps"]} == {"k": "zero", "v": "fold"}
    assert {"command", "versions", "agreement"} <= record.keys()


def test_two_types_in_one_file_are_computed_in_the_wider_and_that_is_said(bert, caplog):
    state = load_file(bert / FILE)
    name = next(name for name in state if name.endswith("query.weight"))
    rewrite(bert, state | {name: state[name].bfloat16()})
    with caplog.at_level(logging.WARNING, "minibeft"):
        model = load_model(bert)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert "tensors of bfloat16 and float32; all are computed in torch.float32" in caplog.text


@pytest.mark.parametrize("head", ["BertForMultipleChoice", "BertForPreTraining", "BertForQuestionAnswering"])
def test_other_heads_are_left_out_and_that_is_said(head, bert, caplog):
    state = load_file(bert / FILE)
    backbone = {name: value for name, value in state.items() if name.startswith("bert.")}
    rewrite(
        bert,
        backbone | {"cls.seq_relationship.weight": torch.ones(2, 24), "qa_outputs.bias": torch.ones(2)},
        architectures=[head],
    )
    with caplog.at_level(logging.WARNING, "minibeft"):
        assert load_model(bert).config.task == "hidden"
    assert f"the head of {head} is left out" in caplog.text


def test_buffers_are_no_parameters(tmp_path):
    """GPT-J files of old carry masks and frequencies; load_model ignores them, and inspect does not count them."""
    gptj = write_checkpoint(tmp_path / "gptj", "gptj", shard="1GB")
    before, state = inspect(gptj).parameters, load_file(gptj / FILE)
    extra = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    }
    rewrite(gptj, state | extra | {"transformer.position_ids": torch.arange(32.0)})
    assert inspect(gptj).parameters == before == sum(value.numel() for value in state.values())
    load_model(gptj)


@pytest.mark.parametrize("mask", [torch.float32, torch.uint8, torch.bool])
def test_a_gpt2_has_as_many_parameters_as_in_transformers(mask, tmp_path):
    """Old files carry a mask and a number for masked logits in every layer, and the embedding under a second name."""
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 261}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / FILE)
    layers = ("transformer.h.0.attn", "transformer.h.1.attn")
    extra = {f"{name}.bias": torch.ones(1, 1, 64, 64).tril().to(mask) for name in layers}
    extra |= {f"{name}.masked_bias": torch.tensor(-1e4) for name in layers}
    rewrite(tmp_path, state | extra | {"lm_head.weight": state["transformer.wte.weight"].clone()})
    assert inspect(tmp_path).parameters == theirs.num_parameters() == 35_872
    shares = sum(biases.parameters for biases in inspect(tmp_path).biases)
    assert shares == sum(value.numel() for name, value in theirs.named_parameters() if name.endswith(".bias"))
    load_model(tmp_path)
