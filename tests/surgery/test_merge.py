"""Adapters in checkpoints: merged they compute what the adapter does, and unmerged the original bits are back."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import digests, in_transformers, inputs, leftovers, logits, tensors, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny import redraw
from tolerance import assert_agrees, samples
from torch import Tensor

from minibeft.checkpoints.adapters import load_adapted, make_adapter, save_adapter
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.save import save_model
from minibeft.errors import BadInput
from minibeft.models.biases import freeze_except
from minibeft.surgery import merge as merge_module
from minibeft.surgery.merge import merge, unmerge
from minibeft.surgery.simplify import simplify


def ours(model: Path, adapter: Path) -> tuple[Tensor, list[Tensor]]:
    """The logits of the model with the adapter beside it, in float64, and the samples of float32's rounding."""
    adapted = load_adapted(model, adapter, dtype=torch.float64)
    return logits(adapted, model), samples(lambda m: logits(m, model), adapted)


@pytest.mark.parametrize(
    ("family", "terms", "changes"),
    [
        ("bert", "v", {}),
        ("roberta", "q,k,v", {}),
        ("opt", "q,v,m1,m2", {}),
        ("qwen2", "k,v", {}),
        ("llama", "v", {"attention_bias": True}),
        ("llama", "v", {"attention_bias": False}),
        ("llama", "q,k", {"attention_bias": False}),
        ("opt", "v", {"enable_bias": False}),
    ],
)
def test_merged_is_the_model_with_its_adapter_and_unmerged_the_original(family, terms, changes, tmp_path):
    model = write_checkpoint(tmp_path / "model", family, **changes)
    adapter = write_adapter(tmp_path / "adapter", model, terms)
    before = digests(model)
    done = merge(adapter, model, tmp_path / "merged")
    assert digests(model) == before
    found = logits(in_transformers(tmp_path / "merged"), model)
    gold, rounding = ours(model, adapter)
    assert_agrees(found, rounding, gold)
    assert (logits(load_model(model), model) - gold).abs().max() > 1e-2  # the adapter matters
    assert done.lost == 0
    added = tensors(tmp_path / "merged").keys() - tensors(model).keys()
    assert done.added == len(added)
    if changes.get("attention_bias") is False:
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        assert config["attention_bias"] is True
        leaf = tuple(f"{term}_proj.bias" for term in terms.split(","))
        written = tensors(tmp_path / "merged")
        assert len(added) == 2 * 4
        assert all(bool(written[name].any()) == name.endswith(leaf) for name in added)
    unmerge(tmp_path / "merged", tmp_path / "back")
    index = "model.safetensors.index.json"  # the same content, written anew
    back = digests(tmp_path / "back")
    assert {n: d for n, d in back.items() if n != index} == {n: d for n, d in before.items() if n != index}
    assert json.loads((tmp_path / "back" / index).read_text()) == json.loads((model / index).read_text())


