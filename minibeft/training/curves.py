"""A run's loss and metrics over its epochs."""

from typing import TYPE_CHECKING, Any

from minibeft.show.plot import along_epochs
from minibeft.training.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(figure: "Figure", epochs: list[dict[str, Any]], task: Task) -> None:
    """Two panels: the training loss, and the task's metrics on each split that was evaluated."""
    left, right = figure.subplots(1, 2)
    numbers = [record["epoch"] + 1 for record in epochs]
    left.plot(numbers, [record["loss"] for record in epochs])
    along_epochs(left, ylabel="training loss")
    for split in (name for name, value in epochs[-1].items() if isinstance(value, dict)):
        for metric in task.metrics:
            right.plot(numbers, [record[split][metric] for record in epochs], label=f"{split} {metric}")
    along_epochs(right)
    right.legend()
