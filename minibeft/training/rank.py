"""Rank the bias terms as BEFT's Fig. 2 does, layer by layer, and show beside it what b_k's rank is worth.

Mag+Angle and Magnitude compare the biases before and after all of them were trained together; Fisher looks at the
gradients before. Theorem K5 says what they miss: Adam moves b_k by rounding noise, by how much its eps decides, and the
logits do not notice (K1). So b_k is also trained alone, under several eps, and its drift set beside its effect.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from minibeft.checkpoints.adapters import their_names
from minibeft.models.biases import BIAS_TERMS, term_of
from minibeft.show.record import provenance
from minibeft.training.batches import shuffled
from minibeft.training.importance import fisher, mag_angle, magnitude
from minibeft.training.loading import Loaded, load
from minibeft.training.runs import RECORD, TRAINED, as_bytes, finetune, write
from minibeft.training.settings import Settings
from minibeft.training.train import Run, Step, forward, loss_of, predict, start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FISHER_BATCH = 8
HEAT_MAPS = "ranking.png"
# How b_k is trained alone, to see how far Adam carries it.
DRIFTS: dict[str, dict[str, Any]] = {
    "eps 1e-6": {"eps": 1e-6},
    "eps 1e-8": {"eps": 1e-8},
    "bfloat16": {"dtype": "bfloat16"},
}
Scores = dict[str, list[float]]


def rank(settings: Settings, folder: Path, progress: Callable[[str, Step], None]) -> dict[str, Any]:
    """Importance by term and layer, {measure: {term: [layer, …]}}, and the drift of b_k; runs and record in `folder`.

    progress gets the name of the run and where it is. Runs that are complete are read, as finetune does.
    """
    everything = replace(settings, terms="all")
    done = finetune(everything, folder / "all", progress=lambda step: progress("all", step))
    scores, drifts = scores_of(everything, folder / "all"), {}
    for name, one in drifting(settings).items():
        where = folder / f"k-{name.replace(' ', '-')}"
        finetune(one, where, progress=lambda step, name=name: progress(f"k, {name}", step))
        drifts[name] = drift(one, where)
    record = {"settings": done["settings"], "digests": done["digests"], "scores": scores, "drift": drifts}
    record |= provenance()
    write(folder / RECORD, as_bytes(record))
    buffer = io.BytesIO()
    heat_maps(scores).savefig(buffer, format="png", dpi=120)
    write(folder / HEAT_MAPS, buffer.getvalue())
    return record


def drifting(settings: Settings) -> dict[str, Settings]:
    """b_k trained alone, by name of how: DRIFTS."""
    return {name: replace(settings, terms="k", **changes) for name, changes in DRIFTS.items()}


def scores_of(settings: Settings, folder: Path) -> dict[str, Scores]:
    """Each measure from the finished run of all biases with these settings in this folder."""
    loaded = load(settings)
    run = start(loaded.settings, loaded.task, loaded.model)
    names = {name: their for name, their in their_names(run.model).items() if term_of(name) and name in run.before}
    tuned = load_file(folder / TRAINED)
    measures = {"mag_angle": mag_angle, "magnitude": magnitude}
    scores = {
        measure: by_layer({name: compare(run.before[name], tuned[their]) for name, their in names.items()})
        for measure, compare in measures.items()
    }
    return scores | {"fisher": by_layer(fisher_of(run, loaded))}


def by_layer(values: Mapping[str, float]) -> Scores:
    """Term → its value in each layer, from values by parameter name; what belongs to no term is left out."""
    terms = {term: [value for name, value in values.items() if term_of(name) == term] for term in BIAS_TERMS}
    return {term: found for term, found in terms.items() if found}


def fisher_of(run: Run, loaded: Loaded) -> dict[str, float]:
    """I3 over one pass of the training examples in batches of 8, dropout off, the head clipped along."""
    run.model.eval()
    device = torch.device(run.settings.device)
    order = shuffled(loaded.train.lengths, FISHER_BATCH, seed=run.settings.seed, epoch=0, bucketed=True)
    batches = (loaded.train.gather(indices, run.settings.width, device) for indices in order)
    return fisher(run.trained, (loss_of(run.task, forward(run, batch), batch.labels) for batch in batches))


def drift(settings: Settings, folder: Path) -> dict[str, float]:
    """How far b_k moved (the mean over layers of ‖b' − b‖), and what setting it back does to the validation logits."""
    loaded = load(settings)
    run = start(loaded.settings, loaded.task, loaded.model)
    names, tuned = their_names(run.model), load_file(folder / TRAINED)
    moved = [(tuned[names[n]] - run.before[n]).norm().item() for n in run.before if term_of(n) == "k"]
    examples = next(iter(loaded.valid.values()))

    def logits(take: Callable[[str], bool]) -> Float[Tensor, "N K"]:
        for name, value in run.before.items():
            run.trained[name].data.copy_(tuned[names[name]] if take(name) else value)
        return predict(run, examples)

    trained, put_back = logits(lambda name: True), logits(lambda name: term_of(name) != "k")
    return {
        "moved": sum(moved) / len(moved),
        "effect": (trained - put_back).abs().max().item(),
        "predictions_changed": int((trained.argmax(1) != put_back.argmax(1)).sum()),
    }


def tables(record: dict[str, Any]) -> list[Table]:
    """The means over the layers, in the order of Mag+Angle, and the drift of b_k."""
    scores: dict[str, Scores] = record["scores"]
    ranking = Table("term", *(measure.replace("_", " + ") for measure in scores), title="mean over layers", box=None)
    for term in sorted(scores["mag_angle"], key=lambda term: -mean(scores["mag_angle"][term])):
        ranking.add_row(term, *(f"{mean(by_term[term]):.3g}" for by_term in scores.values()))
    moved = Table("b_k trained alone", "moved by", "effect on logits", "predictions changed", box=None)
    for name, row in record["drift"].items():
        moved.add_row(name, f"{row['moved']:.2e}", f"{row['effect']:.1e}", str(row["predictions_changed"]))
    return [ranking, moved]


def mean(values: list[float]) -> float:
    """Over the layers, as the figure's last column."""
    return sum(values) / len(values)


def heat_maps(scores: Mapping[str, Scores]) -> "Figure":
    """One panel a measure: terms from most to least important, a column a layer and one for the mean."""
    from matplotlib.figure import Figure

    layers = len(next(iter(next(iter(scores.values())).values())))
    figure = Figure(figsize=(1.5 + 0.55 * layers, 3.2 * len(scores)), layout="constrained")
    for axes, (measure, by_term) in zip(figure.subplots(len(scores), 1), scores.items(), strict=True):
        terms = sorted(by_term, key=lambda term: -mean(by_term[term]))
        rows = [[*by_term[term], mean(by_term[term])] for term in terms]
        image = axes.imshow(rows, cmap="Blues", aspect="auto")
        axes.set(title=measure, yticks=range(len(terms)), yticklabels=terms, xticks=range(layers + 1))
        axes.set_xticklabels([*map(str, range(1, layers + 1)), "mean"])
        for row, values in enumerate(rows):
            axes.text(layers + 0.6, row, f"{values[-1]:.3g}", va="center", fontsize=8)
        figure.colorbar(image, ax=axes, pad=0.12)
    return figure
