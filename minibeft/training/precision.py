"""--dtype auto: the type in which this model trains faster here. bfloat16 is the faster one on processors that have
instructions for it, and the slower one on others.

The model's largest matrix products, those of an MLP, are timed; once per folder, because a run keeps its type to its
end.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from time import perf_counter, process_time

import torch

from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.tensors import read_json
from minibeft.models.layers import MLP
from minibeft.models.transformer import Block
from minibeft.show.console import err
from minibeft.training import sharded
from minibeft.training.settings import AUTO, DTYPES, Settings, device_of
from minibeft.training.train import autocast, hold_in_bfloat16

TOKENS, ROUNDS = 256, 5
# Where a folder of runs says what they compute in.
RECORDS = ("run.json", "seeds.json", "series.json", "seed-*/run.json", "rate-*/seed-*/run.json")


def settled(settings: Settings, folder: Path | None = None) -> Settings:
    """The settings with a type in place of auto: that of the runs already in this folder, or else the faster one on
    this machine. One printed line says which."""
    if settings.dtype != AUTO:
        return settings
    settings.check()
    if (there := type_in(folder)) is not None:
        found, why = there, f"as the runs in {folder}"
    else:
        sharded.join()
        (measured, *_) = sharded.from_all(rates(settings.model, device_of(settings)))
        found = max(measured, key=measured.__getitem__)
        why = "an MLP trains " + ", ".join(f"{rate:.3g} tokens/s in {name}" for name, rate in measured.items())
    err.print(f"--dtype auto: {found}; {why}", markup=False, highlight=False, emoji=False, soft_wrap=True)
    return replace(settings, dtype=found)


def type_in(folder: Path | None) -> str | None:
    """The type of the first record in this folder; None where there is none yet."""
    files = () if folder is None else chain.from_iterable(sorted(folder.glob(record)) for record in RECORDS)
    settings = next((read_json(file).get("settings") for file in files if file.is_file()), None)
    found = settings.get("dtype", Settings.dtype) if isinstance(settings, dict) else None
    return found if found in DTYPES else None


@cache
def rates(model: str, device: str) -> dict[str, float]:
    """Tokens per second through the first block's MLP in each type, forward and backward with frozen weights: the best
    of several rounds in which the types take turns; measured once per process.

    On a CPU the processor time of one core counts, so that other work on the machine does not decide.
    """
    with head_to_come():
        block = load_model(model, task="hidden").blocks[0]
    assert isinstance(block, Block)
    mlp = block.mlp.requires_grad_(False)
    passes = {dtype: one_pass(mlp, Settings(model, "", dtype=dtype, device=device)) for dtype in DTYPES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rounds = [{dtype: seconds() for dtype, seconds in passes.items()} for _ in range(1 + ROUNDS)][1:]
    torch.set_num_threads(threads)
    return {dtype: TOKENS / min(found[dtype] for found in rounds) for dtype in DTYPES}


def one_pass(mlp: MLP, settings: Settings) -> Callable[[], float]:
    """The seconds of a forward and a backward pass in this type. No random number is drawn."""
    mlp = deepcopy(mlp).to(settings.device, torch.float32)
    if settings.dtype == "bfloat16":
        hold_in_bfloat16(mlp)
    now = process_time if settings.device == "cpu" else perf_counter
    x = torch.ones(TOKENS, mlp.up.in_features, device=settings.device, requires_grad=True)

    def seconds() -> float:
        begun = now()
        with autocast(settings):
            y = mlp(x)
        (grad,) = torch.autograd.grad(y.float().sum(), x)
        grad.sum().item()  # waits for the device
        return now() - begun

    return seconds
