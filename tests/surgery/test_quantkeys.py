"""K1 applied to a key cache: quantisers as stated, shifts only where certify allows them, refusals elsewhere."""

import math

import pytest
import torch
from checkpoints import inputs, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from minibeft.certificate.certify import certify
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.surgery import quantkeys as module
from minibeft.surgery.quantkeys import BITS, QUANTISERS, Quantiser, best_shift, mean_shift, quantkeys, require_freedom
from minibeft.surgery.report import draw_study
from minibeft.theory.draws import Draws
from minibeft.verification.probe import probe


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
    shift = mean_shift(k, real)
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

    best = best_shift(k, real, quantiser)
    least = loss(best)
    assert least < loss(mean_shift(k, real)) < loss(torch.zeros_like(best))
    generator = Draws(2)
    for _ in range(100):
        step = generator.normal(*best.shape, dtype=best.dtype)
        assert loss(best + 0.05 * step) > least * (1 - 1e-3)


def test_by_channel_the_best_symmetric_shift_of_one_sentence_is_the_middle():
    k, _ = keys(offset=3.0)
    k, real = k[:1], torch.ones(1, 1, 5, 1, dtype=torch.bool)
    middle = (k.amin(2) + k.amax(2)) / 2  # (1, G, D)
    best = best_shift(k, real, Quantiser("channel", True))
    assert (best[:, 0] - middle[0]).abs().max() < 0.01 * k.std()  # what 150 steps of descent leave


@pytest.mark.parametrize(("family", "shifts"), [("bert", 4), ("roberta", 4), ("opt", 4), ("gptj", 3), ("qwen2", 4)])
def test_the_study_shifts_the_keys_as_they_are_cached(family, shifts, tmp_path, monkeypatch):
    """Rotary positions included: the keys are cached after the turn. Without b_k there is one shift less."""
    monkeypatch.setattr(module, "STEPS", 20)
    model = write_checkpoint(tmp_path / family, family)
    study = quantkeys(model)
    assert study.head_size == 6
    assert (study.calibration, study.evaluation) == (4, 4)
    assert len(study.rows) == len(QUANTISERS) * len(BITS) * shifts
    found = {(r.quantiser, r.bits, r.shift): r for r in study.rows}
    for (name, bits, shift), row in found.items():
        assert 0 < row.key < math.inf
        assert 0 < row.weights < 1
        assert 0 < row.output < math.inf
        if bits == 8:
            assert row.key < found[name, 4, shift].key / 8  # 17 times smaller steps
        if name == "channel, min-max" and shift != "b_k":
            assert math.isclose(row.key, found[name, bits, "zero"].key, rel_tol=1e-3)  # float32 keys, rounding alone


@pytest.mark.parametrize("family", ["opt", "llama", "gptj"])
def test_without_quantisation_a_shift_changes_nothing(family, tmp_path, monkeypatch):
    """The freedom itself, under rotary positions too: with a quantiser that keeps every bit, P and O stay within
    float32 rounding, and would not if the keys were shifted before they are turned."""
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(Quantiser, "__call__", lambda _, k, *__: k)
    for row in quantkeys(write_checkpoint(tmp_path / family, family)).rows:
        assert row.weights < 1e-6  # u₃₂ times logits of a few units
        assert row.output < 1e-6


def test_a_shift_before_the_turn_is_not_free(tmp_path):
    """Negative twin: b_k moved by a constant under rotary positions moves P (K4)."""
    loaded = load_model(write_checkpoint(tmp_path / "qwen2", "qwen2"), task="hidden")
    layer = probe(loaded, inputs(tmp_path / "qwen2"))[0]
    assert layer.b_k is not None
    assert (layer.weights(b_k=layer.b_k + 1) - layer.weights()).abs().max() > 0.01


@pytest.mark.parametrize(
    ("change", "why"),
    [({"model_type": "gpt_oss"}, "no-sink"), ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "no-softcap")],
)
def test_refused_where_the_row_does_not_share_the_shift(change, why):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    verdict = certify(sizes | change).verdict("k")
    assert why in verdict.broken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "certify", lambda _: certify(sizes | change))
        with pytest.raises(BadInput, match=f"may change this model .*{why}"):
            require_freedom("model")


def test_the_exported_shifts_are_the_mean_keys(tmp_path):
    model = write_checkpoint(tmp_path / "llama", "llama")
    study = quantkeys(model)
    study.export(tmp_path / "shifts.safetensors")
    found = load_file(tmp_path / "shifts.safetensors")
    assert sorted(found) == ["layers.0.key_shift", "layers.1.key_shift"]
    assert all(torch.equal(found[f"layers.{i}.key_shift"], shift) for i, shift in enumerate(study.shifts))


def test_the_picture_shows_each_shift_beside_none(tmp_path, monkeypatch):
    """A bar for each quantiser, width and shift: the error that it leaves, as a share of that without."""
    monkeypatch.setattr(module, "STEPS", 2)
    study = quantkeys(write_checkpoint(tmp_path / "bert", "bert"))
    draw_study(study, figure := pytest.importorskip("matplotlib.figure").Figure())
    (axes,) = figure.axes
    found = {(r.quantiser, r.bits, r.shift): r.output for r in study.rows}
    bars = {box.get_label(): [bar.get_height() for bar in box] for box in axes.containers}
    assert bars == {
        shift: [found[q, bits, shift] / was for (q, bits, other), was in found.items() if other == "zero"]
        for shift in ("mean", "best", "b_k")
    }


def test_one_sentence_is_too_few(tmp_path):
    (tmp_path / "text").write_text("It was dull .\n")
    with pytest.raises(BadInput, match="holds one sentence"):
        quantkeys(write_checkpoint(tmp_path / "opt", "opt"), text=tmp_path / "text")
