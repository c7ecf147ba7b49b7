"""Checkpoints go to transformers and back bit for bit, from every file format, for every family and head."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import as_old_pickle, as_pickle, digests, in_transformers, leftovers, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import CASES, LAYOUTS, architecture, batch, configurations, reference, typical
from torch import Tensor

import minibeft
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.save import save_model
from minibeft.families import BODIES
from minibeft.models.config import Task

State = dict[str, Tensor]


def assert_equal(a: State, b: State) -> None:
    """The same names, types and bits."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value, b[name]), name


def write(folder: Path, family: str, task: Task, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random checkpoint, written by transformers."""
    reference(typical(family, task, **changes), 1).to(dtype).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Any) -> None:
    """Exchange the tensors of a folder with a single file."""
    file = folder / "model.safetensors"
    state = change(load_file(file))
    save_file(state, file, metadata={"format": "pt"})


def rename(state: State, **parts: str) -> State:
    """Each tensor under its name with the parts exchanged."""
    for old, new in parts.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


@pytest.mark.parametrize(("family", "task"), CASES)
def test_round_trip(family: str, task: Task, tmp_path_factory: pytest.TempPathFactory):
    """transformers → ours → transformers → ours: no bit changes, no tensor is missing or left over."""

    @settings(max_examples=4)
    @given(configurations(family, task), st.integers(0, 2**31))
    def exact(raw: dict[str, Any], seed: int):
        root = tmp_path_factory.mktemp("trip")
        theirs = reference(raw, seed)
        theirs.save_pretrained(root / "theirs")
        ours = load_model(root / "theirs")
        save_model(ours, root / "ours")
        back = in_transformers(root / "ours")
        assert_equal(dict(theirs.named_parameters()), dict(back.named_parameters()))
        back.save_pretrained(root / "back")  # type: ignore[operator]
        again = load_model(root / "back")
        assert_equal(ours.state_dict(), again.state_dict())
        assert ours.config == again.config
        assert ours.config.task == task

    exact()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", LAYOUTS)
def test_other_types_keep_their_bits(family: str, dtype: torch.dtype, tmp_path: Path):
    folder = write(tmp_path / "theirs", family, "hidden", dtype=dtype)
    ours = load_model(folder)
    assert {value.dtype for value in ours.state_dict().values()} == {dtype}
    save_model(ours, tmp_path / "ours")
    assert_equal(tensors(folder), tensors(tmp_path / "ours"))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert next(in_transformers(tmp_path / "ours", dtype=None).parameters()).dtype == dtype  # type: ignore[arg-type]


@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16])
def test_conversion(to: torch.dtype, tmp_path: Path):
    folder = write(tmp_path, "qwen2", "lm")
    assert_equal(
        {name: value.to(to) for name, value in load_model(folder).state_dict().items()},
        load_model(folder, dtype=to).state_dict(),
    )


def as_shards(folder: Path, state: State) -> None:
    reference(typical("llama", "lm"), 1).save_pretrained(folder, max_shard_size="20KB")


def as_pickled_shards(folder: Path, state: State) -> None:
    names = sorted(state)
    where = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({name: state[name] for name in names if where[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [as_shards, as_pickle, as_old_pickle, as_pickled_shards])
def test_file_formats(form: Any, dtype: torch.dtype | None, tmp_path: Path):
    folder = write(tmp_path, "llama", "lm")
    expected, state = load_model(folder, dtype=dtype).state_dict(), load_file(folder / "model.safetensors")
    expected = {name: value.clone() for name, value in expected.items()}
    (folder / "model.safetensors").unlink()
    form(folder, state)
    assert len(list(folder.glob("*model*"))) > (form in (as_shards, as_pickled_shards))
    assert_equal(load_model(folder, dtype=dtype).state_dict(), expected)


def test_names_of_the_first_checkpoints(tmp_path: Path):
    """gamma and beta for a LayerNorm's weight and bias, and the buffers that transformers once saved."""
    folder = write(tmp_path, "bert", "classification")
    expected = {name: value.clone() for name, value in load_model(folder).state_dict().items()}
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    buffer = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    rewrite(folder, lambda state: rename(state, **old) | buffer)
    assert_equal(load_model(folder).state_dict(), expected)


@pytest.mark.parametrize(("family", "name"), [("llama", "lm_head.weight"), ("opt", "lm_head.weight")])
def test_a_tied_tensor_may_be_there_twice(family: str, name: str, tmp_path: Path):
    folder = write(tmp_path, family, "lm", tie_word_embeddings=True)
    embedding = {"llama": "model.embed_tokens.weight", "opt": "model.decoder.embed_tokens.weight"}[family]
    rewrite(folder, lambda state: state | {name: state[embedding].clone()})
    assert load_model(folder).config.tied
    rewrite(folder, lambda state: state | {name: state[embedding] + 1})
    with pytest.raises(minibeft.BadInput, match=rf"{name} is not what config\.json ties it to"):
        load_model(folder)


def pretrained_bert(folder: Path) -> Path:
    """A file like bert-base-cased: architectures names the masked-token head, and all of pretraining is there."""
    raw = typical("bert", "lm")
    config = transformers.AutoConfig.for_model(**raw)
    transformers.BertForPreTraining(config).save_pretrained(folder)  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text()) | {"architectures": raw["architectures"]}
    (folder / "config.json").write_text(json.dumps(config))
    embedding, bias = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
    tied = {"cls.predictions.decoder.weight": embedding, "cls.predictions.decoder.bias": bias}
    rewrite(folder, lambda state: state | {copy: state[name].clone() for copy, name in tied.items()})
    return folder


