"""inspect lists every bias of a folder with its term, norm, share and fate, for any family that the files allow."""

import json

import pytest
import torch
from checkpoints import tensors, write_checkpoint
from safetensors.torch import save_file

from minibeft.models.biases import BIAS_TERMS
from minibeft.surgery.inspect import inspect

HAVE = {  # the terms that each has in every layer
    "bert": list(BIAS_TERMS),
    "roberta": list(BIAS_TERMS),
    "opt": list(BIAS_TERMS),
    "llama": ["q", "k", "v", "m1"],
    "qwen2": ["q", "k", "v"],
    "gptj": ["m2", "m3", "ln1"],
}


@pytest.mark.parametrize("family", list(HAVE))
def test_every_bias_is_listed_once_with_its_term(family, tmp_path):
    model = write_checkpoint(tmp_path / family, family)
    found, all_tensors = inspect(model), tensors(model)
    assert [b.term for b in found.biases if b.term] == HAVE[family]
    biases = {name: value for name, value in all_tensors.items() if name.endswith(".bias")}
    assert sum(b.parameters for b in found.biases) == sum(value.numel() for value in biases.values())
    assert found.parameters == sum(value.numel() for value in all_tensors.values())
    for group in found.biases:
        values = [biases[group.name.replace("{i}", str(i))] for i in range(len(group.norms))]
        assert group.norms == tuple(value.double().norm().item() for value in values)
        assert group.shape == tuple(values[0].shape)
        assert group.share == group.parameters / found.parameters
    assert json.dumps(found.as_json())


def test_what_certify_and_simplify_say_is_part_of_it(tmp_path):
    found = inspect(write_checkpoint(tmp_path / "llama", "llama"))
    assert [found.certificate.verdict(bias).status for bias in "qkv"] == ["limited", "active", "foldable"]
    assert [step.action for step in found.steps] == ["refused", "fold"]


def test_a_prefix_of_all_names_changes_no_plan(tmp_path):
    """simplify takes it off before it begins."""
    model = write_checkpoint(tmp_path / "bert", "bert", shard="1GB")
    plain = inspect(model).steps
    save_file({f"module.{n}": v for n, v in tensors(model).items()}, model / "model.safetensors", {"format": "pt"})
    assert inspect(model).steps == plain


def test_a_family_that_cannot_be_run_is_listed_by_its_files(tmp_path):
    config = {"model_type": "deit", "hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    biases = {f"layer.{i}.qkv.bias": torch.full((24,), float(i)) for i in range(12)}
    save_file(biases | {"wte.weight": torch.zeros(5, 8)}, tmp_path / "model.safetensors")
    found = inspect(tmp_path)
    (group,) = found.biases
    assert (group.name, group.term) == ("layer.{i}.qkv.bias", "")
    assert group.norms == tuple(torch.full((24,), float(i)).double().norm().item() for i in range(12))  # 10 after 9
    assert [step.action for step in found.steps] == ["refused", "refused"]
