"""Images and spectrograms of one's own: read by folder, trained on, merged, and loaded by transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import drawn
from PIL import Image
from small_run import make_model
from tiny import reference

import minibeft
from minibeft.errors import BadInput
from minibeft.theory.draws import Draws
from minibeft.training.data import read_data
from minibeft.training.folders import FeatureBatch
from minibeft.training.loading import load
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.stack import require_stackable
from minibeft.training.tasks import OWN

CLASSES = ("dark", "light")


def folders(place: Path, kind: str, valid: str = "test", rows: int = 8) -> Path:
    """Files whose mean tells the class."""
    draws = Draws(0)
    for split, count in (("train", rows), (valid, 4)):
        for number, name in enumerate(CLASSES):
            (place / split / name).mkdir(parents=True, exist_ok=True)
            for row in range(count):
                file = place / split / name / f"{row}.{kind}"
                if kind == "png":
                    pixels = draws.integers(128 * number, 128 + 128 * number, 6, 6, 3).to(torch.uint8).numpy()
                    Image.fromarray(pixels).save(file)
                else:
                    np.save(file, draws.normal(5, 14, mean=2.0 * number - 1).float().numpy())
    (place / "train" / ".DS_Store").touch()
    return place


def model(folder: Path, family: str, task: Any = "hidden") -> Path:
    """transformers' model of a drawn configuration."""
    images = {} if family == "whisper" else {"num_channels": 3, "patch_size": 2, "image_size": 6, "qkv_bias": True}
    reference(drawn(family, task, 1) | images, 1).save_pretrained(folder)
    return folder


def settings(base: Path, data: Path, **changes: Any) -> Settings:
    plain: dict[str, Any] = {"epochs": 6, "batch": 4, "device": "cpu", "learning_rate": 0.02}
    return Settings(str(base), OWN, str(data), **(plain | changes))


KINDS = {"vit": "png", "dinov2": "png", "whisper": "npy"}
THEIRS = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "whisper": "WhisperForAudioClassification",
}
INPUT = {"vit": "pixel_values", "dinov2": "pixel_values", "whisper": "input_features"}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("vit", {}), ("vit", {"form": "lora", "terms": "q,v"}), ("dinov2", {"terms": "all"}), ("whisper", {})],
)
def test_trained_merged_and_read_by_transformers(family: str, changes: dict[str, Any], tmp_path: Path):
    """The classes are learned; transformers' class of the merged folder gives our logits."""
    data, base = folders(tmp_path / "data", KINDS[family]), model(tmp_path / "base", family)
    one = settings(base, data, **changes)
    record = finetune(one, tmp_path / "run", progress=lambda step: None)
    assert record["labels"] == list(CLASSES)
    assert record["epochs"][-1]["loss"] < record["epochs"][0]["loss"]
    assert record["epochs"][-1]["validation"]["accuracy"] > 0.8
    assert minibeft.merge(tmp_path / "run", base, tmp_path / "merged").entries > 0
    ours = minibeft.load_model(tmp_path / "merged")
    batch = load(one).valid["validation"].gather(torch.arange(8), None, torch.device("cpu"))
    assert isinstance(batch, FeatureBatch)
    found = ours(features=batch.features).logits.detach()
    theirs, report = getattr(transformers, THEIRS[family]).from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all("pooler" in name for name in report["unexpected_keys"])  # of ViTModel, unread by its classifier
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert torch.allclose(theirs(**{INPUT[family]: batch.features}).logits, found, atol=1e-4)
    accuracy = float((found.argmax(1) == batch.labels).double().mean())
    assert accuracy == record["epochs"][-1]["validation"]["accuracy"]


