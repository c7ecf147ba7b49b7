"""Bias surgery that certify forbids, or that could not be verified: refused, unwritten."""

import json
from pathlib import Path

import pytest
from checkpoints import (
    leftovers,
    write_checkpoint,
    write_tokenizer,
)

from minibeft.errors import BadInput
from minibeft.surgery.simplify import simplify


class TestGuards:
    """Refused with the theorem and the hypothesis named; nothing written."""

    def refused(self, model: Path, *words: str) -> None:
        beside = leftovers(model)
        with pytest.raises(BadInput) as caught:
            simplify(model, model.parent / "out")
        for word in words:
            assert word in str(caught.value), (word, str(caught.value))
        assert "\n" not in str(caught.value)
        assert leftovers(model) == beside

    def config_only(self, folder: Path, **config) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder)
        return folder

    def test_gpt_oss_rotary_and_sinks(self, tmp_path):
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = self.config_only(tmp_path / "m", model_type="gpt_oss", head_dim=6, **sizes)
        self.refused(model, "b_k: stays (K4: unrotated, no-sink", "b_v: stays (V5: no-sink")

    def test_qwen2_rotary_and_no_output_bias(self, tmp_path):
        model = write_checkpoint(tmp_path / "qwen2", "qwen2")
        self.refused(model, "b_k: stays (K4: unrotated", "b_v: stays (V2: foldable, but this format has no bias after")

    @pytest.mark.parametrize("family", ["bert", "opt"])
    def test_prefix_tuning(self, family, tmp_path):
        model = write_checkpoint(tmp_path / family, family)
        adapter = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
        (model / "adapter_config.json").write_text(json.dumps(adapter))
        self.refused(model, "b_k: stays (K4: no-foreign-keys", "b_v: stays (V5: no-foreign-values")

    def test_a_family_that_cannot_be_run_cannot_be_verified(self, tmp_path):
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = self.config_only(tmp_path / "m", model_type="deit", **sizes)
        self.refused(model, "cannot be verified", "'deit' is not one of")

    def test_a_configuration_that_is_not_understood(self, tmp_path):
        self.refused(self.config_only(tmp_path / "m", model_type="mystery"), "certify does not understand")

    def test_a_model_without_biases(self, tmp_path):
        model = write_checkpoint(tmp_path / "llama", "llama", attention_bias=False)
        self.refused(model, "b_k: nothing to do (K4: the model has none)")

    def test_a_folder_without_a_tokenizer(self, tmp_path):
        model = write_checkpoint(tmp_path / "opt", "opt")
        (model / "tokenizer.json").unlink()
        self.refused(model, "has no tokenizer.json")

    def test_an_output_that_exists(self, tmp_path):
        model = write_checkpoint(tmp_path / "opt", "opt")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("keep")
        self.refused(model, "exists and is not empty")
        assert (tmp_path / "out" / "mine").read_text() == "keep"
