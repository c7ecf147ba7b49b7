"""Random inputs for any forward(): the names of a transformers model's arguments say what they must hold."""

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from minibeft.theory.draws import Draws

BATCH, LENGTH, GRID = 2, 64, 4
Inputs = dict[str, Any]


def find(config: Any, *names: str, default: int) -> Any:
    """The first of these keys in the configuration or in one inside it."""
    inside = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for name in names:
        for each in (config, *inside):
            value = getattr(each, name, None)
            if value is not None and value != []:
                return value
    return default


def side(config: Any) -> tuple[int, int]:
    """Height and width of an image."""
    size = find(config, "image_size", "input_size", "img_size", default=64)
    if isinstance(size, dict):
        size = list(size.values())
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def shapes(config: Any, name: str) -> list[tuple[int, ...]]:
    """The shapes that an argument of real numbers may have."""
    channels = find(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    mel = find(
        config,
        "feature_projection_input_dim",
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_size",
        "input_dim",
        default=80,
    )
    frames = find(config, "num_frames", "frames_per_clip", default=4)
    length = 2 * find(config, "max_source_positions", default=32)
    context = find(config, "context_length", default=64)
    return {
        "pixel_values": [(channels, *side(config)), (frames, channels, *side(config)), (channels, 224, 224)],
        "pixel_values_videos": [(frames, channels, *side(config))],
        "video": [(frames, channels, *side(config))],
        "input_features": [(mel, length), (64, mel), (1, 64, mel)],
        "input_values": [(4000,), (1, 4000), (find(config, "max_length", default=64), mel), (context,)],
        "past_values": [(context, find(config, "num_input_channels", default=1))],
        "inputs_embeds": [(LENGTH, find(config, "hidden_size", "d_model", "embed_dim", default=64))],
        "hidden_states": [(LENGTH, find(config, "hidden_size", "d_model", "embed_dim", default=64))],
    }.get(name, [])  # fmt: skip


def candidates(config: Any, name: str, draws: Draws) -> list[Any]:
    """Values that an argument may have; none for one that is not known."""
    if name in ("input_ids", "decoder_input_ids"):
        tokens = find(config, "vocab_size", default=1000)
        positions = find(config, "max_position_embeddings", default=0)  # XLNet: -1 for any number
        length = min(LENGTH, max(positions - 2, 1)) if positions > 0 else LENGTH  # RoBERTa leaves two for padding
        return [draws.integers(min(20, tokens // 4), max(tokens * 3 // 4, 2), BATCH, length)]
    if name == "bbox":
        corner = draws.integers(0, 500, BATCH, LENGTH, 2)
        return [torch.cat([corner, corner + draws.integers(1, 400, BATCH, LENGTH, 2)], -1)]
    if name in ("attention_mask", "decoder_attention_mask"):
        return [torch.ones(BATCH, LENGTH, dtype=torch.long)]
    if name == "grid_thw":
        return [torch.tensor([[1, GRID, GRID]])]
    return [draws.normal(BATCH, *shape, dtype=torch.get_default_dtype()) for shape in shapes(config, name)]


def inputs(model: nn.Module, config: Any, draws: Draws) -> Iterator[Inputs]:
    """Inputs to try, the plainest first."""
    known = inspect.signature(model.forward).parameters
    always: Inputs = {name: False for name in ("use_cache",) if name in known}
    needed = [n for n, p in known.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    main = getattr(model, "main_input_name", "input_ids")
    first = [main] if main in known else []
    tokens = ["input_ids"] if "input_ids" in known else []
    decoder = ["decoder_input_ids"] if "decoder_input_ids" in known else []
    every = [n for n in ("input_ids", "pixel_values", "input_features", "input_values", "bbox") if n in known] + decoder
    tried = set()
    plain, images = (*first, *needed), (*first, "pixel_values")
    if "grid_thw" in needed:  # patches in one row, with the grid that they come from
        patch, frames = find(config, "patch_size", default=14), find(config, "temporal_patch_size", default=1)
        numbers = find(config, "in_channels", "num_channels", "in_chans", default=3) * frames * patch**2
        patches = draws.normal(GRID**2, numbers, dtype=torch.get_default_dtype())
        yield {"grid_thw": torch.tensor([[1, GRID, GRID]])} | {n: patches for n in needed if n != "grid_thw"}
    for names in (plain, (*plain, *decoder), (*tokens, *needed), every, (*every, *needed), images):
        names = tuple(dict.fromkeys(names))
        if names in tried or not names:
            continue
        tried.add(names)
        for values in product(*(candidates(config, name, draws) for name in names)):
            yield always | dict(zip(names, values, strict=True))


def again(given: Inputs, draws: Draws) -> Inputs:
    """Another input of the same shapes: tokens in another order, other numbers."""
    return {
        name: redrawn(value, draws) if isinstance(value, Tensor) and "mask" not in name else value
        for name, value in given.items()
    }


def redrawn(value: Tensor, draws: Draws) -> Tensor:
    if value.is_floating_point():
        return draws.normal(*value.shape, dtype=value.dtype)
    return value.flatten(1)[:, draws.permutation(value[0].numel())].reshape(value.shape) if value.dim() == 2 else value
