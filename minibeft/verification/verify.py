"""The theorems measured on a checkpoint, layer by layer: what must hold, does it; what must fail, how much."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from minibeft.certificate.certify import certify
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tokenizer import has_tokenizer
from minibeft.errors import BadInput
from minibeft.models.config import Task
from minibeft.models.transformer import Transformer
from minibeft.theory.instance import Instance
from minibeft.theory.theorems import THEOREMS
from minibeft.verification.findings import Report
from minibeft.verification.inputs import read_inputs
from minibeft.verification.layerwise import cache, gradients, keys, queries, values
from minibeft.verification.probe import Batch, probe
from minibeft.verification.whole import effects, whole_model

STEPS = 7  # how often verify reports progress


def verify(
    name: str | Path,
    *,
    task: Task | None = None,
    seed: int = 0,
    inputs: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure what of the catalogue can be seen on a checkpoint; `progress` is told each step's name.

    inputs  a file of sentences, one per line; for a model of images or speech an image, .npy or .safetensors
    """
    progress("loading in float32")
    model = load_model(name, task=task, dtype=torch.float32)
    batch, seen = batch_of(model, name, inputs, seed)
    layers = [layer.filled() for layer in probe(model, batch)]
    report = Report(str(name), model.config.family, settings(model, batch, seed, seen), reason(model))
    report.norms = [norms(model, layer) for layer in layers]
    progress("keys and values, layer by layer in float32")
    report.checks += keys(model, layers, Generator().manual_seed(seed))
    report.checks += values(layers, Generator().manual_seed(seed))
    progress("the whole model in float32")
    single = effects(model, batch, seed)
    del model, layers
    gc.collect()
    progress("loading in float64")
    model = load_model(name, task=task, dtype=torch.float64)
    layers = [layer.filled() for layer in probe(model, batch)]
    progress("queries, layer by layer in float64")
    report.checks += queries(model, layers, Generator().manual_seed(seed))
    progress("gradients in float64")
    report.checks += cache(model, layers, Generator().manual_seed(seed))
    report.checks += gradients(model, batch, layers, Generator().manual_seed(seed))
    progress("the whole model in float64")
    report.checks += whole_model(model, single, effects(model, batch, seed))
    report.checks.sort(key=lambda check: list(THEOREMS).index(check.theorem))
    for check in report.checks:
        if not check.measurable:
            raise BadInput(
                f"{name}: {check.theorem} cannot be measured, because its numbers overflow; the weights are too large"
            )
    return report


def batch_of(model: Transformer, name: str | Path, inputs: Path | None, seed: int) -> tuple[Batch, str]:
    """What the model is run on, and what that is: the file, or else sentences (random tokens where the folder has no
    tokenizer), random images or random spectrograms."""
    features = model.config.features
    if features is None and inputs is None and not has_tokenizer(name):
        ids = torch.randint(model.config.vocab, (4, 16), generator=Generator().manual_seed(seed))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "random tokens, for want of a tokenizer"
    seen = "sentences" if features is None else f"random {features.plural}"
    batch = read_inputs(find(name), inputs, model.config, seed)
    return batch, seen if inputs is None else f"what {inputs.name} holds"


def settings(model: Transformer, batch: Batch, seed: int, seen: str) -> dict[str, Any]:
    """What the numbers depend on besides the checkpoint."""
    b, t = batch["attention_mask"].shape
    biases = sorted(model.config.biases & {"q", "k", "v"})
    return {"seed": seed, "input": seen, "rows": b, "tokens": t, "torch": torch.__version__, "biases": biases}


def reason(model: Transformer) -> str:
    """Why K1 holds here or does not, as certify reads it off the configuration."""
    verdict = certify(model.config.source).verdict("k")
    if verdict.status == "null":
        return f"K1 holds: {verdict.reason}."
    if verdict.status == "unknown":
        return f"certify does not understand this configuration: {verdict.reason}."
    parts = "; ".join(f"{part.status} on entries {part.first}–{part.last} of each head" for part in verdict.dims)
    because = f"K1 does not hold (hypothesis {', '.join(map(repr, verdict.broken))}): {verdict.reason}"
    return f"{because}. b_k is {parts}." if parts else f"{because}."


def norms(model: Transformer, layer: Instance) -> dict[str, float | None]:
    """‖b_q‖, ‖b_k‖ and ‖b_v‖ of one layer."""
    return {n: getattr(layer, f"b_{n}").norm().item() if n in model.config.biases else None for n in "qkv"}
