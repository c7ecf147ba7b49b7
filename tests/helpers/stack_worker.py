"""What each of several processes runs: a stack, alone and with its random numbers, and adapters side by side; the first
one writes the results. For test_sharded."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from stacked import alone, in_double, quiet, together
from torch import Tensor

from minibeft.checkpoints.serve import load_adapters
from minibeft.models.transformer import Transformer
from minibeft.show import files
from minibeft.training import sharded
from minibeft.training.loading import Loaded, load_like
from minibeft.training.settings import Settings
from minibeft.training.stack import Stack, finetune_stack

IDS = torch.arange(4, 34).view(5, 6)
MASK = (torch.arange(6) < torch.tensor([3, 6, 1, 5, 6])[:, None]).long()
WHO = torch.tensor([1, 0, 0, 1, 1])


def trained(model: Transformer, first: Loaded, work: list[Settings]) -> Tensor:
    """All that comes of the runs in one stack."""
    return torch.cat(together(first._replace(model=model), work))


@torch.no_grad()
def served(model: Transformer) -> Tensor:
    """Logits of classify() and of the model itself, and its hidden states."""
    return torch.cat(
        [part.flatten() for part in (model.classify(IDS, MASK, adapters=WHO), *model(IDS, MASK, adapters=WHO))]
    )


def with_adapters(first: Loaded, adapters: list[str]) -> Transformer:
    """The classifier, shared out where there are several processes, and then the adapters."""
    model = copy.deepcopy(first.model).eval()
    sharded.place(model, (), "cpu")
    return load_adapters(model, adapters)


def draws_as_alone(first: Loaded, work: list[Settings]) -> bool:
    """Whether each run of a stack has drawn the random numbers that it draws alone, in every process others."""
    stack = Stack(copy.deepcopy(first.model))
    together(first, work, stack)
    same, states = True, []
    for settings, run in zip(work, stack.runs, strict=True):
        alone(load_like(first, settings), first.model)
        assert run.stream is not None
        states.append(run.stream.get_state())
        same &= torch.equal(states[-1], torch.get_rng_state())
    every = [bytes(state.numpy()) for found in sharded.from_all(states) for state in found]
    return same and len({*every}) == len(every)


def main(work: list[Settings], adapters: list[str], place: Path) -> None:
    torch.set_num_threads(1)
    sharded.join()
    first = in_double(work[0])
    found: dict[str, Any] = {"trained": trained(first.model, first, work).tolist()}
    found["served"] = served(with_adapters(first, adapters)).tolist()
    with patch.object(dist, "all_reduce", quiet):
        found["not summed"] = trained(first.model, first, work).tolist()
    wet = [replace(settings, dropout=True) for settings in work]
    found["draws as alone"] = all(sharded.from_all(draws_as_alone(in_double(wet[0]), wet)))
    if sharded.rank():
        files.write = files.write_json = None  # type: ignore[assignment]  # the first one alone writes
    whole = [replace(settings, epochs=2, dtype="bfloat16") for settings in wet]
    finetune_stack([(each, place / str(i)) for i, each in enumerate(whole)], notify=quiet, announce=quiet)
    if not sharded.rank():
        (place / "found").write_text(json.dumps(found))


if __name__ == "__main__":
    main([Settings(**one) for one in json.loads(sys.argv[1])], json.loads(sys.argv[2]), Path(sys.argv[3]))
