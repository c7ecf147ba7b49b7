"""How large the gradients of b_q, b_k and b_v are before the first update, and what an update of Adam makes of them.

Adam moves each entry by about its rate, whatever the gradient's size: to first order the loss falls by rate · ‖g‖₁. So
a term whose ‖g‖₁ is a tenth of another's needs ten times the other's rate to go as far. Theorem Q8 says why b_q's
gradient is smaller: it is a covariance of keys and values under P, bounded by their diameters, while b_v's is the plain
sum of ∂L/∂O (V3).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from minibeft.errors import BadInput
from minibeft.models.biases import term_of
from minibeft.reproduce.report import spread_of
from minibeft.show.grid import Grid
from minibeft.theory.instance import Instance
from minibeft.theory.query_slope import slope_bound
from minibeft.training.batches import Batch, shuffled
from minibeft.training.loading import Loaded, load
from minibeft.training.settings import Settings
from minibeft.training.train import Run, loss_of, start
from minibeft.verification.backward import at_heads
from minibeft.verification.probe import modules_of, probe

TERMS = ("v", "q", "k")
Row = dict[str, float]


def measure(settings: Settings, seeds: list[int], progress: Callable[[float, int], None]) -> dict[str, Any]:
    """The record: for each seed, which draws the head, the means over the batches of one epoch, dropout off."""
    settings = replace(settings, terms=",".join(TERMS), backend="plain")
    first, rows = load(replace(settings, seed=seeds[0])), []
    for number, seed in enumerate(seeds):
        one = load(replace(settings, seed=seed)) if number else first
        rows.append(of_seed(one, lambda share, n=number: progress(n + share, len(seeds))))
    shared = {name: value for name, value in first.settings.as_json().items() if name != "seed"}
    return {"settings": shared, "digests": first.digests, "seeds": seeds, "rows": rows}


def of_seed(loaded: Loaded, progress: Callable[[float], None]) -> dict[str, Row]:
    """Term → the means over the batches."""
    run = start(loaded.settings, loaded.task, loaded.model)
    run.model.eval()
    assert run.settings.batch is not None
    order = shuffled(loaded.train.lengths, run.settings.batch, seed=run.settings.seed, epoch=0, bucketed=True)
    found = []
    for number, indices in enumerate(order, 1):
        batch = loaded.train.gather(indices, run.settings.width, torch.device(run.settings.device))
        if not isinstance(batch, Batch):
            raise BadInput(f"{run.settings.model}: is no classifier of texts like BERT, whose gradients are measured")
        found.append(of_batch(run, batch))
        progress(number / len(order))
    return {term: {name: mean(each[term][name] for each in found) for name in found[0][term]} for term in TERMS}


def of_batch(run: Run, batch: Batch) -> dict[str, Row]:
    """Term → ‖g‖₁, ‖g‖₂ over all layers, the share of entries below Adam's eps, and the factor by which clipping
    shortens the gradient when this term and the head train; for q also what Q8 allows for ‖g‖₂."""
    outs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda *call: outs.append(call[2])) for m in modules_of(run.model)]
    try:
        loss = loss_of(run.task, batch.scores(run.model), batch.labels)
    finally:
        for hook in hooks:
            hook.remove()
    names = list(run.trained)
    slopes = torch.autograd.grad(loss, [*run.trained.values(), *outs])
    grads = {name: slope.double().flatten() for name, slope in zip(names, slopes, strict=False)}
    head = torch.cat([slope for name, slope in grads.items() if term_of(name) is None])
    rows = {}
    for term in TERMS:
        own = torch.cat([slope for name, slope in grads.items() if term_of(name) == term])
        together = torch.cat((own, head)).norm().item()
        rows[term] = {
            "l1": own.norm(1).item(),
            "l2": own.norm().item(),
            "below_eps": (own.abs() < run.settings.eps).double().mean().item(),
            "clipped_to": min(1.0, run.settings.clip / together),
        }
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    rows["q"]["bound"] = torch.cat([*bounds(probe(run.model, inputs), slopes[len(names) :])]).norm().item()
    return rows


def bounds(layers: list[Instance], d_outs: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """What Q8 allows for ‖∂L/∂b_q‖ of each head, layer by layer."""
    for layer, d_out in zip(layers, d_outs, strict=True):
        yield slope_bound(layer, at_heads(layer, d_out)).allowed.double()


def render(record: dict[str, Any]) -> list[Grid | str]:
    """One row per term, and the finding."""
    rate = record["settings"]["learning_rate"]

    def cell(term: str, name: str) -> str:
        values = [row[term][name] for row in record["rows"] if name in row[term]]
        return spread_of(values) if values else ""

    cells = [
        (f"b_{term}", *(cell(term, name) for name in ("l1", "l2", "bound", "below_eps", "clipped_to")))
        for term in TERMS
    ]
    header = ("term", "‖g‖₁", "‖g‖₂", "Q8 allows", "entries below eps", "clipped to")
    note = f"means over an epoch's batches before any update, ± standard deviation over {len(record['seeds'])} seeds"
    times = mean(row["v"]["l1"] / row["q"]["l1"] for row in record["rows"])
    key = rate * mean(row["k"]["l1"] for row in record["rows"])
    return [
        f"At one rate, a first update of b_v moves the loss {times:.1f} times as far as one of b_q; one of b_k "
        f"moves it by {key:.0e}.",
        Grid("gradients before the first update", header, cells, note),
    ]
