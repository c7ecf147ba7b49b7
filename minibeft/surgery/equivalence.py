"""Two models compute the same function: run on sentences, they differ by no more than rounding allows.

Two comparisons with the old model in float64, by agreement.py. In float64, with the changed parameters unrounded: the
difference may be FACTOR times the float32 error of the same computation, times u64/u32, because rounding errors are
linear in u. This shows the theorem on this checkpoint. In the type of the file, with what was really written: the new
model may err FACTOR times as much as the old one does, and one rounding more. A file of several types is computed in
the finest of them; if each changed parameter is its exact value rounded to one of these types, the effect of that
rounding is allowed too.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.theory.agreement import distance, explained, within
from minibeft.verification.probe import Batch


@dataclass(frozen=True)
class Difference:
    """The largest difference of two runs in this type, and the largest that rounding allows."""

    dtype: str
    value: float
    allowed: float

    @property
    def finite(self) -> bool:
        """Whether there is something to compare: an infinite allowance would explain everything."""
        return isfinite(self.value) and isfinite(self.allowed)

    @property
    def within(self) -> bool:
        """Whether rounding explains it."""
        return within(self.value, self.allowed)


@dataclass(frozen=True)
class Agreement:
    """What was compared: the largest output there is, and the two differences."""

    sentences: int
    largest: float
    exact: Difference
    written: Difference
    inputs: str = "sentences"

    def require(self, folder: Path) -> None:
        """BadInput where they do not agree, or where nothing can be compared."""
        for difference in (self.exact, self.written):
            if not difference.finite:
                raise BadInput(
                    f"{folder}: nothing was written; in {difference.dtype} outputs overflow, so nothing is verified"
                )
            if not difference.within:
                raise BadInput(
                    f"{folder}: nothing was written; in {difference.dtype} the new outputs differ by "
                    f"{difference.value:.3g}, and rounding explains only {difference.allowed:.3g}"
                )


@contextmanager
def computing_in(model: Transformer, dtype: torch.dtype) -> Iterator[None]:
    """Within it, the model computes in this type.

    Each part is converted only while it runs, so that a memory-mapped checkpoint costs the memory of one block.
    """
    stored: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def enter(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        stored[part] = [(parameter, parameter.data) for parameter in part.parameters()]
        for parameter, value in stored[part]:
            parameter.data = value.to(dtype)
        return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)

    def leave(part: nn.Module, _: Any, __: Any) -> None:
        for parameter, value in stored.pop(part):
            parameter.data = value

    parts = [part for part in (model.embed, *model.blocks, model.norm, model.head) if part is not None]
    hooks = [part.register_forward_pre_hook(enter) for part in parts]
    hooks += [part.register_forward_hook(leave) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def outputs(model: Transformer, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
    """The logits of the real tokens (hidden states without a head), computed in this type; None: as the model is."""
    if dtype is None:
        hidden, logits = model(**batch)
    else:
        with computing_in(model, dtype):
            hidden, logits = model(**batch)
    found = hidden if logits is None else logits
    return found[batch["attention_mask"].bool()] if found.ndim == 3 else found


def compare(
    intended: Transformer,
    written: Transformer,
    exact: Mapping[str, Tensor],
    batch: Batch,
    types: Collection[torch.dtype] = (),
) -> Agreement:
    """Whether the model that was written computes what is intended.

    intended  the model before, or with its adapter added
    written   the model after, as loaded from its files; it is changed here
    exact     the parameters that were changed, by our names, in float64 before they were rounded to the file's type
    types     those of the file's tensors
    """
    dtype = next(written.parameters()).dtype  # the file's; what an adapter changed is float64 in `intended`
    gold, single = outputs(intended, batch, torch.float64), outputs(intended, batch, torch.float32)
    plain = single if dtype == torch.float32 else outputs(intended, batch, dtype)
    candidate = outputs(written, batch)
    stored = gold
    if len(types) > 1 and all(is_rounded(written.get_parameter(name), value, types) for name, value in exact.items()):
        stored = outputs(written, batch, torch.float64)
    for name, value in exact.items():
        written.get_parameter(name).data = value.double()
    unrounded = outputs(written, batch, torch.float64)
    largest = gold.abs().max().item()
    allowed = explained(distance(single, gold), largest, torch.float64, sampled_in=torch.float32, roundings=2)
    rounded = explained(distance(plain, gold), largest, dtype) + distance(stored, gold)
    return Agreement(
        len(batch["attention_mask"]),
        largest,
        Difference("float64", distance(unrounded, gold), allowed),
        Difference(str(dtype).removeprefix("torch."), distance(candidate, gold), rounded),
        "sentences" if intended.config.features is None else intended.config.features.plural,
    )


def is_rounded(value: Tensor, exact: Tensor, types: Collection[torch.dtype]) -> bool:
    """Whether these are the exact numbers, rounded to one of these types."""
    return any(torch.equal(exact.to(kind).double(), value.double()) for kind in types)