def test_a_single_file_is_byte_identical_after_unmerging(tmp_path):
    model = write_checkpoint(tmp_path / "model", "llama", shard="1GB", attention_bias=False, dtype=torch.bfloat16)
    merge(write_adapter(tmp_path / "a", model), model, tmp_path / "merged", residual=True)
    unmerge(tmp_path / "merged", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(model)


def test_a_head_and_a_backbone_without_prefix_become_a_classifier(tmp_path):
    """As for the demo model: a BertModel whose names lack `bert.` gets a head, and loads in transformers with it."""
    model = write_checkpoint(tmp_path / "model", "bert", architectures=["BertModel"])
    assert not any(name.startswith("bert.") for name in tensors(model))
    adapter = write_adapter(tmp_path / "adapter", model, task="classification")
    merge(adapter, model, tmp_path / "merged")
    found = logits(in_transformers(tmp_path / "merged"), model)
    gold, rounding = ours(model, adapter)
    assert_agrees(found, rounding, gold)
    unmerge(tmp_path / "merged", tmp_path / "back")
    assert {n: v.tolist() for n, v in tensors(tmp_path / "back").items()} == {
        n: v.tolist() for n, v in tensors(model).items()
    }
    assert (tmp_path / "back" / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_three_labels_on_a_model_with_two(tmp_path):
    model = write_checkpoint(tmp_path / "model", "bert")
    tuned = load_model(write_checkpoint(tmp_path / "three", "bert", num_labels=3))
    before = {n: p.detach().clone() for n, p in freeze_except(tuned, "v", head=True).items()}
    save_adapter(make_adapter(tuned, before), tmp_path / "adapter")
    merge(tmp_path / "adapter", model, tmp_path / "merged")
    assert logits(in_transformers(tmp_path / "merged"), model).shape[1] == 3
    assert load_model(tmp_path / "merged").config.labels == 3


def test_an_adapter_with_token_embeddings(tmp_path):
    """The first parameter, which the adapter replaces in float64, says nothing about the file's type."""
    model = write_checkpoint(tmp_path / "model", "llama", attention_bias=True, tie_word_embeddings=False)
    adapter = write_adapter(tmp_path / "adapter", model)
    file, name = adapter / "adapter_model.safetensors", "model.embed_tokens.weight"
    moved = 1.01 * tensors(model)[name]
    save_file(load_file(file) | {f"base_model.model.{name}": moved}, file)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"modules_to_save": ["embed_tokens"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = merge(adapter, model, tmp_path / "merged")
    assert done.agreement.written.dtype == "float32"
    assert torch.equal(tensors(tmp_path / "merged")[name], moved)


class TestFolded:
    @pytest.mark.parametrize(
        ("family", "changes", "carrier"),
        [
            ("llama", {"attention_bias": False}, "o_proj.bias"),
            ("llama", {"attention_bias": True}, "o_proj.bias"),
            ("bert", {}, "attention.output.dense.bias"),
            ("gptj", {}, "mlp.fc_out.bias"),  # attention and MLP stand side by side
        ],
    )
    def test_into_the_bias_after_w_o(self, family, changes, carrier, tmp_path):
        model = write_checkpoint(tmp_path / "model", family, **changes)
        adapter = write_adapter(tmp_path / "adapter", model)
        merge(adapter, model, tmp_path / "merged", into_output=True)
        found = logits(in_transformers(tmp_path / "merged"), model)
        gold, rounding = ours(model, adapter)
        assert_agrees(found, rounding, gold)
        old, new = tensors(model), tensors(tmp_path / "merged")
        heads = ("classifier.weight", "classifier.bias", "pooler.dense.bias")
        changed = {n for n in new if n not in old or not torch.equal(old[n], new[n])}
        assert {n for n in changed if new[n].any() and not n.endswith(heads)} == {n for n in new if n.endswith(carrier)}

    def test_refused_without_a_bias_to_hold_it(self, tmp_path):
        model = write_checkpoint(tmp_path / "model", "qwen2")
        with pytest.raises(BadInput, match="format has no bias after W_o"):
            merge(write_adapter(tmp_path / "adapter", model), model, tmp_path / "merged", into_output=True)

    def test_refused_where_certify_says_so(self, tmp_path):
        model = write_checkpoint(tmp_path / "model", "bert")
        adapter = write_adapter(tmp_path / "adapter", model)
        prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
        (model / "adapter_config.json").write_text(json.dumps(prefix))
        with pytest.raises(BadInput, match=r"cannot be folded \(V5: no-foreign-values"):
            merge(adapter, model, tmp_path / "merged", into_output=True)


class TestRounding:
    """In bfloat16 a Δ of 1e-3 vanishes in most biases of size one half; the residual keeps it."""

    @pytest.fixture(params=[torch.bfloat16, torch.float16])
    def model(self, request, tmp_path) -> Path:
        return write_checkpoint(tmp_path / "model", "opt", dtype=request.param)

    @pytest.fixture
    def adapter(self, model, tmp_path) -> Path:
        return write_adapter(tmp_path / "adapter", model, "v", size=1e-3)

    def test_what_rounding_loses_is_counted(self, model, adapter, tmp_path):
        done = merge(adapter, model, tmp_path / "merged")
        deltas = load_file(adapter / "adapter_model.safetensors")
        old, new = tensors(model), tensors(tmp_path / "merged")
        lost = rounded = entries = 0
        for name, value in new.items():
            if not name.endswith("v_proj.bias"):
                continue
            delta = deltas[f"base_model.model.{name.replace('bias', 'beft_bias')}"][0].double()
            wanted = old[name].double() + delta
            moved = wanted != old[name].double()
            entries += int(moved.sum())
            lost += int((moved & (value == old[name])).sum())
            rounded += int((value.double() != wanted)[moved].sum())
        assert (done.entries, done.lost, done.rounded) == (entries, lost, rounded)
        if next(iter(old.values())).dtype == torch.bfloat16:
            assert done.lost > entries / 3
        assert done.rounded > 0.9 * entries

    def test_the_residual_gives_the_sum_back(self, model, adapter, tmp_path):
        merge(adapter, model, tmp_path / "plain")
        merge(adapter, model, tmp_path / "merged", residual=True)
        beside = load_adapted(model, adapter)
        loaded = load_model(tmp_path / "merged")
        for i, block in enumerate(loaded.blocks):
            bias, wanted = (m.attention.v.bias for m in (block, beside.blocks[i]))  # type: ignore[union-attr]
            assert bias.dtype == torch.float32  # type: ignore[union-attr]
            assert torch.equal(bias, wanted)  # type: ignore[arg-type]
        assert torch.equal(loaded(**inputs(model)).logits, beside(**inputs(model)).logits)
        gold, _ = ours(model, adapter)
        errors = [
            (logits(load_model(tmp_path / folder, dtype=torch.float64), model) - gold).abs().max().item()
            for folder in ("plain", "merged")
        ]
        assert errors[1] < 1e-3 * errors[0]  # what is left is the rounding of the residual to float32, 2⁻²⁴ of it
        # the weights are those of the plain merge, for every other loader
        assert all(torch.equal(v, tensors(tmp_path / "plain")[n]) for n, v in tensors(tmp_path / "merged").items())

    def test_unmerging_restores_every_bit(self, model, adapter, tmp_path):
        merge(adapter, model, tmp_path / "merged", residual=True)
        unmerge(tmp_path / "merged", tmp_path / "back")
        old, back = tensors(model), tensors(tmp_path / "back")
        assert old.keys() == back.keys()
        assert all(torch.equal(old[name].view(torch.int16), back[name].view(torch.int16)) for name in old)
        assert not (tmp_path / "back" / "merge").exists()

    def test_another_edit_would_forget_the_residual(self, model, adapter, tmp_path):
        merge(adapter, model, tmp_path / "merged", residual=True)
        for edit in (
            lambda: simplify(tmp_path / "merged", tmp_path / "x"),
            lambda: merge(adapter, tmp_path / "merged", tmp_path / "x"),
        ):
            with pytest.raises(
                BadInput, match="carries the residual of a merge, which would be lost; unmerge it first"
            ):
                edit()

    def test_a_residual_that_does_not_fit_is_refused(self, model, adapter, tmp_path):
        merge(adapter, model, tmp_path / "merged", residual=True)
        other = write_checkpoint(tmp_path / "other", "opt", hidden_size=48, word_embed_proj_dim=48)
        (other / "merge").mkdir()
        (other / "merge" / "residual.safetensors").write_bytes(
            (tmp_path / "merged/merge/residual.safetensors").read_bytes()
        )
        with pytest.raises(BadInput, match=r"residual\.safetensors: .* does not fit the model"):
            load_model(other)


class TestRefusals:
    @pytest.mark.parametrize("terms", ["q", "v", "q,v"])
    def test_gptj_has_no_place_and_the_adapter_is_the_way(self, terms, tmp_path):
        model = write_checkpoint(tmp_path / "model", "gptj")
        adapter = write_adapter(tmp_path / "adapter", model, terms)
        beside = leftovers(model)
        with pytest.raises(BadInput, match="no place for") as caught:
            merge(adapter, model, tmp_path / "merged")
        assert "PeftModel.from_pretrained" in str(caught.value)
        assert ("--fold" in str(caught.value)) == ("v" in terms)
        assert leftovers(model) == beside

    def test_an_adapter_of_another_model(self, tmp_path):
        model = write_checkpoint(tmp_path / "model", "opt")
        adapter = write_adapter(tmp_path / "adapter", write_checkpoint(tmp_path / "llama", "llama"))
        with pytest.raises(BadInput, match="which this opt model does not have"):
            merge(adapter, model, tmp_path / "merged")

    def test_a_folder_that_was_never_merged(self, tmp_path):
        with pytest.raises(BadInput, match=r"merge\.json: missing; only a folder that minibeft merged"):
            unmerge(write_checkpoint(tmp_path / "model", "opt"), tmp_path / "out")

    def test_the_verification_catches_a_wrong_merge(self, tmp_path, monkeypatch):
        model = write_checkpoint(tmp_path / "model", "llama", attention_bias=False)
        adapter = write_adapter(tmp_path / "adapter", model)
        honest = merge_module.rounded
        monkeypatch.setattr(
            merge_module, "rounded", lambda *a: {n: 2 * v if "v.bias" in n else v for n, v in honest(*a).items()}
        )
        beside = leftovers(model)
        with pytest.raises(BadInput, match="nothing was written; in float32 the new outputs differ"):
            merge(adapter, model, tmp_path / "merged")
        assert leftovers(model) == beside


def test_a_model_saved_here_merges_too(tmp_path):
    """save_model's folder, with a tokenizer put beside it."""
    model = write_checkpoint(tmp_path / "model", "llama", attention_bias=False)
    loaded = load_model(model)
    redraw(loaded, 3)
    save_model(loaded, tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "saved")
    merge(adapter, tmp_path / "saved", tmp_path / "merged")
    assert torch.equal(
        load_model(tmp_path / "merged")(**inputs(model)).logits,
        load_adapted(tmp_path / "saved", adapter)(**inputs(model)).logits,
    )
