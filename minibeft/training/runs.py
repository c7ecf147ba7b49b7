"""A run's folder: settings and results in run.json, the state to resume from, the adapter.

A kill at any moment leaves the last whole epoch (show/files.py). A run that is resumed ends with the same bits as one
that was not interrupted: the state holds what trains, the optimiser and torch's random streams, and the order of the
data depends on seed and epoch alone.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from minibeft.checkpoints.adapters import is_linear, make_adapter, save_adapter, their_names
from minibeft.checkpoints.door import checked
from minibeft.checkpoints.find import find, published
from minibeft.checkpoints.tensors import unpacked
from minibeft.errors import BadInput
from minibeft.models.biases import count
from minibeft.show import files
from minibeft.show.record import provenance
from minibeft.training import sharded
from minibeft.training.card import beside_adapter
from minibeft.training.loading import Loaded, load
from minibeft.training.precision import settled
from minibeft.training.records import (
    RECORD,
    TRAINED,
    are_epochs,
    digest,
    measured,
    read_record,
    read_trained,
    require_same,
)
from minibeft.training.reparam import merge
from minibeft.training.settings import Settings
from minibeft.training.train import Run, Step, fit, start

STATE, ADAPTER = "state.pt", "adapter"
Announce = Callable[[Run], None]


def finetune(
    settings: Settings, folder: Path, *, progress: Callable[[Step], None], announce: Announce = lambda run: None
) -> dict[str, Any]:
    """Train to the end in this folder, from the last epoch that was saved; returns the record that run.json holds.

    announce is called once with the run before the first step: the moment to print what trains. BadInput, with nothing
    overwritten, when the folder holds another run or anything else.
    """
    sharded.join()
    with files.held(folder):
        return finetune_held(load(settled(settings, folder)), folder, progress, announce)


def finetune_held(loaded: Loaded, folder: Path, progress: Callable[[Step], None], announce: Announce) -> dict[str, Any]:
    """The same in a folder that no other process has."""
    record = record_of(loaded)
    if done := finished(folder, record, scored(loaded)):
        return done
    sharded.wait()  # until all have seen the folder, before one writes there
    run = start(loaded.settings, loaded.task, loaded.model)
    record |= opened(run, folder, record)
    if sharded.rank():
        progress = announce = silent
    announce(run)
    fit(run, loaded.train, loaded.valid, progress, keep=lambda: save_state(run, folder, record))
    return finish(run, folder, record)


def record_of(loaded: Loaded) -> dict[str, Any]:
    """What is known of a run before it begins."""
    return {
        "settings": loaded.settings.as_json(),
        "digests": loaded.digests,
        "labels": list(loaded.task.labels),
    }


def scored(loaded: Loaded) -> set[tuple[str, str]]:
    """The splits and metrics of each of its epochs."""
    return {(split, metric) for split in loaded.valid for metric in loaded.task.metrics}


def opened(run: Run, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Restore the run from its folder, and write its record with the names and count of what trains; returns these."""
    trained = {"trained": {"tensors": sorted(run.trained), "count": count(run.trained)}}
    restore(run, folder)
    write_record(run, folder, record | trained)
    return trained


def save_state(run: Run, folder: Path, record: dict[str, Any]) -> None:
    """After an epoch: the state to resume from, then the record."""
    write(folder / STATE, state_of(run))
    write_record(run, folder, record)


def silent(*_: Any) -> None:
    """Show nothing, as every process but the first does."""


def finished(folder: Path, record: dict[str, Any], scores: set[tuple[str, str]]) -> dict[str, Any] | None:
    """The record of a run that is complete; None for one to begin or resume; BadInput for another run's folder.

    scores  the split and metric of each number that an epoch has
    """
    if not begun(folder, RECORD):
        return None
    there = read_record(folder)
    require_same(folder, there, record, "run")
    if any(measured(epoch) != scores for epoch in there.get("epochs", [])):
        raise BadInput(f"{folder / RECORD}: epochs is damaged, or another version's; delete the file to begin anew")
    if not there.get("complete"):
        return None
    read_trained(folder)
    return there


