"""Every family computes what transformers computes: hidden states, logits and gradients, on drawn configurations."""

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import Unrounded, assert_same, in_float64
from tiny import CASES, Batch, batch, configurations, reference
from torch import Tensor

import minibeft
from minibeft.config import Backend, Task
from minibeft.families import FAMILIES
from minibeft.model import Transformer

Run = dict[str, Tensor]
EXAMPLES = settings(max_examples=20)
seeds = st.integers(0, 2**31)
paddings = st.sampled_from(["none", "left", "right"])


def cotangent(x: Tensor, seed: int) -> Tensor:
    """A fixed random direction: with it as ∂L/∂x, one backward pass tests every gradient."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)


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
    """Ours."""
    output = model(*b)
    run = backward(output.hidden, output.logits, b.attention_mask.bool())
    return gather(run, {name: p.grad for name, p in model.named_parameters()})


def run_theirs(model: Any, b: Batch, ours: Transformer) -> Run:
    """transformers', with its gradients under our names."""
    types = {} if b.token_type_ids is None else {"token_type_ids": b.token_type_ids}
    output = model(input_ids=b.input_ids, attention_mask=b.attention_mask, output_hidden_states=True, **types)
    run = backward(output.hidden_states[-1], getattr(output, "logits", None), b.attention_mask.bool())
    c, parameters = ours.config, dict(model.named_parameters())
    family = FAMILIES[c.family]
    prefix = "" if c.task == "hidden" else family.prefix
    names = {name: family.their_name(name, c.task, prefix) for name, _ in ours.named_parameters()}
    return gather(run, {name: parameters[theirs].grad for name, theirs in names.items()})


def load(theirs: Any, dtype: torch.dtype, backend: Backend) -> Transformer:
    """Our model with transformers' weights, the way every user gets one."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return minibeft.load_model(folder, dtype=dtype, backend=backend)


def runs(theirs: Any, b: Batch, ours: Transformer) -> tuple[Run, list[Run]]:
    """Gold, and the runs that sample the rounding error."""
    golds = [in_float64(theirs, nudge) for nudge in (None, 1, 2, 3)]
    with Unrounded():
        gold, *nudged = [run_theirs(model, b, ours) for model in golds]
    return gold, [run_theirs(theirs, b, ours), *nudged]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_agrees_with_transformers(family: str, task: Task):
    @EXAMPLES
    @given(configurations(family, task), seeds, paddings, st.integers(2, 12), st.sampled_from(["fused", "plain"]))
    def agrees(raw: dict[str, Any], seed: int, padding: str, length: int, backend: Backend):
        theirs, b = reference(raw, seed), batch(raw, seed, rows=4, length=length, padding=padding)
        ours, ours64 = (load(theirs, dtype, backend) for dtype in (torch.float32, torch.float64))
        gold, plains = runs(theirs, b, ours)
        run, run64 = run_ours(ours, b), run_ours(ours64, b)
        assert run.keys() == gold.keys()
        for name in gold:
            # b_k's gradient is exactly zero without rotary positions (K2), and b_q's when a query sees one key: it is
            # v's gradient that sets the scale of what rounding makes of them.
            beside = [name, name.replace("attention.q", "attention.v").replace("attention.k", "attention.v")]
            candidate, candidate64, exact, *others = (
                torch.cat([r[n] for n in beside]) if beside[0] != beside[1] else r[name]
                for r in (run, run64, gold, *plains)
            )
            assert_same(candidate, candidate64, exact, others, name)

    agrees()
