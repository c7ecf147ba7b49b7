"""What is audited: transformers' own model with the weights of a folder, or small and random from a configuration."""

import importlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minibeft.audit.inputs import Inputs, again, inputs
from minibeft.audit.shrink import WAYS
from minibeft.audit.trace import Name, Trace, traced
from minibeft.errors import BadInput, one_line
from minibeft.theory.draws import Draws

MOST_PARAMETERS = 40_000_000
PLAINEST = {"attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass
class Subject:
    """A model that runs in float64, and two inputs for it."""

    model: Any
    given: Inputs
    other: Inputs

    def cut(self, given: Inputs) -> Trace:
        """A forward pass, cut for autograd."""
        return traced(self.model, given)

    def run(self, shifts: Mapping[Name, torch.Tensor]) -> Trace:
        """A forward pass on the first input with these shifts."""
        return traced(self.model, self.given, shifts)


@contextmanager
def quietly(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """transformers without its advice, and new tensors of this type."""
    import transformers

    was, level = torch.get_default_dtype(), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(was)
        transformers.logging.set_verbosity(level)


def configuration(raw: Mapping[str, Any]) -> Any:
    """transformers' configuration of a config.json; its default one where only the model_type is given."""
    from transformers import CONFIG_MAPPING

    try:
        kind = CONFIG_MAPPING[raw["model_type"]]
    except KeyError:
        own = "; its repository's own code is not run" if raw.get("auto_map") else ""
        raise BadInput(f"model_type {raw.get('model_type')!r} is not one that transformers has{own}") from None
    return kind.from_dict({key: value for key, value in raw.items() if key not in ("auto_map", "quantization_config")})


def classes(config: Any) -> list[Any]:
    """transformers' model classes for a configuration, the bare model first."""
    from transformers import MODEL_MAPPING, PreTrainedModel

    mapped = MODEL_MAPPING.get(type(config), ())
    found = list(mapped) if isinstance(mapped, tuple) else [mapped]
    try:
        module = vars(importlib.import_module(type(config).__module__.replace("configuration_", "modeling_")))
    except ModuleNotFoundError:
        module = {}  # it uses the model class of another type
    for each in module.values():
        if isinstance(each, type) and issubclass(each, PreTrainedModel) and each.config_class is type(config):
            found += [] if each.__name__.endswith("PreTrainedModel") else [each]
    return list(dict.fromkeys(sorted(found, key=lambda c: (c not in found[:1], not c.__name__.endswith("Model")))))


def parameters(kind: Any, config: Any) -> int:
    """How many a model has, without making it; 0 where that cannot be told."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in kind(config).parameters())
    except Exception:
        return 0


def drawn(kind: Any, config: Any, draws: Draws) -> nn.Module:
    """A model whose every parameter is drawn anew: matrices keep activations of their size, no bias is zero."""
    model = kind._from_config(config, **PLAINEST, dtype=torch.float64)
    for parameter in model.parameters():
        noise = draws.normal(*parameter.shape)
        scale = 0.3 if parameter.dim() < 2 else math.prod(parameter.shape[1:]) ** -0.5
        start = parameter.detach() if parameter.dim() < 2 else 0.0
        parameter.data = start + scale * noise
    return ready(model, torch.float64)


def ready(model: Any, dtype: torch.dtype) -> nn.Module:
    return model.to(dtype).eval().requires_grad_(False)


def runnable(model: nn.Module, config: Any, draws: Draws, failed: list[str]) -> Iterator[Subject]:
    """The model with each kind of input on which it runs and gives finite numbers."""
    for given in inputs(model, config, draws):
        subject = Subject(model, given, again(given, draws))
        try:
            plain = subject.run({})
        except Exception as error:
            failed.append(said(error))
            continue
        if plain.softmaxes and all(t.isfinite().all() for t in plain.outputs):
            yield subject
        else:
            failed.append("its outputs are not finite" if plain.softmaxes else "it computes no softmax")


def small(raw: Mapping[str, Any], seed: int, failed: list[str]) -> Iterator[Subject]:
    """Small random models of a configuration that run, as each way of shrinking gives them."""
    whole = configuration(raw).to_dict()
    for way in WAYS:
        with quietly():
            try:
                config = configuration({**way.shrink(whole), "model_type": raw["model_type"]})
                kinds = classes(config)
            except Exception as error:
                failed.append(said(error))
                continue
            for kind in kinds[:2]:
                if parameters(kind, config) > MOST_PARAMETERS:
                    failed.append("it cannot be shrunk")
                    continue
                draws = Draws(seed)
                try:
                    model = drawn(kind, config, draws)
                except Exception as error:
                    failed.append(said(error))
                    continue
                yield from runnable(model, config, draws, failed)


def loaded(folder: Path, seed: int, failed: list[str]) -> Iterator[Subject]:
    """The model of a folder with its weights."""
    with quietly():
        model = from_folder(folder, torch.float64)
        yield from runnable(model, model.config, Draws(seed), failed)


def from_folder(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model of a folder, in this type; BadInput where it has none, or where the folder has code."""
    from transformers import AutoModel

    own = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = AutoModel.from_pretrained(folder, **PLAINEST, **own)
    except Exception as error:
        raise BadInput(f"{folder}: transformers does not load it: {said(error)}") from error
    if info["missing_keys"] >= dict(model.named_parameters()).keys():
        raise BadInput(f"{folder}: holds none of the tensors of transformers' {type(model).__name__}")
    return ready(model, dtype)


def said(error: BaseException) -> str:
    """An error of a library in one line."""
    text = re.sub(r"/\S+/", "…/", one_line(str(error)))  # no path of this machine
    return f"{type(error).__name__}: {text}"[:160]
