"""All that a run works on, read and checked before it begins: the model, the data as tokens, digests of both."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn

from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.tensors import read_json
from minibeft.checkpoints.tokenizer import load_tokenizer, require_rows, require_texts
from minibeft.errors import BadInput
from minibeft.families import named_family
from minibeft.models.biases import head_parameters
from minibeft.models.config import ModelConfig
from minibeft.models.transformer import Transformer
from minibeft.training.batches import Data, encode_split
from minibeft.training.data import read_data
from minibeft.training.folders import open_files
from minibeft.training.precision import settled
from minibeft.training.prompts import encode_prompts, find_prompt, is_prompted
from minibeft.training.records import digest
from minibeft.training.settings import Settings, resolve
from minibeft.training.tasks import Split, Task, draw


class Loaded(NamedTuple):
    """What a run works on: settings without gaps, the model as its checkpoint has it, the data tokenised."""

    settings: Settings
    task: Task
    model: Transformer
    train: Data
    valid: dict[str, Data]
    digests: dict[str, str]


def load(settings: Settings) -> Loaded:
    """Read, check and tokenise everything that the settings name."""
    settings = settled(settings)
    settings.check()
    task, raw, data, held_out = read_data(settings)
    source = find(settings.model)
    torch.manual_seed(settings.seed)  # for a pooler that the checkpoint lacks
    model = load_for(task, source, settings)
    settings = resolve(settings, task, len(raw["train"]) - held_out, model.config)
    assert settings.examples is not None
    assert settings.max_length is not None
    train, held = draw(raw.pop("train"), settings.examples, held_out, settings.data_seed)
    encode: Callable[[Split], Data] = (
        partial(open_files, source, model.config)
        if model.config.features is not None
        else partial(encode_data, load_tokenizer(source), task, config=model.config, longest=settings.max_length)
    )
    shown = {name: split.sample(settings.evaluated, settings.data_seed) for name, split in raw.items()}
    valid = {name: encode(split) for name, split in ({"held_out": held} if held else shown).items()}
    digests = {
        "model": digest(
            weights if (weights := regular(source, "*.safetensors")) else regular(source, "pytorch_model*.bin")
        ),
        "data": digest(data),
    }
    return Loaded(settings, task, model, encode(train), valid, digests)


def load_like(first: Loaded, settings: Settings) -> Loaded:
    """The same for a run that differs in terms, seed and learning rate alone: it shares the model and the data."""
    settings.check()
    assert first.settings.examples is not None
    settings = resolve(settings, first.task, first.settings.examples, first.model.config)
    shared = {name: getattr(first.settings, name) for name in ("examples", "dtype")}
    return first._replace(settings=replace(settings, **shared))


def head_like(first: Loaded, settings: Settings) -> nn.Module:
    """The classification head that load gives these settings: a copy that shares the frozen weights. If the checkpoint
    lacks more of the head than its last linear map, the settings' seed draws it anew."""
    head = first.model.head
    assert head is not None
    if {name.rpartition(".")[0] for name in first.model.fresh} - {"head.out"}:
        torch.manual_seed(settings.seed)
        head = load_for(first.task, find(settings.model), settings).head
        assert head is not None
        return head
    trains = head_parameters(first.model).keys()
    shared = {id(value): value for name, value in head.named_parameters() if f"head.{name}" not in trains}
    return deepcopy(head, shared)


def encode_data(tokenizer: Tokenizer, task: Task, split: Split, config: ModelConfig, longest: int) -> Data:
    """The split as tokens for models of this family, checked against the size of the model's embedding tables."""
    if is_prompted(task.name, config.family):
        found = encode_prompts(tokenizer, task, split, max_length=longest)
        require_rows(config, found.targets)
    else:
        found = encode_split(tokenizer, split, max_length=longest, pad=config.pad)
    require_rows(config, found.ids, getattr(found, "types", None))
    return found


def load_for(task: Task, source: Path, settings: Settings) -> Transformer:
    """The checkpoint for this task: with a classification head, or a prompted decoder with its language-model head.

    In bfloat16 a decoder stays a memory map in the file's type, for train.start to convert tensor by tensor.
    """
    if not is_prompted(task.name, family_of(source)):
        with head_to_come():
            model = load_model(source, task="classification", dtype=torch.float32, backend=settings.backend)
        if not settings.reads_files:
            require_texts(model.config)
        elif model.config.features is None:
            raise BadInput(f"--data {settings.data}: holds files, and {model.config.family} reads texts; give a table")
        return model
    find_prompt(task)
    dtype = None if settings.dtype == "bfloat16" else torch.float32
    model = load_model(source, dtype=dtype, backend=settings.backend)
    require_texts(model.config)
    if model.config.task != "lm":
        raise BadInput(f"{source / 'config.json'}: architectures names no language model, which a prompt needs")
    return model


def family_of(model: str | Path) -> str:
    """The checkpoint's family, from its configuration alone."""
    file = find(model) / "config.json"
    return named_family(read_json(file), str(file))


def regular(folder: Path, pattern: str) -> list[Path]:
    """The folder's regular files of this pattern, in order; reading a pipe or a device might never end."""
    return sorted(file for file in folder.glob(pattern) if file.is_file())
