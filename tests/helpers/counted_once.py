"""Attention's weights are remembered instead of computed again, so that torch counts what an update cannot avoid."""

import pytest
from torch import Tensor

from minibeft.models.packed import packing


def count_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass gets the weights of the forward pass; queries and keys stay alive, so that each has a place of
    its own in memory."""
    known: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    computed = packing.mixing

    def remembered(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        where = q.data_ptr(), k.data_ptr()
        if where not in known:
            known[where] = q, k, computed(q, k, mask)
        return known[where][2]

    monkeypatch.setattr(packing, "mixing", remembered)
