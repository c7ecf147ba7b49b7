"""The protocol: exactly what was asked for trains, padding changes nothing, K3 holds, and a seed decides everything.

K6 is K3 seen on a real model; its record is records/reproduce-biases.json.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import small_settings
from tolerance import assert_agrees, samples
from torch import nn

from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tokenizer import load_tokenizer
from minibeft.errors import BadInput
from minibeft.models.config import ModelConfig
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws
from minibeft.training.batches import Examples, by_length, encode_split, shuffled
from minibeft.training.reparam import FORMS, merge
from minibeft.training.settings import MAX_LENGTH, Settings, resolve
from minibeft.training.tasks import TASKS, find_data, find_task, read_split
from minibeft.training.train import Run, fit, predict, require_exactly, start


def begin(settings: Settings, dtype: torch.dtype = torch.float32, model: Transformer | None = None) -> Run:
    model = model or load_model(settings.model, task="classification", dtype=dtype)
    return start(settings, find_task(settings.task), model)


def examples_of(settings: Settings, split: str = "train"):
    task = find_task(settings.task)
    texts = read_split(task, find_data(task, settings.data), split)
    return encode_split(load_tokenizer(settings.model), texts, max_length=settings.max_length or MAX_LENGTH, pad=0)


def train(
    settings: Settings, dtype: torch.dtype = torch.float32, model: Transformer | None = None
) -> tuple[Run, list[dict]]:
    run, data = begin(settings, dtype, model), examples_of(settings)
    epochs = list(fit(run, data, {"dev": examples_of(settings, "validation")}, lambda step: None))
    return run, [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in epochs]


@given(st.lists(st.integers(1, 128), min_size=1, max_size=700), st.integers(1, 20), st.integers(0, 9), st.booleans())
def test_an_epoch_shows_every_example_once(lengths, size, epoch, bucketed):
    batches = shuffled(torch.tensor(lengths), size, seed=0, epoch=epoch, bucketed=bucketed)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert sorted(torch.cat(by_length(torch.tensor(lengths), size)).tolist()) == list(range(len(lengths)))


def test_buckets_save_padding_and_stay_random():
    lengths = Draws(0).integers(3, 60, 1000)

    def computed(bucketed: bool) -> int:
        batches = shuffled(lengths, 16, seed=0, epoch=0, bucketed=bucketed)
        return sum(len(b) * int(lengths[b].max()) for b in batches)

    real = int(lengths.sum())
    assert computed(True) < 1.15 * real < 1.5 * real < computed(False)
    orders = [torch.cat(shuffled(lengths, 16, seed=s, epoch=e, bucketed=True)) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(orders[i], orders[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_batch_is_its_examples_and_nothing_else(tmp_path):
    data = examples_of(small_settings(tmp_path))
    batch = data.gather(torch.tensor([3, 0]), 40, torch.device("cpu"))
    assert batch.input_ids.shape == (2, 40)
    for row, index in enumerate((3, 0)):
        real = batch.attention_mask[row].bool()
        assert int(real.sum()) == data.lengths[index]
        assert torch.equal(batch.input_ids[row][real], data.ids[index][: data.lengths[index]])
        assert (batch.input_ids[row][~real] == 0).all()


def test_pairs_get_token_types(tmp_path):
    batch = examples_of(small_settings(tmp_path, task="stsb")).gather(torch.tensor([0]), None, torch.device("cpu"))
    second = batch.token_type_ids[0] == 1
    assert second.any()
    assert batch.input_ids[0][second][-1] == 3  # the last [SEP]


@pytest.mark.parametrize("wrong", ["one more", "one less", "none"])
def test_training_another_set_than_asked_for_fails(wrong):
    model = nn.Linear(2, 2)
    asked = dict(model.named_parameters())
    if wrong == "one more":
        del asked["weight"]
    elif wrong == "one less":
        model.weight.requires_grad_(False)
    else:
        model.requires_grad_(False)
        asked = {}
    with pytest.raises(RuntimeError, match="nothing would train" if wrong == "none" else "differ in weight"):
        require_exactly(model, asked)


@pytest.mark.parametrize("form", ["plain", "lora", "vera", "vera1d", "dora"])
def test_only_what_was_asked_for_moves(tmp_path, form):
    settings = small_settings(tmp_path, terms="q", form=form, rank=2, epochs=1)
    fresh, (run, _) = begin(settings), train(settings)
    state = fresh.model.state_dict()
    moved = {name for name, value in run.model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == set(run.trained)
    assert len([name for name in moved if "attention.q" in name]) >= 2


def test_evaluation_does_not_depend_on_padding(tmp_path):
    """Logits of dynamic padding and of padding to 40 differ by rounding."""
    settings = small_settings(tmp_path)
    data = examples_of(settings, "validation")
    padded = replace(settings, pad="40")
    gold = predict(begin(padded, torch.float64), data)
    dynamic = predict(begin(settings), data)
    assert_agrees(dynamic, predictions(padded, data), gold, what="logits")
    assert torch.equal(dynamic.argmax(1), predict(begin(padded), data).argmax(1))


def predictions(settings: Settings, data: Examples, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Samples of the logits' rounding in this type."""
    run = begin(settings, torch.float64)
    return samples(lambda model: predict(replace(run, model=model), data), run.model, dtype)


