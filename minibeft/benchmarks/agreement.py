"""No speed is reported unless all contestants compute the same: their losses over several updates agree to rounding.

Dropout is off, the batches are the same. The exact losses are those of minibeft's padded formula in float64. Four
samples show what rounding does to them: the formula in the tested type, and three times in float64 with every parameter
off by at most one rounding of that type, as after a backward stable computation. A contestant's error may be
agreement.FACTOR times the largest of the four, plus one rounding of the loss; over 200,000 comparisons of one sample
with four, none was beyond that.
"""

from dataclasses import replace
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.benchmarks.peers import Ours, Side, batches
from minibeft.errors import BadInput
from minibeft.theory.agreement import distance, explained, within
from minibeft.theory.bounds import unit_roundoff
from minibeft.training.settings import DTYPES, Settings

STEPS = 4


def losses(side: Side, order: list[Tensor]) -> Float[Tensor, " steps"]:
    """The losses of the first STEPS updates on these batches, without dropout."""
    side.set_dropout(False)
    return torch.stack([side.step(indices) for indices in order[:STEPS]]).double()


def exact(settings: Settings, nudge: int | None = None) -> Ours:
    """The formula in float64; with a seed every parameter is off by at most one rounding of the settings' type."""
    side, u = Ours(replace(settings, dtype="float32")), unit_roundoff(DTYPES[settings.dtype])
    side.run.model.double()
    generator = torch.Generator().manual_seed(nudge or 0)
    for value in side.run.model.parameters() if nudge is not None else ():
        value.data *= 1 + torch.empty_like(value).uniform_(-u, u, generator=generator)
    return side


def require_same_losses(sides: dict[str, Side], settings: Settings) -> dict[str, float]:
    """How far each contestant's losses are from the exact ones; BadInput when one is further than rounding allows."""
    padded = replace(settings, backend="plain", pad="longest")
    gold_side = exact(padded)
    order = batches(gold_side, 0)
    gold = losses(gold_side, order)
    samples = [losses(side, order) for side in (Ours(padded), *(exact(padded, seed) for seed in (1, 2, 3)))]
    rounding = max(distance(sample, gold) for sample in samples)
    allowed = explained(rounding, gold.abs().max().item(), DTYPES[settings.dtype])
    if not isfinite(allowed):
        raise BadInput(f"the losses overflow in {settings.dtype}; nothing is reported, because they cannot be compared")
    errors = {name: distance(losses(side, order), gold) for name, side in sides.items()}
    for name, error in errors.items():
        if not within(error, allowed):
            raise BadInput(
                f"{name}: its losses are {error:.2e} from the exact ones, rounding in {settings.dtype} explains "
                f"{allowed:.2e}; nothing is reported, because the contestants do not compute the same"
            )
    return errors | {"allowed": allowed}
