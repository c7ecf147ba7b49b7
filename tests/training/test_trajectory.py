"""Step by step the same losses as transformers' BertForSequenceClassification, dropout on, for 24 steps; on minilm 8.

Both draw the same random numbers in the same order: plain attention, one head initialisation, batches padded alike.
Gold is transformers' run in float64; rounding is sampled by its runs from weights that are a few roundings off.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_run import small_settings
from tolerance import assert_agrees, in_other_type, samples
from torch import Tensor

from minibeft.checkpoints.adapters import their_names
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tokenizer import load_tokenizer
from minibeft.errors import BadInput
from minibeft.training.batches import Batch, encode_split, shuffled
from minibeft.training.settings import BATCH, MAX_LENGTH, Settings
from minibeft.training.tasks import draw, find_data, find_task, read_split
from minibeft.training.train import Run, start, train_step

transformers = pytest.importorskip("transformers")
STEPS = 24


def batches_of(settings: Settings, steps: int = STEPS) -> list[Batch]:
    """The first batches, in the official manner: from a permutation, all padded to the same width."""
    task = find_task(settings.task)
    train, _ = draw(read_split(task, find_data(task, settings.data), "train"), settings.examples or 0, 0, 0)
    examples = encode_split(load_tokenizer(settings.model), train, max_length=settings.max_length or MAX_LENGTH, pad=0)
    order: list[Tensor] = []
    while len(order) < steps:
        order += shuffled(examples.lengths, settings.batch or BATCH, seed=0, epoch=len(order), bucketed=False)
    return [examples.gather(indices, settings.width, torch.device("cpu")) for indices in order[:steps]]


def begin(settings: Settings, dtype: torch.dtype) -> Run:
    model = load_model(find(settings.model), task="classification", dtype=dtype, backend="plain")
    return start(settings, find_task(settings.task), model)


def ours(settings: Settings, batches: list[Batch], dtype: torch.dtype) -> tuple[Tensor, list[str]]:
    run = begin(settings, dtype)
    run.model.train()
    names = their_names(run.model)
    return torch.stack([train_step(run, batch)[0] for batch in batches]), [names[name] for name in run.trained]


def classifier(settings: Settings) -> Any:
    """transformers' model in float64 with the head that we begin with."""
    model = transformers.BertForSequenceClassification.from_pretrained(
        find(settings.model), attn_implementation="eager", num_labels=2, dtype=torch.float64
    ).train()
    head = begin(settings, torch.float64).model.head
    assert head is not None
    model.classifier.load_state_dict(head.out.state_dict())  # type: ignore[union-attr]
    return model


def theirs(settings: Settings, batches: list[Batch], trained: list[str], model: Any) -> Tensor:
    """The protocol written out with transformers and torch: AdamW, clipping, no schedule."""
    for name, value in model.named_parameters():
        value.requires_grad_(name in trained)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(trained)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate or 0.0, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0
    )
    torch.manual_seed(settings.seed)
    losses = []
    for batch in batches:
        logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
        loss = F.cross_entropy(logits, batch.labels.long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def compare(settings: Settings, steps: int = STEPS) -> None:
    batches = batches_of(settings, steps)
    candidate, trained = ours(settings, batches, torch.float32)
    gold, singles = gold_and_rounding(settings, batches, trained)
    assert_agrees(candidate, singles, gold, what="losses in float32")
    double, _ = ours(settings, batches, torch.float64)
    doubles = in_other_type(singles, gold, torch.float32, torch.float64)
    assert_agrees(double, doubles, gold, what="losses in float64")


def gold_and_rounding(settings: Settings, batches: list[Batch], trained: list[str]) -> tuple[Tensor, list[Tensor]]:
    """transformers' losses in float64, and the samples of float32's rounding."""

    def run(model: Any) -> Tensor:
        return theirs(settings, batches, trained, model)

    return run(classifier(settings)), samples(run, classifier(settings))


RATES = {"v": 1e-2, "q": 1e-2, "k": 1e-2, "none": 1e-2, "all": 1e-2, "full": 1e-4}


@pytest.mark.parametrize("terms", RATES)
def test_losses_follow_transformers_on_a_small_random_bert(tmp_path, terms):
    compare(small_settings(tmp_path, terms=terms, pad="24", backend="plain", learning_rate=RATES[terms]))


@pytest.mark.slow
def test_losses_follow_transformers_on_minilm(tmp_path):
    try:
        folder = find("minilm")
    except BadInput:
        pytest.skip("minilm is not installed")
    small = small_settings(tmp_path)
    compare(
        Settings(
            model=str(folder),
            task="sst2",
            data=small.data,
            terms="v",
            pad="16",
            max_length=16,
            backend="plain",
            examples=48,
            batch=2,
            learning_rate=4e-3,
            device="cpu",
        ),
        steps=8,
    )


def test_the_comparison_sees_a_wrong_protocol(tmp_path, monkeypatch):
    """Negative twin: another eps, one more random number, or attention that draws its own, and the losses part."""
    settings = small_settings(tmp_path, terms="v", pad="24", backend="plain")
    batches = batches_of(settings)
    gold, rounding = gold_and_rounding(settings, batches, ours(settings, batches[:1], torch.float64)[1])
    doubles = in_other_type(rounding, gold, torch.float32, torch.float64)
    for wrong in (replace(settings, eps=1e-8), replace(settings, clip=1.001), replace(settings, seed=1)):
        candidate, _ = ours(wrong, batches, torch.float64)
        with pytest.raises(AssertionError, match="error"):
            assert_agrees(candidate, doubles, gold)