def state_of(run: Run) -> bytes:
    """All that the next epoch depends on, in torch's format; it is read back as weights only, never as code."""
    buffer = io.BytesIO()
    streams = sharded.from_all(random_state(run))
    trained = {name: value.detach() for name, value in run.trained.items()}
    state = {"trained": trained, "optimizer": run.optimizer.state_dict(), "epochs": run.epochs}
    torch.save(state | {"streams": streams}, buffer)
    return buffer.getvalue()


def random_state(run: Run) -> dict[str, Tensor | None]:
    """The state of the run's random number generators: of its own one, or of torch's."""
    cuda, own = run.settings.device.startswith("cuda"), run.stream
    if own is not None:
        return {"cpu": torch.get_rng_state() if cuda else own.get_state(), "cuda": own.get_state() if cuda else None}
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if cuda else None}


def set_random_state(run: Run, state: dict[str, Tensor]) -> None:
    """Put the random number generators back into this state."""
    if run.stream is not None:
        run.stream.set_state(state[run.stream.device.type])
        return
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def restore(run: Run, folder: Path) -> None:
    """Put the run into the state that the folder holds; nothing happens if there is none yet."""
    if not (folder / STATE).exists():
        return
    file = checked(folder / STATE, None)
    try:
        if unpacked(file) > file.stat().st_size:
            raise ValueError("a bomb")
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        for name, value in run.trained.items():
            value.data.copy_(state["trained"][name])
        run.optimizer.load_state_dict(state["optimizer"])
        streams, epochs = list(state["streams"]), state["epochs"]
        if not are_epochs(epochs):
            raise ValueError("no epochs")
        set_random_state(run, streams[sharded.rank() % len(streams)])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise BadInput(f"{folder / STATE}: is damaged; delete it to begin this run again") from error
    if len(streams) != sharded.processes():
        raise BadInput(f"{folder}: was begun by {len(streams)} processes; resume it with as many")
    run.epochs[:] = epochs


def finish(run: Run, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write what was trained, the adapter, then the record that says complete."""
    merge(run.model)
    names, state = their_names(run.model), dict(run.model.named_parameters())
    tensors = {names[name]: state[name].detach().float().cpu().contiguous() for name in run.before}
    write(folder / TRAINED, save(tensors, {"format": "pt"}))
    biases = run.settings.terms != "full" and any(is_linear(name) for name in run.before)
    if biases and not (folder / ADAPTER).exists() and not sharded.rank():
        before = {name: value.to(run.settings.device) for name, value in run.before.items()}
        base = published(run.settings.model)
        adapter = make_adapter(run.model, before, base=base)
        saved = {name: value.float() for name, value in adapter.saved.items()}
        whole = record | {"epochs": run.epochs} | provenance()
        extras = beside_adapter(find(run.settings.model), base, run.task.name, adapter.labels, whole)
        save_adapter(replace(adapter, saved=saved), folder / ADAPTER, extras)
    sharded.wait()  # until the first has written
    return write_record(run, folder, record | {"written": digest([folder / TRAINED]), "complete": True})


def write_record(run: Run, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write run.json as the run stands, and return what it holds."""
    record = record | {"epochs": run.epochs} | provenance()
    write_json(folder / RECORD, record)
    return record


def write(file: Path, content: bytes) -> None:
    """Write a file; of several processes that train together only the first one does."""
    if not sharded.rank():
        files.write(file, content)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """The same for a JSON object."""
    if not sharded.rank():
        files.write_json(file, value)


def begun(folder: Path, record: str) -> bool:
    """Whether the folder holds this record; BadInput when it holds anything else instead. A kill during the first write
    leaves the record beside its place: that is not begun."""
    if (folder / record).is_file():
        return True
    if folder.exists() and any(path != files.beside(folder / record) for path in folder.iterdir()):
        raise BadInput(f"{folder}: is not empty and holds no {record}; choose another folder, nothing was written")
    return False


def describe(trained: dict[str, nn.Parameter]) -> list[tuple[str, str, int]]:
    """What trains, layers gathered: (name with * for the layer, shape, how many parameters in all), in order."""
    rows: dict[tuple[str, str], int] = {}
    for name, value in trained.items():
        parts = ["*" if part.isdigit() and i == 1 else part for i, part in enumerate(name.split("."))]
        key = ".".join(parts), "×".join(map(str, value.shape))
        rows[key] = rows.get(key, 0) + value.numel()
    return [(name, shape, size) for (name, shape), size in rows.items()]
