"""Every family computes what transformers computes: hidden states, logits and gradients, on drawn configurations."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from parity import Run, joined, run_ours, run_theirs, runs
from rounding import Unrounded, assert_same
from tiny import BERTS, CASES, LAYOUTS, Batch, batch, configurations, load, reference, typical
from tolerance import error, in_float64

from minibeft.models.config import Backend, Task
from minibeft.models.layers import Learned
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws

# Between what rounding does in float64 (1e-15) and what a formula does (1): half of the digits.
HALF_THE_DIGITS = unit_roundoff(torch.float64) ** 0.5
# Without shrinking: configurations are small as they are drawn, and a failure should not take minutes to be told.
EXAMPLES = settings(max_examples=2, phases=(Phase.explicit, Phase.reuse, Phase.generate))
seeds = st.integers(0, 2**31)
paddings = st.sampled_from(["none", "left", "right"])


def assert_same_runs(run: Run, run64: Run, gold: Run, singles: list[Run], doubles: list[Run]) -> None:
    """Hidden states, logits and every gradient."""
    assert run.keys() == gold.keys()
    for name in gold:
        beside = joined(name)
        short, double = ([beside(sample) for sample in of] for of in (singles, doubles))
        assert_same(beside(run), beside(run64), beside(gold), short, double, name)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_agrees_with_transformers(family: str, task: Task):
    @EXAMPLES
    @given(configurations(family, task), seeds, paddings, st.integers(2, 12), st.sampled_from(["fused", "plain"]))
    def agrees(raw: dict[str, Any], seed: int, padding: str, length: int, backend: Backend):
        if task == "classification":
            raw = {"pad_token_id": 1} | raw  # without one transformers' decoders take one text at a time
        theirs, b = reference(raw, seed), batch(raw, seed, rows=4, length=length, padding=padding)
        ours, ours64 = (load(theirs, dtype, backend) for dtype in (torch.float32, torch.float64))
        assert_same_runs(run_ours(ours, b), run_ours(ours64, b), *runs(theirs, b, ours))

    agrees()


@pytest.mark.parametrize("family", LAYOUTS)
def test_float64_in_transformers_is_not_float64(family: str):
    """Why gold needs Unrounded: all but the encoders round to float32 on the way. Encoders agree without it."""
    raw = typical(family, "hidden")
    theirs, b = reference(raw, 3), batch(raw, 3, rows=4, length=8, padding="right")
    ours64 = load(theirs, torch.float64, "plain")
    run64, cast = run_ours(ours64, b)["hidden"], run_theirs(in_float64(theirs), b, ours64)["hidden"]
    with Unrounded():
        gold = run_theirs(in_float64(theirs), b, ours64)["hidden"]
    assert error(run64, gold) < HALF_THE_DIGITS
    assert (error(cast, gold) > HALF_THE_DIGITS) == (family not in BERTS)


ENCODER_DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
DROPOUTS: dict[str, dict[str, float]] = {
    **dict.fromkeys(BERTS, ENCODER_DROPOUT),
    "opt": {"dropout": 0.2, "attention_dropout": 0.3},
    "llama": {"attention_dropout": 0.3},
    "qwen2": {"attention_dropout": 0.3},
    "mistral": {"attention_dropout": 0.3},
    "gptj": {"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4},
}


# Nothing here trains a head that labels tokens, so that one has no dropout.
TRAINED = [(family, task) for family, task in CASES if task != "tokens"]


@pytest.mark.parametrize(("family", "task"), TRAINED)
def test_training_draws_the_same_dropout(family: str, task: Task):
    """With the same seed, backend "plain" drops what transformers drops: embeddings, P, after o and MLP, the head."""
    if family == "opt" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before 5.23 transformers draws one number per layer for OPT's LayerDrop, also where there is none")
    raw = typical(family, task, **DROPOUTS[family])
    theirs, b = reference(raw, 5).train(), batch(raw, 5, rows=4, length=8, padding="right")
    ours, ours64 = (load(theirs, dtype, "plain").train() for dtype in (torch.float32, torch.float64))
    gold, singles, doubles = runs(theirs, b, ours)
    after = torch.get_rng_state()
    run = run_ours(ours, b)
    assert torch.equal(torch.get_rng_state(), after), "another number of random numbers was drawn"
    assert_same_runs(run, run_ours(ours64, b), gold, singles, doubles)
    ours.eval().zero_grad()
    assert error(run_ours(ours, b)["hidden"], gold["hidden"]) > 0.01, (
        "dropout changed nothing: the test would say nothing"
    )


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_parameter_counts(family: str, task: Task):
    """Parity on random parameters means something for each one of them: a change shows. Except b_k, without rotary
    positions (K1); and a pooler that is only carried along."""
    raw = typical(family, task)
    ours, b = load(reference(raw, 7), torch.float64, "fused"), batch(raw, 7, rows=4, length=8, padding="none")
    before = ours(*b)[-1 if task != "hidden" else 0].detach()
    for name, parameter in ours.named_parameters():
        if task == "hidden" and name.startswith("head."):
            continue
        kept = parameter.detach().clone()
        parameter.data = Draws(11).normal(*kept.shape, std=0.5)
        effect = error(ours(*b)[-1 if task != "hidden" else 0].detach(), before)
        silent = name.endswith("attention.k.bias") and isinstance(ours.config.positions, Learned)
        assert (effect < HALF_THE_DIGITS) == silent, f"{name}: effect {effect:.3g}"
        parameter.data = kept


BIASED = [family for family in LAYOUTS if family not in ("gptj", "mistral")]  # which have none in attention


@pytest.mark.parametrize("family", BIASED)
def test_dropping_a_bias_breaks_parity(family: str):
    """Trap: on a freshly made model, whose biases are zero, this would pass for every bias. K1: for b_k it does."""
    raw = typical(family, "hidden")
    theirs, b = reference(raw, 9), batch(raw, 9, rows=4, length=8, padding="left")
    drawn = runs(theirs, b, load(theirs, torch.float32, "plain"))
    for bias in "qkvo":
        without_a_bias(family, bias, theirs, b, *drawn)


def without_a_bias(
    family: str, bias: str, theirs: Any, b: Batch, gold: Run, singles: list[Run], doubles: list[Run]
) -> None:
    """Ours without it is not what theirs computes."""
    ours, ours64 = (load(theirs, dtype, "plain") for dtype in (torch.float32, torch.float64))
    if family == "qwen2" and bias == "o":
        assert all(block.attention.o.bias is None for block in ours.blocks)  # type: ignore[union-attr]
        return
    for model in (ours, ours64):
        for block in model.blocks:
            getattr(block.attention, bias).bias = None
    run, run64 = run_ours(ours, b)["hidden"], run_ours(ours64, b)["hidden"]
    holds = bias == "k" and isinstance(ours.config.positions, Learned)
    with nullcontext() if holds else pytest.raises(AssertionError, match="hidden, float32: error"):
        short, double = ([sample["hidden"] for sample in of] for of in (singles, doubles))
        assert_same(run, run64, gold["hidden"], short, double, "hidden")
