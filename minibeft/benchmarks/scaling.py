"""The cost of training grows linearly: in the number of examples, and in the layers above the lowest trained bias."""

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from minibeft.benchmarks.peers import OURS, Ours, batches
from minibeft.models.biases import select
from minibeft.training.settings import Settings

PARTS = 5
Point = tuple[float, float]


def seconds_of(side: Ours, examples: int, rounds: int) -> float:
    """The median time of training on this many examples, in random order, so that batches are alike at any number."""
    order = batches(side, 0)
    assert side.settings.batch
    chosen = order[: max(1, examples // side.settings.batch)]
    side.set_dropout(side.settings.dropout)
    side.step(chosen[0])
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for indices in chosen:
            side.step(indices)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def by_examples(settings: Settings, rounds: int) -> list[Point]:
    """(examples, seconds) for a fifth, two fifths, … of the examples."""
    side = Ours(settings)
    numbers = [len(side.train) * part // PARTS for part in range(1, PARTS + 1)]
    return [(number, seconds_of(side, number, rounds)) for number in numbers]


def by_layers(settings: Settings, rounds: int) -> list[Point]:
    """(layers from the lowest trained b_v to the top, seconds of one pass)."""
    found = []
    for lowest in range(len(Ours(settings).run.model.blocks)):
        side = Ours(settings)
        for number, value in enumerate(select(side.run.model, "v").values()):
            value.requires_grad_(number >= lowest)
        layers = len(side.run.model.blocks) - lowest
        found.append((layers, seconds_of(side, len(side.train), rounds)))
    return found[::-1]


def line(points: list[Point]) -> dict[str, Any]:
    """The least-squares line through the points, and the share of the variance that it explains (R²), None where
    there is no variance. A coefficient that is nothing but rounding is set to 0."""
    x, y = np.array(points).T
    slope, start = np.polyfit(x, y, 1)
    slope, start = (0.0 if abs(v) * reach < 1e-12 * y.max() else v for v, reach in ((slope, x.max()), (start, 1)))
    left, spread = y - slope * x - start, float(((y - y.mean()) ** 2).sum())
    explained = 1 - float((left**2).sum()) / spread if spread else None
    return {"slope": float(slope), "at_zero": float(start), "r_squared": explained}


def straight(points: list[Point]) -> dict[str, Any]:
    """The same of seconds, with the points."""
    slope, at_zero, explained = line(points).values()
    return {"points": points, "seconds_each": slope, "seconds_at_zero": at_zero, "r_squared": explained}


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Both, in float32."""
    plain = replace(settings, dtype="float32", pad="longest")
    return {
        "side": OURS,
        "examples": straight(by_examples(plain, rounds)),
        "layers": straight(by_layers(plain, rounds)),
    }