def test_predictions_come_in_the_examples_order(tmp_path):
    settings = small_settings(tmp_path)
    run, data = begin(settings, torch.float64), examples_of(settings, "validation")
    together, rounding = predict(run, data), predictions(settings, data, torch.float64)
    for i in (0, 7, len(data) - 1):
        one = Examples(data.ids[i : i + 1], data.types[i : i + 1], data.lengths[i : i + 1], data.labels[i : i + 1], 0)
        assert_agrees(predict(run, one)[0], [each[i] for each in rounding], together[i], what=f"logits of example {i}")


def test_evaluation_would_see_padding_that_is_not_masked(tmp_path):
    """Negative twin: one padding token that the mask lets through moves the logits beyond that."""
    settings = small_settings(tmp_path)
    data = examples_of(settings, "validation")
    gold, rounding = predict(begin(settings, torch.float64), data), predictions(settings, data)
    longer = torch.where(data.lengths < data.ids.shape[1], data.lengths + 1, data.lengths)
    with pytest.raises(AssertionError, match="logits"):
        assert_agrees(predict(begin(settings), replace(data, lengths=longer)), rounding, gold, what="logits")


def test_k3_training_the_key_bias_is_training_the_head(tmp_path):
    """The same metrics at every epoch, and losses that differ by rounding. Negative twin: those of b_q and b_v differ
    by more."""

    def losses(terms: str, dtype: torch.dtype, model: Transformer | None = None) -> tuple[torch.Tensor, list[dict]]:
        _, epochs = train(small_settings(tmp_path, terms=terms, epochs=2), dtype, model)
        return torch.tensor([epoch["loss"] for epoch in epochs], dtype=torch.float64), [e["dev"] for e in epochs]

    none, metrics = losses("none", torch.float64)
    assert losses("k", torch.float32)[1] == losses("none", torch.float32)[1]
    model = load_model(small_settings(tmp_path).model, task="classification", dtype=torch.float64)
    rounding = samples(lambda off: losses("none", torch.float64, off)[0], model, torch.float64)
    key, key_metrics = losses("k", torch.float64)
    assert key_metrics == metrics
    assert_agrees(key, rounding, none, what="losses")
    for terms in ("q", "v"):
        with pytest.raises(AssertionError, match="losses: error"):
            assert_agrees(losses(terms, torch.float64)[0], rounding, none, what="losses")


def test_a_seed_decides_everything(tmp_path):
    settings = small_settings(tmp_path)
    (first, a), (second, b), (_, c) = train(settings), train(settings), train(replace(settings, seed=1))
    assert a == b != c
    for name, value in first.trained.items():
        assert torch.equal(value, second.trained[name])


def test_training_learns(tmp_path):
    run, epochs = train(small_settings(tmp_path, terms="all", epochs=40, dropout=False))
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert len(run.epochs) == 40