def test_a_pretraining_checkpoint_serves_every_task(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = pretrained_bert(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_model(folder).config.task == "lm"
        hidden = load_model(folder, task="hidden")
    assert not caplog.records
    assert hidden.config.pooler
    with caplog.at_level(logging.WARNING):
        classifier = load_model(folder, task="classification")
    assert caplog.messages == [f"{folder}: newly initialised: head.out.bias, head.out.weight"]
    assert_equal(
        hidden.state_dict(), {n: v for n, v in classifier.state_dict().items() if not n.startswith("head.out")}
    )


def test_roberta_with_a_pooler_that_nothing_reads(tmp_path: Path):
    folder = write(tmp_path, "roberta", "lm")
    pooler = {"roberta.pooler.dense.weight": torch.ones(24, 24), "roberta.pooler.dense.bias": torch.ones(24)}
    rewrite(folder, lambda state: state | pooler)
    assert not load_model(folder).config.pooler
    assert load_model(folder, task="hidden").config.pooler


@pytest.mark.parametrize("family", LAYOUTS)
def test_hidden_states_of_any_checkpoint(family: str, tmp_path: Path):
    """task="hidden" leaves the head out and changes nothing else."""
    for task in BODIES[family].heads:
        folder = write(tmp_path / task, family, task)
        model, hidden = load_model(folder), load_model(folder, task="hidden")
        b = batch(typical(family, task), 0, rows=2, length=5, padding="none")
        assert torch.equal(model(*b).hidden, hidden(*b).hidden)
        assert hidden(*b).logits is None


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_new_head_on_a_backbone(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Asked for by name, a head that is not there is initialised, says so, and can be saved; unasked it is an error."""
    always_tied = "tie_word_embeddings" in BODIES[family].only
    folder = write(tmp_path / "backbone", family, "hidden", tie_word_embeddings=always_tied)
    for task in BODIES[family].heads:
        torch.manual_seed(0)
        caplog.clear()
        model = load_model(folder, task=task, dtype=torch.float64)
        new = {name for name in model.state_dict() if name.startswith("head.")}
        assert "newly initialised" in caplog.messages[0]
        assert all(name in caplog.messages[0] for name in new) or family == "bert"  # whose pooler is there
        assert all(value.dtype == torch.float64 for value in model.state_dict().values())
        save_model(model, tmp_path / task)
        assert_equal(load_model(tmp_path / task).state_dict(), model.state_dict())
        in_transformers(tmp_path / task, torch.float64)
        config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture(family, task)]}
        (tmp_path / f"{task}.json").write_text(json.dumps(config))
    (folder / "config.json").write_text((tmp_path / "lm.json").read_text())
    with pytest.raises(minibeft.BadInput, match=r"lacks the tensor .*; the checkpoint is incomplete"):
        load_model(folder)


def test_number_of_labels(tmp_path: Path):
    names = {str(i): f"kind {i}" for i in range(5)}
    folder = write(tmp_path / "theirs", "roberta", "classification", id2label=names)
    model = load_model(folder)
    assert model.config.labels == 5
    save_model(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["id2label"] == names


def test_training_leaves_the_file_alone(tmp_path: Path):
    """Weights are views of the memory-mapped file; a step in place moves the model, not the file."""
    for form in (None, as_pickle):
        folder = write(tmp_path / str(form), "bert", "classification")
        if form is not None:
            form(folder, {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()})
            (folder / "model.safetensors").unlink()
        before, model = digests(folder), load_model(folder).train()
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.tensor([[3, 4, 5]])).logits.sum().backward()
        optimizer.step()
        assert not torch.equal(model.state_dict()["head.out.bias"], kept["head.out.bias"])
        assert digests(folder) == before
        assert_equal(load_model(folder).state_dict(), kept)


def test_saving(tmp_path: Path):
    """Into a new folder, below folders that are not there yet, or into an empty one; readable as config.json is."""
    model = load_model(write(tmp_path / "theirs", "gptj", "lm"))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "empty"):
        save_model(model, folder)
        assert sorted(digests(folder)) == ["config.json", "model.safetensors"]
        assert (folder / "config.json").stat().st_mode == (folder / "model.safetensors").stat().st_mode
    assert leftovers(tmp_path / "a" / "b") == []


def test_saving_over_something(tmp_path: Path):
    model = load_model(write(tmp_path / "theirs", "bert", "hidden"))
    before = digests(tmp_path / "theirs")
    for target in (tmp_path / "theirs", tmp_path / "theirs" / "config.json"):
        with pytest.raises(
            minibeft.BadInput, match="exists and is not empty; choose another folder, nothing was written"
        ):
            save_model(model, target)
    assert digests(tmp_path / "theirs") == before
    with pytest.raises(minibeft.BadInput, match="cannot be written"):
        save_model(model, tmp_path / "theirs" / "config.json" / "below")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_save_leaves_nothing(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(write(tmp_path / "theirs", "bert", "hidden"))

    def fail(state: State, file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr("minibeft.checkpoints.save.save_file", fail)
    with pytest.raises((KeyboardInterrupt, minibeft.BadInput)):
        save_model(model, tmp_path / "ours")
    assert leftovers(tmp_path / "theirs") == []


def test_a_model_that_no_config_describes(tmp_path: Path):
    """A bias added to a bias-free LLaMA has no place in a LLaMA checkpoint: refused, not dropped."""
    model = load_model(write(tmp_path / "theirs", "llama", "lm", attention_bias=False))
    model.blocks[0].attention.v.bias = torch.nn.Parameter(torch.zeros(12))  # type: ignore[union-attr]
    with pytest.raises(minibeft.BadInput, match=r"blocks\.0\.attention\.v\.bias has no place in a llama checkpoint"):
        save_model(model, tmp_path / "ours")
    assert leftovers(tmp_path / "theirs") == []
