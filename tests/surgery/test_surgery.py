"""Bias surgery on files: what certify allows is done, verified, and loads in transformers."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import (
    digests,
    in_transformers,
    inputs,
    leftovers,
    logits,
    tensors,
    write_checkpoint,
)
from rounding import Unrounded
from safetensors.torch import save_file
from tolerance import assert_agrees, in_float64, samples

from minibeft.certificate.certify import Certificate, Verdict
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.surgery import simplify as simplify_module
from minibeft.surgery import source as surgery
from minibeft.surgery.simplify import plan, simplify

CASES = {  # what becomes zero, and what carries it
    "bert": ("self.key.bias self.value.bias", "attention.output.dense.bias"),
    "roberta": ("self.key.bias self.value.bias", "attention.output.dense.bias"),
    "opt": ("k_proj.bias v_proj.bias", "out_proj.bias"),
    "llama": ("v_proj.bias", "o_proj.bias"),  # rotary: b_k stays; values are not turned, so b_v goes
}


class TestSimplify:
    @pytest.fixture(params=list(CASES))
    def model(self, request, tmp_path) -> Path:
        return write_checkpoint(tmp_path / request.param, request.param)

    def test_the_same_model_in_transformers_with_fewer_biases(self, model, tmp_path):
        before = digests(model)
        done = simplify(model, tmp_path / "out")
        assert digests(model) == before
        old, new = in_transformers(model), in_transformers(tmp_path / "out")
        found = logits(new, model)
        assert torch.equal(logits(old, model).argmax(-1), found.argmax(-1))
        with Unrounded():
            rounding = samples(lambda m: logits(m, model), old)
            assert_agrees(found, rounding, logits(in_float64(old), model), what="simplified")
        zeroed = tuple(CASES[model.name][0].split())
        assert done.zeroed == sum(v.numel() for n, v in tensors(model).items() if n.endswith(zeroed))
        assert done.zeroed > 0
        record = json.loads((tmp_path / "out" / "simplify" / "simplify.json").read_text())
        assert record.keys() > {"command", "versions"}
        assert {key: record[key] for key in ("zeroed", "dropped", "rounding")} == {
            "zeroed": done.zeroed,
            "dropped": 0,
            "rounding": done.rounding,
        }

    def test_what_is_not_named_keeps_its_bits(self, model, tmp_path):
        simplify(model, tmp_path / "out")
        zeroed, carrier = (tuple(names.split()) for names in CASES[model.name])
        old, new = tensors(model), tensors(tmp_path / "out")
        assert list(old) == list(new)
        for name, value in new.items():
            assert value.dtype == old[name].dtype
            if name.endswith(zeroed):
                assert not value.any()
                assert old[name].any()
            else:
                assert torch.equal(value, old[name]) != name.endswith(carrier), name
        others = {name: digest for name, digest in digests(model).items() if not name.endswith(".safetensors")}
        others.pop("model.safetensors.index.json")  # written anew, compared below
        assert others.items() <= digests(tmp_path / "out").items()
        indices = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (model, tmp_path / "out")]
        assert indices[0] == indices[1]

    def test_dropping_b_v_without_folding_is_another_model(self, model, tmp_path):
        """The twin: what the verification would have to catch."""
        old = in_transformers(model)
        gold = logits(old, model)
        for name, parameter in old.named_parameters():
            if name.endswith(("value.bias", "v_proj.bias")):
                parameter.data.zero_()
        assert (logits(old, model) - gold).abs().max() > 1e-2

    def test_a_second_time_there_is_nothing_to_do(self, model, tmp_path):
        simplify(model, tmp_path / "out")
        if model.name == "llama":
            assert [step.action for step in plan(tmp_path / "out")] == ["refused", "nothing"]
        with pytest.raises(BadInput, match=r"out: nothing to simplify, nothing was written; b_k: .*; b_v: nothing"):
            simplify(tmp_path / "out", tmp_path / "again")
        assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_half_precision_files_round_once(family, dtype, tmp_path):
    """b_o' is W_o b_v + b_o in float64, rounded to the file's type."""
    model = write_checkpoint(tmp_path / family, family, dtype=dtype)
    done = simplify(model, tmp_path / "out")
    old, new, rounding = tensors(model), tensors(tmp_path / "out"), []
    for name, b_o in old.items():
        if not name.endswith(("attention.output.dense.bias", "o_proj.bias")):
            continue
        v = name.replace("output.dense", "self.value").replace("o_proj", "v_proj")
        b_v = old[v].double().view(-1, 6)  # 6 is the head size
        b_v = b_v.repeat_interleave(4 // len(b_v), 0).flatten()
        wanted = b_o.double() + old[name.replace("bias", "weight")].double() @ b_v
        assert torch.equal(new[name], wanted.to(dtype))
        rounding.append((new[name].double() - wanted).abs().max().item())
    assert done.rounding == pytest.approx(max(rounding), rel=1e-9)
    assert done.agreement.written.dtype == str(dtype).removeprefix("torch.")


def test_a_wrappers_names_are_planned_as_the_models_own(tmp_path):
    model = write_checkpoint(tmp_path / "bert", "bert", shard="1GB")
    steps = plan(model)
    save_file({f"module.{n}": v for n, v in tensors(model).items()}, model / "model.safetensors", {"format": "pt"})
    assert [step.action for step in steps] == ["zero", "fold"]
    assert plan(model) == steps


def two_types(folder: Path) -> Path:
    """A BERT whose attention is stored in bfloat16, the rest in float32, in one file."""
    model = write_checkpoint(folder / "bert", "bert", shard="1GB")
    mixed = {n: v.bfloat16() if ".attention." in n else v for n, v in tensors(model).items()}
    save_file(mixed, model / "model.safetensors", {"format": "pt"})
    return model


def test_a_file_of_two_types_keeps_them(tmp_path, caplog):
    """It is computed in float32, and b_o' is rounded to bfloat16: that is allowed, and nothing more."""
    model = two_types(tmp_path)
    done = simplify(model, tmp_path / "out")
    old, new = tensors(model), tensors(tmp_path / "out")
    assert {n: v.dtype for n, v in old.items()} == {n: v.dtype for n, v in new.items()}
    assert done.agreement.written.dtype == "float32"
    assert min(done.rounding, done.agreement.written.value) > 1e-5
    assert "bfloat16 and float32" in caplog.text


