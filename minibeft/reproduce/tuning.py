"""The rate at which a row does best: one grid for all rows, judged on held-out training examples, never on dev."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minibeft.reproduce.plan import Row
from minibeft.training.settings import Settings
from minibeft.training.tasks import find_task


@dataclass(frozen=True)
class Search:
    """What was found for a row. scores: learning rate and the task's first metric on the held-out examples."""

    row: Row
    scores: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float:
        """The rate of the highest score; of equal ones the lowest."""
        return max(self.scores, key=lambda pair: (pair[1], -pair[0]))[0]


def searched(row: Row, runs: Iterable[Settings], records: Mapping[Settings, dict[str, Any]]) -> Search:
    """The search of one row from its finished runs."""
    return Search(row, tuple((run.learning_rate or 0.0, held_out_score(run, records[run])) for run in runs))


def held_out_score(settings: Settings, record: dict[str, Any]) -> float:
    """The task's first metric on the held-out examples after the last epoch."""
    return record["epochs"][-1]["held_out"][find_task(settings.task).metrics[0]]
