"""Runs in one stack and the same runs alone, in float64, each as one tensor of all that came of it."""

import copy
from typing import Any

import torch
from torch import Tensor

from minibeft.models.transformer import Transformer
from minibeft.training.loading import Loaded, head_like, load, load_like
from minibeft.training.settings import Settings
from minibeft.training.stack import Stack
from minibeft.training.train import Run, drive, fit, lessons, predict, start


def quiet(*_: Any) -> None:
    """No progress."""


def in_double(settings: Settings) -> Loaded:
    loaded = load(settings)
    return loaded._replace(model=loaded.model.double())


def result(run: Run, loaded: Loaded) -> Tensor:
    """The loss, all that trained but b_k, which drifts in rounding noise (K5), and the validation split's logits."""
    trained = [value.detach().flatten() for name, value in run.trained.items() if not name.endswith("k.bias")]
    logits = predict(run, next(iter(loaded.valid.values()))).flatten()
    return torch.cat([torch.tensor([run.epochs[-1]["loss"]], dtype=torch.float64), *trained, logits])


def alone(loaded: Loaded, model: Transformer) -> Tensor:
    run = start(loaded.settings, loaded.task, copy.deepcopy(model))
    fit(run, loaded.train, loaded.valid, quiet)
    return result(run, loaded)


def together(first: Loaded, work: list[Settings], stack: Stack | None = None) -> list[Any]:
    """The result of each of them in one stack, or its error."""
    stack = stack or Stack(copy.deepcopy(first.model))
    loaded = [load_like(first, settings) for settings in work]
    runs = [stack.begin(each, head_like(first, each.settings)) for each in loaded]

    def learn(run: Run, one: Loaded) -> Any:
        yield from lessons(run, one.train, one.valid, quiet, lambda: None)
        return result(run, one)

    return drive([learn(run, one) for run, one in zip(runs, loaded, strict=True)], stack.update, stack.inside)
