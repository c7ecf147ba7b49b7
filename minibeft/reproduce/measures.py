"""How much each bias term matters, layer by layer, and what the rank of b_k among them is worth, from finished runs.

Mag+Angle and Magnitude compare the biases before and after all of them were trained together; Fisher looks at the
gradients before. Theorem K5 says what they miss: Adam moves b_k by rounding noise, how far depends on its eps, and the
logits do not change (K1). So b_k is also trained alone, in the ways of DRIFTS, to compare its drift with its effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.checkpoints.adapters import their_names
from minibeft.checkpoints.tensors import read_json
from minibeft.models.biases import BIAS_TERMS, term_of
from minibeft.show.files import write_json
from minibeft.show.progress import steps
from minibeft.training.batches import shuffled
from minibeft.training.importance import fisher, mag_angle, magnitude
from minibeft.training.loading import Loaded, load
from minibeft.training.records import read_trained
from minibeft.training.settings import Settings
from minibeft.training.train import Run, forward, loss_of, predict, start

FISHER_BATCH = 8
IMPORTANCE = "importance.json"
# How b_k is trained alone, to see how far Adam carries it.
DRIFTS: dict[str, dict[str, Any]] = {
    "eps 1e-6": {"eps": 1e-6},
    "eps 1e-8": {"eps": 1e-8},
    "bfloat16": {"dtype": "bfloat16"},
}
Scores = dict[str, list[float]]


def drifting(settings: Settings) -> dict[str, Settings]:
    """Settings to train b_k alone, one for each way in DRIFTS, by its name."""
    return {name: replace(settings, terms="k", **changes) for name, changes in DRIFTS.items()}


def importance_of(runs: Sequence[tuple[Settings, Path]]) -> list[dict[str, Scores]]:
    """The measures of each of these finished runs of all biases. They are kept in the run's folder, because Fisher's
    takes as long as an epoch."""
    found = []
    with steps("importance", len(runs)) as step:
        for settings, folder in runs:
            step(folder.name)
            if not (file := folder / IMPORTANCE).is_file():
                write_json(file, scores_of(settings, folder))
            found.append(read_json(file))
    return found


def scores_of(settings: Settings, folder: Path) -> dict[str, Scores]:
    """The measures of one run."""
    loaded = load(settings)
    run = start(loaded.settings, loaded.task, loaded.model)
    names = {name: their for name, their in their_names(run.model).items() if term_of(name) and name in run.before}
    tuned = read_trained(folder)
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
    """I3 over one pass of the training examples in batches of 8, with dropout off; clipping includes the head."""
    run.model.eval()
    device = torch.device(run.settings.device)
    order = shuffled(loaded.train.lengths, FISHER_BATCH, seed=run.settings.seed, epoch=0, bucketed=True)
    batches = (loaded.train.gather(indices, run.settings.width, device) for indices in order)
    return fisher(
        run.trained, (loss_of(run.task, forward(run.model, run.settings, batch), batch.labels) for batch in batches)
    )


def drift(settings: Settings, folder: Path) -> dict[str, float]:
    """How far b_k moved (the mean over layers of ‖b' − b‖), and what setting it back does to the validation logits."""
    loaded = load(settings)
    run = start(loaded.settings, loaded.task, loaded.model)
    names, tuned = their_names(run.model), read_trained(folder)
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
