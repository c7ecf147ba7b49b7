"""Save a model in the Hugging Face layout, as it was loaded: hub → ours → hub is exact."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minibeft.checkpoints.layouts import together
from minibeft.checkpoints.load import describe
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.config import CLASSIFY, ModelConfig
from minibeft.models.transformer import Transformer
from minibeft.show.files import new_folder, write_json


def their_state(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors under their Hugging Face names."""
    c = model.config
    body = BODIES[c.family]
    prefix = "" if c.task == "hidden" else body.prefix
    return {body.their_name(ours, c.task, prefix): value for ours, value in model.state_dict().items()}


def their_config(c: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json that describes this model: the one it came from, with the task's class and the tensors' type."""
    names = {task: name for name, task in BODIES[c.family].architectures.items()}
    changed: dict[str, Any] = {"architectures": [names[c.task]], "model_type": c.family}
    if c.task in CLASSIFY:
        changed |= label_keys(label_names(c))
    kept = {key: value for key, value in c.source.items() if key not in ("torch_dtype", "num_labels")}
    return kept | changed | {"dtype": str(dtype).removeprefix("torch.")}


def label_names(c: ModelConfig) -> tuple[str, ...]:
    """What the configuration calls the classes; LABEL_0 and so on, as transformers does, where it says nothing."""
    named = c.source.get("id2label")
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(c.labels)}:
        return unnamed(c.labels)
    return tuple(str(named[str(i)]) for i in range(c.labels))


def unnamed(labels: int) -> tuple[str, ...]:
    """transformers' names for classes that have none."""
    return tuple(f"LABEL_{i}" for i in range(labels))


def label_keys(names: Sequence[str]) -> dict[str, Any]:
    """config.json's keys for these classes."""
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def with_labels(c: ModelConfig, names: Sequence[str]) -> ModelConfig:
    """The configuration of a classifier of these classes; none: of a regression."""
    names = names or unnamed(1)
    kept = {key: value for key, value in c.source.items() if key not in ("num_labels", "problem_type")}
    return replace(c, labels=len(names), source=kept | label_keys(names))


def save_model(model: Transformer, folder: str | Path) -> None:
    """Write config.json and model.safetensors; transformers loads the folder, and so does load_model, bit for bit.

    The folder must not exist or be empty. Files are written to a neighbour that is renamed at the end, so that an
    interruption leaves nothing half done.
    """
    folder = Path(folder)
    for name in sorted(describe(model.config).state_dict().keys() ^ model.state_dict().keys()):
        raise BadInput(f"{folder}: {name} has no place in a {model.config.family} checkpoint with this config.json")
    state = {name: value.contiguous() for name, value in together(their_state(model), model.config).items()}
    with new_folder(folder) as ready:
        config = their_config(model.config, next(iter(state.values())).dtype)
        write_json(ready / "config.json", config)
        save_file(state, ready / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(ready / "config.json", ready / "model.safetensors")  # safetensors writes for the owner alone