def test_bfloat16_keeps_what_trains_in_float32_and_learns_alike(tmp_path):
    settings = small_settings(tmp_path, terms="v", dropout=False, epochs=4)
    _, single = train(settings)
    run, half = train(replace(settings, dtype="bfloat16"))
    assert all(value.dtype == torch.float32 for value in run.trained.values())
    assert run.model.get_parameter("blocks.0.attention.v.weight").dtype == torch.bfloat16
    assert half != single
    assert half[-1]["loss"] < half[0]["loss"]


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_leaves_the_bias_below_a_form_as_it_is(tmp_path, form):
    """To the bit: it is frozen, but added in float32; and what the form makes of it can be put in its place."""
    settings = small_settings(tmp_path, terms="v", form=form, dtype="bfloat16", epochs=1)
    run, _ = train(settings)
    below = run.model.get_parameter("blocks.0.attention.v.parametrizations.bias.original")
    assert torch.equal(below, load_model(settings.model).get_parameter("blocks.0.attention.v.bias"))
    merge(run.model)
    assert run.model.get_parameter("blocks.0.attention.v.bias").dtype == torch.float32


def test_a_regression_trains(tmp_path):
    run, epochs = train(small_settings(tmp_path, task="stsb", terms="all", epochs=6, dropout=False))
    assert run.model.config.labels == 1
    assert set(epochs[0]["dev"]) == {"pearson", "spearman"}
    assert "train_accuracy" not in epochs[0]
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"not finite in epoch 0; lower --learning-rate"):
        train(small_settings(tmp_path, terms="full", learning_rate=1e30))


def test_the_protocols_values_fill_what_is_not_given():
    base = Settings("m", "sst2")
    config = object.__new__(ModelConfig)
    object.__setattr__(config, "attention", (None,) * 12)
    object.__setattr__(config, "positions", None)
    object.__setattr__(config, "family", "bert")

    def filled(task: str = "sst2", **changes) -> Settings:
        return resolve(replace(base, task=task, **changes), TASKS[task], 5428, config)

    found = filled()
    assert (found.learning_rate, found.epochs, found.examples, found.batch) == (4e-4, 16, 1000, 16)
    assert (found.beta1, found.beta2, found.eps, found.weight_decay, found.clip) == (0.9, 0.999, 1e-6, 0.0, 1.0)
    assert filled(form="lora").epochs == 50
    assert filled(regime="high").examples == 11000
    assert filled("wic").examples == 5428
    assert filled("rte", learning_rate=0.5, epochs=2, examples=7).learning_rate == 0.5
    assert filled(terms="full").learning_rate == 1e-5
    object.__setattr__(config, "family", "roberta")
    assert filled().epochs == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": "w"}, "not a bias term"),
        ({"form": "lore"}, "--form lore: choose among plain"),
        ({"form": "lora", "terms": "none"}, "needs bias terms"),
        ({"regime": "tiny"}, "--regime"),
        ({"dtype": "float16"}, "--dtype"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0: must be above 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"examples": 0}, "--examples 0"),
        ({"held_out": -1}, "--held-out -1"),
        ({"beta2": 1.0}, "--beta2"),
        ({"pad": "64"}, "--pad 64: bucket, longest, or a number of tokens, 128 to 65536"),
        ({"pad": "²"}, "--pad"),
        ({"pad": "100000000"}, "--pad"),
        ({"learning_rate": float("inf")}, "--learning-rate inf: must be above 0"),
        ({"weight_decay": float("nan")}, "--weight-decay nan"),
        ({"data_seed": 2**32}, "--data-seed"),
        ({"batch": 2**63}, "--batch"),
        ({"device": "x"}, "--device x: must be auto, cpu or cuda"),
        ({"device": "cuda:999"}, "--device cuda:999: torch sees no such GPU here"),
        ({"pad": "short"}, "--pad short"),
        ({"clip": float("nan")}, "--clip nan"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        Settings("m", "sst2", **changes).check()
