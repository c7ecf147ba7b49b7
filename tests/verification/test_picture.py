"""The picture of one head: b_k moves nothing but by rounding, b_q does, b_v comes out as it went in."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import minibeft
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.theory.agreement import within
from minibeft.theory.bounds import unit_roundoff
from minibeft.verification.picture import views

TEXT = "The film was dull, but its last scene was a quiet marvel."
ROUNDING = 1e4 * unit_roundoff(torch.float64)  # some 50 roundings a logit, logits up to 100


def test_what_each_bias_does():
    seen = views("minilm", TEXT, layer=2, head=11)
    assert within(seen.moved["k"], ROUNDING)
    assert within(seen.moved["v"], ROUNDING)
    assert 0.5 < seen.moved["q"] <= 1
    assert seen.tokens[:3] == ["[CLS]", "the", "film"]
    assert all(weights.shape == (16, 16) for weights in seen.weights.values())


def test_the_weights_are_those_of_the_model():
    """With the biases of the model, P is what probe() finds."""
    model = minibeft.load_model("minilm", dtype=torch.float64)
    batch = minibeft.encode(minibeft.load_tokenizer("minilm"), [TEXT], pad=model.config.pad)
    layer = minibeft.probe(model, batch)[2]
    whole = layer.weights()[0, 11]  # b_k is there, and does nothing
    assert within((views("minilm", TEXT, layer=2, head=11).weights["with b_q"] - whole).abs().max().item(), ROUNDING)


@pytest.mark.parametrize(("option", "given"), [("layer", 6), ("layer", -1), ("head", 12)])
def test_what_is_not_there(option: str, given: int):
    with pytest.raises(BadInput, match=rf"--{option} {given}: must be from 0 to"):
        views("minilm", TEXT, **{option: given})


def test_a_longer_text_is_cut_to_the_positions():
    assert len(views("minilm", 600 * "dull ").tokens) == 512


def test_the_command_says_the_finding(tmp_path: Path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "show.png"
    result = CliRunner().invoke(app, ["show", TEXT, "--png", str(file), "--layer", "2", "--head", "11"])
    assert result.exit_code == 0
    assert result.output.startswith("b_q moves a row of P by up to 0.79")
    assert file.read_bytes().startswith(b"\x89PNG")