def test_the_encoder_of_a_whole_whisper_becomes_a_classifier(tmp_path: Path):
    data = folders(tmp_path / "data", "npy")
    raw = drawn("whisper", "hidden", 1) | {"architectures": ["WhisperForConditionalGeneration"], "eos_token_id": 2}
    whole = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**raw))
    whole.save_pretrained(tmp_path / "base")
    finetune(settings(tmp_path / "base", data, epochs=1), tmp_path / "run", progress=lambda step: None)
    minibeft.merge(tmp_path / "run", tmp_path / "base", tmp_path / "merged")
    theirs = transformers.WhisperForAudioClassification.from_pretrained(tmp_path / "merged")
    speech = Draws(1).normal(2, 5, 14, dtype=torch.float32)
    ours = minibeft.load_model(tmp_path / "merged")(features=speech).logits
    assert torch.allclose(theirs(speech).logits, ours, atol=1e-4)


def test_splits_and_classes_are_those_of_the_folders(tmp_path: Path):
    found = read_data(settings(tmp_path, folders(tmp_path, "npy")))
    assert found.task.labels == CLASSES
    assert {name: split.labels for name, split in found.splits.items()} == {
        "train": [0.0] * 8 + [1.0] * 8,
        "validation": [0.0] * 4 + [1.0] * 4,
    }
    assert found.splits["validation"].texts[4] == (str(tmp_path / "test" / "light" / "0.npy"),)
    assert len(found.files) == 24
    assert read_data(settings(tmp_path, tmp_path, held_out=3)).splits.keys() == {"train"}
    (tmp_path / "test").rename(tmp_path / "other")
    assert read_data(settings(tmp_path, tmp_path)).held_out == 1


def test_pixels_are_scaled_as_the_model_says(tmp_path: Path):
    data, base = folders(tmp_path / "data", "png"), model(tmp_path / "base", "vit")
    plain = load(settings(base, data)).train.gather(torch.arange(2), None, torch.device("cpu"))
    mean, deviation = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    transformers.ViTImageProcessor(
        image_mean=mean, image_std=deviation, size={"height": 6, "width": 6}
    ).save_pretrained(base)
    processor = transformers.ViTImageProcessor.from_pretrained(base)
    loaded = load(settings(base, data))
    scaled = loaded.train.gather(torch.arange(2), None, torch.device("cpu"))
    assert isinstance(scaled, FeatureBatch)
    assert not torch.equal(plain.features, scaled.features)  # type: ignore[attr-defined]
    images = [np.asarray(Image.open(file)) for file in loaded.train.files[:2]]  # type: ignore[attr-defined]
    assert torch.allclose(scaled.features, processor(images, return_tensors="pt")["pixel_values"], atol=1e-5)


def test_bad_folders(tmp_path: Path):
    data, base = folders(tmp_path / "data", "png"), model(tmp_path / "base", "vit")
    one = settings(base, data)
    with pytest.raises(BadInput, match="holds files, and bert reads texts; give a table"):
        load(replace(one, model=str(make_model(tmp_path / "bert"))))
    (tmp_path / "all.csv").write_text("body,label\nbad,0\ngood,1\n")
    with pytest.raises(BadInput, match="this vit model reads no texts"):
        load(replace(one, data=str(tmp_path / "all.csv"), text_column="body"))
    with pytest.raises(BadInput, match=r"--stack: does not go with --data .*, which are no texts"):
        require_stackable(one, 1)
    odd = data / "train" / "dark" / "odd.npy"
    np.save(odd, np.zeros((3, 8, 8), np.float32))
    with pytest.raises(BadInput, match=r"0\.png: has shape \(3, 6, 6\)|odd\.npy: has shape \(3, 8, 8\)"):
        load(replace(one, examples=17))
    odd.write_bytes(b"no array")
    with pytest.raises(BadInput, match=r"odd\.npy: is no array"):
        load(replace(one, examples=17))
    odd.unlink()
    (data / "test" / "grey").mkdir()
    with pytest.raises(BadInput, match="grey: is no class of the training files"):
        read_data(one)
    for name in CLASSES[1:]:
        (data / "train" / name).rename(tmp_path / name)
    with pytest.raises(BadInput, match="train: has a folder for 1 classes"):
        read_data(one)
