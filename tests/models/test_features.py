"""Images and speech: other sizes than the trained one, encoders inside whole models, and inputs from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import drawn
from PIL import Image
from rounding import Unrounded
from safetensors.torch import save_file
from tiny import redraw, reference
from tolerance import assert_agrees, in_float64, samples
from torch import Tensor

import minibeft
from minibeft.errors import BadInput
from minibeft.models.features import Patches, Spectrogram
from minibeft.surgery.simplify import simplify
from minibeft.theory.draws import Draws
from minibeft.verification.inputs import read_inputs
from minibeft.verification.verify import verify


def saved(folder: Path, raw: dict[str, Any]) -> Any:
    """transformers' model of this configuration, written to the folder."""
    theirs = reference(raw, 1)
    theirs.save_pretrained(folder)
    return theirs


def test_positions_are_interpolated_for_an_image_of_another_size(tmp_path: Path):
    theirs = saved(tmp_path, drawn("dinov2", "hidden", 1) | {"image_size": 6, "num_channels": 3})
    ours, images = minibeft.load_model(tmp_path, dtype=torch.float64), Draws(2).normal(2, 3, 9, 4)

    def run(model: Any) -> Tensor:
        with Unrounded():
            return model(images.to(next(model.parameters()).dtype)).last_hidden_state.detach()

    hidden = ours(features=images).hidden.detach()
    assert_agrees(hidden, samples(run, theirs, torch.float64), run(in_float64(theirs)), what="hidden")


@pytest.mark.parametrize("name", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_the_encoder_of_a_whole_whisper(name: str, tmp_path: Path):
    raw = drawn("whisper", "hidden", 1) | {"architectures": [name], "decoder_start_token_id": 0}
    theirs = getattr(transformers, name)(transformers.AutoConfig.for_model(**raw)).eval()
    redraw(theirs, 1)
    theirs.save_pretrained(tmp_path)
    ours, speech = minibeft.load_model(tmp_path), Draws(2).normal(2, 5, 14, dtype=torch.float32)
    found = theirs.get_encoder()(speech).last_hidden_state
    run = lambda model: model.get_encoder()(speech.to(next(model.parameters()).dtype)).last_hidden_state  # noqa: E731
    with Unrounded():
        assert_agrees(ours(features=speech).hidden.detach(), samples(run, theirs), run(in_float64(theirs)), what=name)
    done = simplify(tmp_path, tmp_path.parent / f"simple {name}")
    assert [step.action for step in done.steps] == ["nothing", "fold"]
    after = getattr(transformers, name).from_pretrained(tmp_path.parent / f"simple {name}").eval()
    assert torch.allclose(after.get_encoder()(speech).last_hidden_state, found, atol=1e-4)
    kept, new = theirs.get_decoder().state_dict(), after.get_decoder().state_dict()
    assert all(torch.equal(value, new[key]) for key, value in kept.items())


def test_how_many_tokens_an_input_has():
    """A patch each and one for the whole; a token for every other frame. An image is drawn with at most 16 a side."""
    images = Patches(5, rows=3, columns=20, size=(2, 7))
    assert (images.shape, images.drawn) == ((5, 6, 140), (5, 6, 112))
    assert [images.tokens(grid) for grid in ((2, 7), (5, 21), (1, 7), (2, 6))] == [2, 7, None, None]
    assert Patches(5, rows=20, columns=3, size=(2, 7)).drawn == (5, 32, 21)
    speech = Spectrogram(5, positions=70)
    assert (speech.shape, speech.drawn, Spectrogram(5, 30).drawn) == ((5, 140), (5, 128), (5, 60))
    assert [speech.tokens((frames,)) for frames in (1, 2, 3, 140, 141)] == [1, 1, 2, 70, None]


@pytest.mark.parametrize(
    ("source", "fit", "unfit"),
    [
        (Patches(3, 2, 2, (2, 5)), {(3, 2, 5): 2, (3, 4, 10): 5}, [(2, 4, 10), (3, 1, 10), (3, 4, 4)]),
        (Spectrogram(5, 70), {(5, 1): 1, (5, 140): 70}, [(4, 9), (5, 0), (5, 141)]),
    ],
)
def test_what_fits_is_embedded_and_the_rest_refused(source: Patches | Spectrogram, fit: Any, unfit: Any):
    embed = source.embeddings(4, 0.0, same_dropout=False)
    for shape, tokens in fit.items():
        assert embed(torch.zeros(2, *shape)).shape == (2, tokens, 4)
    for shape in unfit:
        with pytest.raises(ValueError, match=r"have shape \("):
            embed(torch.zeros(2, *shape))


class TestFiles:
    @pytest.fixture
    def vit(self, tmp_path: Path) -> Path:
        changes = {"patch_size": 2, "num_channels": 3, "qkv_bias": True}
        saved(tmp_path / "vit", drawn("vit", "classification", 1) | changes)
        return tmp_path / "vit"

    @pytest.mark.parametrize("kind", ["png", "npy", "safetensors"])
    def test_verify_and_simplify(self, vit: Path, kind: str, tmp_path: Path):
        file, pixels = tmp_path / f"image.{kind}", Draws(3).integers(0, 256, 6, 6, 3).to(torch.uint8).numpy()
        x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
        if kind == "png":
            Image.fromarray(pixels).save(file)
        elif kind == "npy":
            np.save(file, x.numpy())
        else:
            save_file({"x": x.contiguous()}, file)
        config = minibeft.load_model(vit).config
        assert torch.equal(read_inputs(vit, file, config)["features"], x[None])
        report = verify(vit, inputs=file)
        assert report.ok
        assert report.settings["input"] == f"what image.{kind} holds"
        assert (report.settings["rows"], report.settings["tokens"]) == (1, 10)
        assert simplify(vit, tmp_path / "out", text=file).agreement.sentences == 1

    def test_bad_files(self, vit: Path, tmp_path: Path):
        config = minibeft.load_model(vit).config
        bad = {
            "a.png": (b"no image", "cannot be read as an image"),
            "a.npy": (b"no array", "is no array of numbers"),
            "a.safetensors": (b"", "truncated or corrupt"),
        }
        for name, (content, why) in bad.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadInput, match=f"{name}: .*{why}"):
                read_inputs(vit, tmp_path / name, config)
        for array, why in (
            (np.ones((2, 6, 6)), r"has shape \(1, 2, 6, 6\); vit reads 3 × 6 × 6"),
            (np.ones((3, 1, 6)), r"has shape \(3, 1, 6\)"),
            (np.ones(3), r"has shape \(3,\)"),
            (np.full((3, 6, 6), np.nan), "must hold finite numbers"),
            (np.ones((3, 6, 6), dtype=np.int64), "must hold finite numbers"),
            (np.ones((3, 200, 200), dtype=np.float32), "1 inputs of 10001 tokens may not fit in memory"),
        ):
            np.save(tmp_path / "b.npy", array)
            with pytest.raises(BadInput, match=f"b.npy: {why}"):
                read_inputs(vit, tmp_path / "b.npy", config)

    def test_a_text_is_no_image(self, vit: Path):
        model = minibeft.load_model(vit)
        with pytest.raises(ValueError, match="this vit model reads features, and those alone must be given"):
            model(torch.zeros(1, 3, dtype=torch.int64))
