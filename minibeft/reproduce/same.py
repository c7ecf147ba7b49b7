"""Theorem K3 on finished runs: training b_k with the head is training the head, so both must end at the same head.

In exact arithmetic the heads are equal. In floating point each of T updates may differ by rounding: the update itself,
at most lr·(1 − β₁)/√(1 − β₂) (Kingma and Ba, arXiv 1412.6980, §2.1), is a quotient of two numbers with relative errors
up to n·u each, n the longest inner product of the model (Higham, 2002, §3.1); the sum is stored with error u·|θ|. So

    max |θ − θ'| ≤ T (2 n u · lr (1 − β₁)/√(1 − β₂) + u · max |θ|)

to first order, where training does not drive nearby heads apart (over frozen features it does not: close to convex).
u is 2⁻²⁴; under bfloat16 autocast products are stored with 2⁻⁸, and n·u becomes n·u + 2⁻⁸. Where b_k drifts to does not
matter, and it does drift (K5). A b_k with an effect moves the head by the size of the updates, 1/(2 n u) times more.

A decoder is trained without a head: there, training b_k must give exactly the zero-shot metrics at every epoch.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibeft.checkpoints.find import find
from minibeft.checkpoints.tensors import read_json
from minibeft.families import read_config
from minibeft.theory.agreement import distance, within
from minibeft.theory.bounds import unit_roundoff
from minibeft.training.records import read_trained

Record = dict[str, Any]


class Same(NamedTuple):
    """Two runs that K3 says are the same. difference, allowed: of any entry of the head, or, if there is no head, of
    any metric; same_epochs: in how many epochs all metrics are the same."""

    first: str
    second: str
    regime: str
    learning_rate: float
    held_out: int
    seed: int
    difference: float
    allowed: float
    same_epochs: int
    epochs: int

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; never true if it is not finite."""
        return within(self.difference, self.allowed)


def compare(names: tuple[str, str], runs: tuple[Record, Record], folders: tuple[Path, Path]) -> Same:
    """Compare two finished runs by their heads, all that trained but b_k, and by the metrics of every epoch."""
    settings, one, other = runs[0]["settings"], *(head_of(folder) for folder in folders)
    assert one.keys() == other.keys()
    first, second = ([metrics_of(epoch) for epoch in run["epochs"]] for run in runs)
    if one:
        difference = max(distance(one[name], other[name]) for name in one)
        allowed = rounding(settings, max(value.abs().max().item() for value in one.values()))
    else:
        first = first[-1:] * len(second)  # the zero-shot run has one epoch
        difference, allowed = max(map(furthest, first, second)), 0.0
    return Same(
        *names,
        regime=settings["regime"],
        learning_rate=settings["learning_rate"],
        held_out=settings["held_out"],
        seed=settings["seed"],
        difference=difference,
        allowed=allowed,
        same_epochs=sum(a == b for a, b in zip(first, second, strict=True)),
        epochs=len(second),
    )


def furthest(one: Record, other: Record) -> float:
    """The largest difference of a metric on any split; NaN counts as infinite."""
    places = [(split, metric) for split in one for metric in one[split]]
    first, second = ([run[split][metric] for split, metric in places] for run in (one, other))
    return distance(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))


def head_of(folder: Path) -> dict[str, Tensor]:
    """What trained outside the numbered layers: where only b_k trains beside it, everything but b_k."""
    return {name: value for name, value in read_trained(folder).items() if not re.search(r"\.\d+\.", name)}


def metrics_of(epoch: Record) -> Record:
    """The metrics on every split that was evaluated."""
    return {name: value for name, value in epoch.items() if isinstance(value, dict)}


def rounding(settings: Record, size: float) -> float:
    """The bound above for a run with these settings whose head has entries up to `size`."""
    u = unit_roundoff(torch.float32)
    updates = settings["epochs"] * math.ceil(settings["examples"] / settings["batch"])
    relative = longest_sum(settings["model"]) * u
    if settings["dtype"] == "bfloat16":
        relative += unit_roundoff(torch.bfloat16)
    largest = settings["learning_rate"] * (1 - settings["beta1"]) / math.sqrt(1 - settings["beta2"])
    return updates * (2 * relative * largest + u * size)


def longest_sum(model: str) -> int:
    """How many products the model's longest inner product adds up."""
    file = find(model) / "config.json"
    raw = read_json(file)
    config = read_config(raw, None, str(file))
    return max(config.width, config.inner, config.heads * config.head_size)
