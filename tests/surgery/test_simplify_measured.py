"""simplify --engine transformers removes what audit finds to do nothing from models of any family, in any layout of its
biases; and writes nothing that transformers' own model does not confirm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import digests, leftovers, tensors
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from minibeft.audit.measure import Audit
from minibeft.audit.subject import classes, configuration, drawn, quietly
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.surgery.measured import Edits, simplify_measured
from minibeft.theory.draws import Draws

ENDS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, **ENDS}
FUSED = {"n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}
# One key head beside four query heads, in one bias: 32 entries of b_q, 8 of b_k, 8 of b_v.
BIGCODE = {"model_type": "gpt_bigcode", **FUSED}


def checkpoint(folder: Path, raw: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A small random model on disk."""
    with quietly():
        config = configuration(raw)
        model: Any = drawn(classes(config)[0], config, Draws(0))
        model.to(dtype).save_pretrained(folder)
    return folder


def changed(before: Path, after: Path) -> dict[str, tuple[int, int]]:
    """For each tensor that is not the same: how many entries differ, and how many of those are zero now."""
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    differ = {name: old[name] != new[name] for name in old if not torch.equal(old[name], new[name])}
    return {name: (int(where.sum()), int((new[name][where] == 0).sum())) for name, where in differ.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_bias_loses_its_keys_and_values(tmp_path: Path, dtype: torch.dtype):
    model = checkpoint(tmp_path / "m", BIGCODE, dtype)
    before = digests(model)
    done = simplify_measured(model, tmp_path / "out")
    assert [step.action for step in done.steps] == ["zero", "fold"]
    assert done.zeroed == 2 * (8 + 8)
    found = changed(model, tmp_path / "out")
    assert {name: n for name, n in found.items() if "c_attn" in name} == {
        f"h.{i}.attn.c_attn.bias": (16, 16) for i in range(2)
    }
    assert len(found) == 4  # and b_o
    assert digests(model) == before
    with pytest.raises(BadInput, match="nothing to simplify"):
        simplify_measured(tmp_path / "out", tmp_path / "again")


def test_biases_that_are_added_after_the_projection(tmp_path: Path):
    """DeBERTa adds q_bias and v_bias to parts of a fused projection, head by head."""
    model = checkpoint(tmp_path / "m", {"model_type": "deberta", **SMALL})
    done = simplify_measured(model, tmp_path / "out")
    assert [step.action for step in done.steps] == ["nothing", "fold"]
    found = changed(model, tmp_path / "out")
    assert {name: n for name, n in found.items() if "self" in name} == {
        f"encoder.layer.{i}.attention.self.v_bias": (32, 32) for i in range(2)
    }
    assert len(found) == 4


def test_tensors_that_transformers_calls_otherwise_are_found_by_their_values(tmp_path: Path):
    model = checkpoint(tmp_path / "m", {"model_type": "beit", **SMALL, "image_size": 32, "patch_size": 16})
    simplify_measured(model, tmp_path / "out")
    values = {f"encoder.layer.{i}.attention.attention.value.bias": (32, 32) for i in range(2)}
    assert {name: n for name, n in changed(model, tmp_path / "out").items() if "output" not in name} == values


def test_weights_that_transformers_does_not_find_are_refused(tmp_path: Path):
    """It would draw them anew, and what is measured then is another model."""
    model = checkpoint(tmp_path / "m", BIGCODE)
    file = model / "model.safetensors"
    save_file({f"old.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(BadInput, match="holds none of the tensors of transformers' GPTBigCodeModel") as caught:
        simplify_measured(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert leftovers(model) == []


def test_only_the_null_coordinates_go(tmp_path: Path):
    """A quarter of each head is rotated: there b_k stays. Its format has no bias after W_o, so b_v stays."""
    raw = {
        "model_type": "stablelm",
        **SMALL,
        "num_key_value_heads": 2,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
    }
    model = checkpoint(tmp_path / "m", raw)
    done = simplify_measured(model, tmp_path / "out")
    assert [step.action for step in done.steps] == ["zero", "refused"]
    assert "no bias after W_o" in str(done.steps[1])
    keys = {f"layers.{i}.self_attn.k_proj.bias": (12, 12) for i in range(2)}
    assert changed(model, tmp_path / "out") == keys


def test_an_active_key_bias_is_refused(tmp_path: Path):
    raw = {"model_type": "qwen2_moe", **SMALL, "num_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2,
           "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}  # fmt: skip
    model = checkpoint(tmp_path / "m", raw)
    done = CliRunner().invoke(app, ["simplify", str(model), str(tmp_path / "out"), "--engine", "transformers"])
    assert isinstance(done.exception, BadInput), done.output
    assert "b_k: stays (measured: active, by position in 2 of 2 layers)" in str(done.exception)
    assert leftovers(model) == []


def wrong_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Edits.shift
    monkeypatch.setattr(Edits, "shift", lambda *a: kept(*a) * (1 + 1e-9))


def active_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Audit.keys

    def keys(self: Audit) -> Any:
        found = kept(self)
        self.null = self.layer.queries
        self.layer.queries = []
        return found

    monkeypatch.setattr(Audit, "keys", keys)


@pytest.mark.parametrize("plant", [wrong_shift, active_keys])
def test_what_the_model_does_not_confirm_is_not_written(plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planted: a W_o b_v that is off by 1e-9 of itself, and b_q taken for b_k."""
    model = checkpoint(tmp_path / "m", BIGCODE)
    plant(monkeypatch)
    with pytest.raises(BadInput, match="nothing was written; in float64 the new outputs differ"):
        simplify_measured(model, tmp_path / "out")
    assert leftovers(model) == []
