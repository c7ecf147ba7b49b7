"""The freedom of K1 used on a key cache: quantisers as stated, shifts where certify allows, refusals elsewhere."""

import math

import pytest
import torch
from checkpoints import write_checkpoint
from torch import Tensor

from minibeft.errors import BadInput
from minibeft.surgery import quantkeys as module
from minibeft.surgery.quantkeys import BITS, QUANTISERS, Quantiser, best_shift, free_dims, mean_shift, quantkeys
from minibeft.theory.draws import Draws

ALL = torch.ones(8, dtype=torch.bool)


def keys(seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Keys (B 3, G 2, S 5, D 8) in float64 and which of the tokens are real; `offset` scales a constant per channel."""
    generator = Draws(seed)
    k = generator.normal(3, 2, 5, 8)
    k += offset * generator.normal(2, 1, 8)
    real = torch.ones(3, 1, 5, 1, dtype=torch.bool)
    real[0, :, 3:] = False
    return k, real


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.name)
@pytest.mark.parametrize("bits", BITS)
def test_at_most_2_to_the_bits_levels_and_half_a_step_of_error(quantiser: Quantiser, bits):
    k, real = keys()
    stored = quantiser(k, real, bits)
    count = 2 ** (bits - 1) - 1 if quantiser.symmetric else 2**bits - 1
    step = quantiser.span(k, real) / count
    inside = real.expand_as(k)
    half = (step / 2 * (1 + 1e-12)).expand_as(k)  # 1e-12: rounding in float64
    assert ((stored - k).abs() <= half)[inside].all()
    rows = stored if quantiser.axis == "token" else stored.mT
    levels = [len(row[m].unique()) for row, m in zip(rows.flatten(0, 2), masks(quantiser, real, k), strict=True)]
    assert max(levels) <= 2**bits


def masks(quantiser: Quantiser, real: Tensor, k: Tensor) -> Tensor:
    """Which entries of each token or channel are real."""
    inside = real.expand_as(k)
    return (inside if quantiser.axis == "token" else inside.mT).flatten(0, 2)


def test_by_hand():
    """Two bits, min-max: levels 0, 1, 2, 3 for entries 0 to 3. Three bits, symmetric: levels −3 to 3."""
    k = torch.tensor([0.0, 0.4, 1.6, 3.0]).view(1, 1, 1, 4)
    real = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert Quantiser("token", False)(k, real, 2).flatten().tolist() == [0, 0, 2, 3]
    k = torch.tensor([-3.0, 0.375, 1.5, 2.625]).view(1, 1, 1, 4)
    assert Quantiser("token", True)(k, real, 3).flatten().tolist() == [-3, 0, 2, 3]
    assert Quantiser("channel", True)(k, real, 3).flatten().tolist() == k.flatten().tolist()  # one token: all ends


def test_constant_keys_come_back_exactly():
    k, real = torch.full((1, 1, 3, 4), 0.3), torch.ones(1, 1, 3, 1, dtype=torch.bool)
    for quantiser in QUANTISERS:
        assert torch.equal(quantiser(k, real, 4), k), quantiser.name


def test_padding_is_in_no_channel():
    k, real = keys()
    spoilt = k.masked_fill(~real, 1e6)
    for quantiser in QUANTISERS:
        one, other = (quantiser(x, real, 4)[real.expand_as(k)] for x in (k, spoilt))
        assert torch.equal(one, other), quantiser.name


def test_min_max_by_channel_moves_with_the_shift_and_no_other_does():
    """The control: there a shift cannot gain."""
    k, real = keys(offset=3.0)
    shift = mean_shift(k, real, ALL)
    for quantiser in QUANTISERS:
        errors = [(quantiser(x, real, 4) - x)[real.expand_as(x)].square().mean() for x in (k, k - shift)]
        same = math.isclose(*(error.item() for error in errors), rel_tol=1e-9)
        assert same != quantiser.feels_shift, quantiser.name


@pytest.mark.parametrize("quantiser", [q for q in QUANTISERS if q.feels_shift], ids=lambda q: q.name)
def test_the_best_shift_beats_zero_mean_and_neighbours(quantiser: Quantiser):
    """The minimum of a convex function: no direction from it goes down by more than the descent left."""
    k, real = keys(offset=3.0)

    def loss(shift: Tensor) -> float:
        inside = real if quantiser.axis == "token" else real.any(-2, keepdim=True)
        return (quantiser.span(k - shift, real).square() * inside).sum().item()

    best = best_shift(k, real, ALL, quantiser)
    least = loss(best)
    assert least < loss(mean_shift(k, real, ALL)) < loss(torch.zeros_like(best))
    generator = Draws(2)
    for _ in range(100):
        step = generator.normal(*best.shape, dtype=best.dtype)
        assert loss(best + 0.05 * step) > least * (1 - 1e-3)


def test_by_channel_the_best_symmetric_shift_of_one_sentence_is_the_middle():
    k, _ = keys(offset=3.0)
    k, real = k[:1], torch.ones(1, 1, 5, 1, dtype=torch.bool)
    middle = (k.amin(2) + k.amax(2)) / 2  # (1, G, D)
    best = best_shift(k, real, ALL, Quantiser("channel", True))
    assert (best[:, 0] - middle[0]).abs().max() < 0.01 * k.std()  # what 150 steps of descent leave


def test_a_shift_stays_on_the_free_dims():
    k, real = keys(offset=3.0)
    free = torch.arange(8) >= 3
    for shift in (mean_shift(k, real, free), best_shift(k, real, free, Quantiser("token", False))):
        assert not shift[..., :3].any()
        assert shift[..., 3:].all()


@pytest.mark.parametrize(("family", "dims"), [("bert", 6), ("roberta", 6), ("opt", 6), ("gptj", 2)])
def test_the_study_shifts_where_k1_holds_and_on_unrotated_dims(family, dims, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 20)
    model = write_checkpoint(tmp_path / family, family)
    study = quantkeys(model)
    assert (study.dims, study.head_size) == (dims, 6)
    assert free_dims(model, 6).sum() == dims
    assert (study.calibration, study.evaluation) == (4, 4)
    assert len(study.rows) == len(QUANTISERS) * len(BITS) * 3
    found = {(r.quantiser, r.bits, r.shift): r for r in study.rows}
    for (name, bits, shift), row in found.items():
        assert 0 < row.key < math.inf
        assert 0 < row.weights < 1
        assert 0 < row.output < math.inf
        if bits == 8:
            assert row.key < found[name, 4, shift].key / 8  # 17 times smaller steps
        if name == "channel, min-max":
            assert math.isclose(row.key, found[name, bits, "zero"].key, rel_tol=1e-3)  # float32 keys, rounding alone


def test_without_quantisation_a_shift_changes_nothing(tmp_path, monkeypatch):
    """K1 in the study itself: with a quantiser that keeps every bit, P and O stay within float32 rounding."""
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(Quantiser, "__call__", lambda _, k, *__: k)
    for row in quantkeys(write_checkpoint(tmp_path / "opt", "opt")).rows:
        assert row.weights < 1e-6  # u₃₂ times logits of a few units
        assert row.output < 1e-6


@pytest.mark.parametrize(("family", "why"), [("llama", "unrotated"), ("qwen2", "unrotated")])
def test_refused_where_every_dim_is_active(family, why, tmp_path):
    model = write_checkpoint(tmp_path / family, family)
    with pytest.raises(BadInput, match=rf"adding a vector to all keys changes this model \(K4: {why}"):
        quantkeys(model)


def test_one_sentence_is_too_few(tmp_path):
    (tmp_path / "text").write_text("It was dull .\n")
    with pytest.raises(BadInput, match="holds one sentence"):
        quantkeys(write_checkpoint(tmp_path / "opt", "opt"), text=tmp_path / "text")