def test_of_two_types_a_number_one_step_off_is_refused(tmp_path, monkeypatch):
    """Planted: what is stored is the neighbour of the rounded number."""
    honest = surgery.rewrite_folder

    def careless(source, target, edit):
        for name, value in edit.tensors.items():
            if name.endswith("output.dense.bias"):
                edit.tensors[name] = torch.nextafter(value, value + 1)
        honest(source, target, edit)

    monkeypatch.setattr(surgery, "rewrite_folder", careless)
    with pytest.raises(BadInput, match="in float32 the new outputs differ by"):
        simplify(two_types(tmp_path), tmp_path / "out")


def test_one_file_instead_of_shards_and_a_text(tmp_path):
    model = write_checkpoint(tmp_path / "opt", "opt", shard="1GB")
    (tmp_path / "text").write_text("It was dull .\n\nA very good dog .\n")
    done = simplify(model, tmp_path / "out", text=tmp_path / "text")
    assert done.agreement.sentences == 2
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (model / "model.safetensors").stat().st_size
    assert done.bytes_removed == 0


def test_biases_that_are_all_zero_are_dropped_with_their_switch(tmp_path):
    """LLaMA with attention_bias and nothing in it: rotary forbids nothing, because zero is zero."""
    model = write_checkpoint(tmp_path / "llama", "llama", shard="1GB")
    zeros = {n: torch.zeros_like(v) if n.endswith("_proj.bias") else v for n, v in tensors(model).items()}
    save_file(zeros, model / "model.safetensors", {"format": "pt"})
    done = simplify(model, tmp_path / "out")
    gone = {name for name in zeros if name.endswith("_proj.bias")}
    assert tensors(tmp_path / "out").keys() == zeros.keys() - gone
    assert json.loads((tmp_path / "out" / "config.json").read_text())["attention_bias"] is False
    assert done.dropped == sum(zeros[name].numel() for name in gone)
    assert done.bytes_removed > 4 * done.dropped  # their headers too
    assert torch.equal(logits(in_transformers(model), model), logits(in_transformers(tmp_path / "out"), model))


class TestTheVerificationCatches:
    """A planted bug in a step: the models differ, and nothing is written."""

    def fails(self, model: Path) -> None:
        with pytest.raises(
            BadInput, match=r"nothing was written; in float64 the new outputs differ .* rounding explains"
        ):
            simplify(model, model.parent / "out")
        assert leftovers(model) == []

    def test_groups_repeated_in_the_wrong_order(self, tmp_path, monkeypatch):
        def tiled(b_o, w_o, b_v, config):
            return b_o.double() + w_o.double() @ b_v.double().repeat(config.heads // config.kv_heads)

        monkeypatch.setattr(simplify_module, "fold", tiled)
        self.fails(write_checkpoint(tmp_path / "llama", "llama"))

    def test_a_wrong_verdict(self, tmp_path, monkeypatch):
        """b_k under rotary positions, had certify called it null."""
        honest, wrong = Certificate.verdict, Verdict("k", "null", "K1", "wrong", (), True)
        monkeypatch.setattr(Certificate, "verdict", lambda c, bias: wrong if bias == "k" else honest(c, bias))
        self.fails(write_checkpoint(tmp_path / "llama", "llama"))

    def test_one_tensor_too_many(self, tmp_path, monkeypatch):
        """A file that was written wrongly, although the step was right."""
        honest = surgery.rewrite_folder

        def careless(source, target, edit):
            edit.tensors["model.decoder.final_layer_norm.bias"] = torch.zeros(24)
            honest(source, target, edit)

        monkeypatch.setattr(surgery, "rewrite_folder", careless)
        self.fails(write_checkpoint(tmp_path / "opt", "opt"))


def test_hidden_states_alone_are_verified_where_the_head_is_unknown(tmp_path):
    model = write_checkpoint(tmp_path / "bert", "bert", architectures=["BertForQuestionAnswering"])
    simplify(model, tmp_path / "out")
    batch = inputs(model)
    before, after = (load_model(folder, task="hidden") for folder in (model, tmp_path / "out"))
    rounding = samples(lambda m: m(**batch).hidden, before)
    assert_agrees(after(**batch).hidden, rounding, in_float64(before)(**batch).hidden)
