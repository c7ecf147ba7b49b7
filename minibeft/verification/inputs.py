"""What a model is run on where nobody trains it: sentences, an image or a spectrogram from a file, or drawn numbers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibeft.checkpoints.door import checked
from minibeft.checkpoints.tensors import read_all, read_json
from minibeft.checkpoints.tokenizer import MOST_WEIGHTS, encode_for, load_tokenizer
from minibeft.errors import BadInput
from minibeft.models.config import ModelConfig
from minibeft.models.features import Patches
from minibeft.theory.draws import Draws
from minibeft.verification.probe import Batch
from minibeft.verification.sentences import SENTENCES

ROWS = 2  # images or spectrograms that are drawn where no file gives any
MOST_BYTES = 1 << 28


def read_inputs(folder: Path, file: Path | None, config: ModelConfig, seed: int = 0) -> Batch:
    """What the model reads, as one batch: sentences, images or spectrograms.

    Sentences are the built-in ones or the lines of a text file, padded, by the folder's own tokenizer, cut to the
    positions that the model has. Images and spectrograms are what the file holds, or random ones.
    """
    if config.features is None:
        return encode_for(config, load_tokenizer(folder), SENTENCES if file is None else lines(file))
    drawn = Draws(seed).normal(ROWS, *config.features.drawn, dtype=torch.float32)
    return features_batch(config, drawn if file is None else read_features(file, config, folder), str(file))


def lines(file: Path) -> tuple[str, ...]:
    """The sentences of a text file, one per line."""
    try:
        found = checked(file, links=True).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: cannot be read as UTF-8 text ({error}); give one sentence per line") from error
    kept = tuple(line.strip() for line in found if line.strip())
    if not kept:
        raise BadInput(f"{file}: holds no sentence; give one per line")
    return kept


def features_batch(config: ModelConfig, x: Tensor, where: str) -> Batch:
    """The features, of one input or several, and a mask without padding."""
    assert config.features is not None
    x = x[None] if x.ndim == len(config.features.shape) else x
    asked = f"{config.family} reads {' × '.join(map(str, config.features.shape))}"
    if x.ndim != len(config.features.shape) + 1 or x.shape[1] != config.features.shape[0] or not x.numel():
        raise BadInput(f"{where}: has shape {tuple(x.shape)}; {asked}")
    if not x.is_floating_point() or not x.isfinite().all():
        raise BadInput(f"{where}: must hold finite numbers with a decimal point")
    tokens = config.features.tokens(tuple(x.shape[2:]))
    if tokens is None:
        raise BadInput(f"{where}: has shape {tuple(x.shape[1:])}; {asked}")
    if len(x) * tokens**2 > MOST_WEIGHTS:
        raise BadInput(
            f"{where}: {len(x)} inputs of {tokens} tokens may not fit in memory; give fewer, or smaller ones"
        )
    return {"features": x.float(), "attention_mask": torch.ones(len(x), tokens, dtype=torch.int64)}


def read_features(file: Path, config: ModelConfig, folder: Path) -> Tensor:
    """Numbers from .npy or the one tensor of a safetensors file; any other file is an image, scaled as the model's
    folder says."""
    checked(file, MOST_BYTES, links=True)
    if file.suffix == ".safetensors":
        tensors = read_all(file)
        if len(tensors) != 1:
            raise BadInput(f"{file}: holds {len(tensors)} tensors; give one, the features")
        return next(iter(tensors.values()))
    if file.suffix != ".npy":
        return scaled(read_image(file, config), folder)
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False))
    except (ValueError, EOFError, TypeError) as error:
        raise BadInput(f"{file}: is no array of numbers ({error})") from error


def read_image(file: Path, config: ModelConfig) -> Tensor:
    """An image in the size that the model's positions were trained for, at most 16 patches a side, from 0 to 1."""
    if not isinstance(config.features, Patches):
        raise BadInput(f"{file}: {config.family} reads spectrograms; give them as .npy or .safetensors")
    try:
        from PIL import Image
    except ImportError as error:
        raise BadInput(f"{file}: images need Pillow; run pip install pillow, or give .npy") from error
    channels, height, width = config.features.drawn
    kind = {1: "L", 3: "RGB"}.get(channels)
    if kind is None:
        raise BadInput(f"{file}: images have 1 or 3 channels, the model takes {channels}; give .npy")
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert(kind).resize((width, height)), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{file}: cannot be read as an image ({error})") from error
    return torch.from_numpy(pixels.reshape(height, width, channels) / 255).permute(2, 0, 1)


def scaled(image: Tensor, folder: Path) -> Tensor:
    """The image minus the mean and divided by the deviation of each channel, as preprocessor_config.json gives them.

    Where it gives none, both are ½, as for ViT.
    """
    file = folder / "preprocessor_config.json"
    raw = read_json(file) if file.is_file() else {}
    both = [raw.get(key, [0.5] * len(image)) for key in ("image_mean", "image_std")]
    for key, found in zip(("image_mean", "image_std"), both, strict=True):
        if not isinstance(found, list) or len(found) != len(image) or any(type(x) not in (int, float) for x in found):
            raise BadInput(f"{file}: {key} = {found!r} must be {len(image)} numbers, one for each channel")
    mean, deviation = (torch.tensor(found, dtype=torch.float32)[:, None, None] for found in both)
    if not deviation.gt(0).all():
        raise BadInput(f"{file}: image_std must be above 0")
    return (image - mean) / deviation
