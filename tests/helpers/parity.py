"""One forward and backward pass of ours and of transformers', under the same names, so that they can be compared."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rounding import Unrounded
from tiny import Batch
from tolerance import in_float64, in_other_type, samples
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from minibeft.checkpoints.layouts import apart
from minibeft.families import BODIES
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws

Run = dict[str, Tensor]


def cotangent(x: Tensor, seed: int) -> Tensor:
    """A fixed random direction: with it as ∂L/∂x, one backward pass tests every gradient."""
    return Draws(seed).normal(*x.shape, dtype=torch.float32).to(x.dtype)


def backward(hidden: Tensor, logits: Tensor | None, real: Tensor) -> Run:
    """Hidden states and logits of the real tokens, after one backward pass through both."""
    run = {"hidden": hidden[real]}
    if logits is not None:
        run["logits"] = logits[real] if logits.ndim == 3 else logits
    torch.stack([(x * cotangent(x, seed)).sum() for seed, x in enumerate(run.values())]).sum().backward()
    return {name: x.detach() for name, x in run.items()}


def gather(run: Run, gradients: dict[str, Tensor | None]) -> Run:
    """Add the gradients, those of all layers side by side. Embeddings are left out: transformers does not train the
    row of the padding token, we do."""
    parts: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        if gradient is not None and not name.startswith("embed."):
            template = name.split(".", 2)[2] if name.startswith("blocks.") else name
            parts.setdefault(template, []).append(gradient.flatten())
    return run | {name: torch.cat(part) for name, part in parts.items()}


def run_ours(model: Transformer, b: Batch) -> Run:
    """Ours; both runs begin at the same random number."""
    torch.manual_seed(0)
    output = model(*b)
    run = backward(output.hidden, output.logits, b.attention_mask.bool())
    return gather(run, {name: p.grad for name, p in model.named_parameters()})


def run_theirs(model: Any, b: Batch, ours: Transformer) -> Run:
    """transformers', with its gradients under our names."""
    torch.manual_seed(0)
    c = ours.config
    family = BODIES[c.family]
    prefix = "" if c.task == "hidden" else family.prefix
    output = called(model, b, prefix + family.names["norm"] if b.features is not None else None)
    run = backward(output.hidden_states[-1], getattr(output, "logits", None), b.attention_mask.bool())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    found = {name: partial(torch.clone, grad) for name, grad in revert_weight_conversion(model, grads).items()}
    found = apart(found, c, Path("gradients"))
    names = {name: family.their_name(name, c.task, prefix) for name, _ in ours.named_parameters()}
    return gather(run, {name: found[theirs]() for name, theirs in names.items() if theirs in found})


def called(model: Any, b: Batch, last: str | None) -> Any:
    """transformers' model on a batch. `last` names the last norm, for models whose list of hidden states ends before
    that norm."""
    if last is None:
        types = {} if b.token_type_ids is None else {"token_type_ids": b.token_type_ids}
        return model(b.input_ids, attention_mask=b.attention_mask, output_hidden_states=True, **types)
    seen: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(lambda *given: seen.append(given[-1]))
    assert b.features is not None
    output = model(b.features.to(next(model.parameters()).dtype))
    hook.remove()
    output.hidden_states = seen
    return output


def runs(theirs: Any, b: Batch, ours: Transformer, *, single: bool = True) -> tuple[Run, list[Run], list[Run]]:
    """Gold, and the runs that sample the rounding error of float32 (where `single`) and of float64. If both are asked
    for, only those of float32 are run; those of float64 are the same errors, scaled down."""

    def run(model: Any) -> Run:
        with Unrounded():
            return run_theirs(model, b, ours)

    gold = run(in_float64(theirs))
    if not single:
        return gold, [], samples(run, theirs, torch.float64)
    singles = samples(run, theirs)
    by_name = {name: [sample[name] for sample in singles] for name in gold}
    scaled = {n: in_other_type(by_name[n], gold[n], torch.float32, torch.float64) for n in gold}
    return gold, singles, [{name: scaled[name][i] for name in gold} for i in range(len(singles))]


def joined(name: str) -> Callable[[Run], Tensor]:
    """What a comparison of `name` looks at. b_k's gradient is exactly zero without rotary positions (K2), and b_q's
    where a query sees one key only: it is v's gradient that sets the scale of what rounding makes of them."""
    value = name.replace("attention.q.", "attention.v.").replace("attention.k.", "attention.v.")
    beside = [name] if value == name else [name, value]
    return lambda run: torch.cat([run[n] for n in beside if n in run])
