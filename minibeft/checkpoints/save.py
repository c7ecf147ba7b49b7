"""Save a model in the Hugging Face layout, as it was loaded: hub → ours → hub is exact."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minibeft.checkpoints.load import describe
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.config import ModelConfig
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
    if c.task == "classification" and "id2label" not in c.source:
        changed["id2label"] = {str(i): f"LABEL_{i}" for i in range(c.labels)}
        changed["label2id"] = {f"LABEL_{i}": i for i in range(c.labels)}
    kept = {key: value for key, value in c.source.items() if key != "torch_dtype"}
    return kept | changed | {"dtype": str(dtype).removeprefix("torch.")}


def save_model(model: Transformer, folder: str | Path) -> None:
    """Write config.json and model.safetensors; transformers loads the folder, and so does load_model, bit for bit.

    The folder must not exist or be empty. Files are written to a neighbour that is renamed at the end, so that an
    interruption leaves nothing half done.
    """
    folder = Path(folder)
    for name in sorted(describe(model.config).state_dict().keys() ^ model.state_dict().keys()):
        raise BadInput(f"{folder}: {name} has no place in a {model.config.family} checkpoint with this config.json")
    state = {name: value.contiguous() for name, value in their_state(model).items()}
    with new_folder(folder) as ready:
        config = their_config(model.config, next(iter(state.values())).dtype)
        write_json(ready / "config.json", config)
        save_file(state, ready / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(ready / "config.json", ready / "model.safetensors")  # safetensors writes for the owner alone
