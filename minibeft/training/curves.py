"""Loss and metrics over the epochs, of all seeds in one picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minibeft.show.plot import along_epochs, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(figure: "Figure", runs: Sequence[list[dict[str, Any]]]) -> None:
    """Two panels: the training loss, and the metrics on each split that was evaluated; a line for each run."""
    left, right = figure.subplots(1, 2)
    scored = {split: [*value] for split, value in runs[0][-1].items() if isinstance(value, dict)}
    styles = looks((split, metric) for split, metrics in scored.items() for metric in metrics)
    for number, epochs in enumerate(runs):
        at = [record["epoch"] + 1 for record in epochs]
        left.plot(at, [record["loss"] for record in epochs], **next(iter(styles.values())))
        for (split, metric), style in styles.items():
            label = None if number else f"{split} {metric}"
            right.plot(at, [record[split][metric] for record in epochs], **style, label=label)
    along_epochs(left, ylabel="training loss")
    along_epochs(right)
    right.legend()
