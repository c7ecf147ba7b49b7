"""A run's loss and metrics over its epochs, as a PNG."""

import io
from typing import Any

from minibeft.errors import BadInput
from minibeft.training.tasks import Task


def draw_curves(epochs: list[dict[str, Any]], task: Task) -> bytes:
    """Two panels: the training loss, and the task's metrics on each split that was evaluated."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("drawing curves needs matplotlib; run: pip install 'minibeft[train]'") from error
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [record["epoch"] + 1 for record in epochs]
    left.plot(numbers, [record["loss"] for record in epochs])
    left.set(xlabel="epoch", ylabel="training loss")
    for split in (name for name, value in epochs[-1].items() if isinstance(value, dict)):
        for metric in task.metrics:
            right.plot(numbers, [record[split][metric] for record in epochs], label=f"{split} {metric}")
    right.set(xlabel="epoch")
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
