"""The rate at which a row does best: one grid for all rows, judged on held-out training examples, never on dev."""

from collections.abc import Iterable, Mapping
from typing import Any

from minibeft.training.settings import Settings
from minibeft.training.tasks import find_task


def best_rate(searched: Iterable[Settings], records: Mapping[Settings, dict[str, Any]]) -> float:
    """The rate of the best last epoch on the held-out examples; of equal ones the lowest."""
    ranked = sorted(searched, key=lambda settings: (-held_out_score(settings, records[settings]), rate_of(settings)))
    return rate_of(ranked[0])


def held_out_score(settings: Settings, record: dict[str, Any]) -> float:
    """The task's first metric on the held-out examples after the last epoch."""
    return record["epochs"][-1]["held_out"][find_task(settings.task).metrics[0]]


def rate_of(settings: Settings) -> float:
    """The learning rate, which every planned run states."""
    assert settings.learning_rate is not None
    return settings.learning_rate
