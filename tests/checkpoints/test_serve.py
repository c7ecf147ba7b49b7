"""Adapters side by side answer as each does in a model of its own, in one batch, with b_v folded where V2 holds."""

from pathlib import Path

import pytest
import torch
from small_run import make_adapters, make_model
from tolerance import assert_agrees, samples
from torch import Tensor

from minibeft.checkpoints import serve
from minibeft.checkpoints.adapters import Adapter, load_adapted, load_adapter, save_adapter
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.serve import load_adapters
from minibeft.errors import BadInput
from minibeft.models.config import Backend
from minibeft.models.packed.sets import Rows, Served
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws

IDS = Draws(3).integers(4, 34, 6, 9)
MASK = (torch.arange(9) < torch.tensor([5, 9, 1, 8, 3, 9])[:, None]).long()
WHO = torch.tensor([2, 0, 1, 1, 2, 0])


@pytest.fixture
def places(tmp_path) -> tuple[Path, list[Path]]:
    """A model, and adapters of b_v, of b_q, and of every bias, each with a head."""
    base = make_model(tmp_path / "model")
    return base, make_adapters(base, tmp_path)


def apart(models: list[Transformer]) -> Tensor:
    """Each sequence's logits from a model with only its own adapter."""
    with torch.no_grad():
        rows = [models[n].eval().classify(IDS[i : i + 1], MASK[i : i + 1]) for i, n in enumerate(WHO.tolist())]
    return torch.cat(rows)


def mixed(base: Path, folders: list[Path], backend: Backend = "fused") -> Tensor:
    model = load_adapters(load_model(base, task="classification", dtype=torch.float64, backend=backend), folders)
    with torch.no_grad():
        return model.eval().classify(IDS, MASK, adapters=WHO)


def compare(base: Path, folders: list[Path], backend: Backend = "fused") -> None:
    models = [load_adapted(base, folder, dtype=torch.float64) for folder in folders]
    assert_agrees(mixed(base, folders, backend), samples(apart, models, torch.float64), apart(models), what="logits")


@pytest.mark.parametrize("backend", ["fused", "triton"])
def test_each_sequence_is_answered_by_its_adapter(backend, places):
    if backend == "triton":
        pytest.importorskip("triton")
    compare(*places, backend=backend)


def test_on_kernels_each_row_takes_its_set(places, monkeypatch):
    """Negative twin of the above."""
    pytest.importorskip("triton")
    of_sets = Rows.of_sets
    monkeypatch.setattr(Rows, "of_sets", lambda *a: (o := of_sets(*a))._replace(each=(o.each + 1) % 3))
    with pytest.raises(AssertionError, match="logits: error"):
        compare(*places, backend="triton")


def test_the_model_itself_takes_adapters(places):
    """Logits as classify() gives them, and the hidden states of every token."""
    base, folders = places
    model = load_adapters(load_model(base, task="classification", dtype=torch.float64), folders)
    models = [load_adapted(base, folder, dtype=torch.float64) for folder in folders]

    def hidden(models: list[Transformer]) -> Tensor:
        with torch.no_grad():
            each = [models[n](IDS[i : i + 1], MASK[i : i + 1]).hidden for i, n in enumerate(WHO.tolist())]
        return torch.cat(each) * MASK[..., None]

    with torch.no_grad():
        found = model(IDS, MASK, adapters=WHO)
        assert_agrees(found.logits, samples(apart, models, torch.float64), apart(models), what="logits")
    assert_agrees(found.hidden, samples(hidden, models, torch.float64), hidden(models), what="hidden")


def test_the_value_bias_is_served_after_attention(places):
    base, folders = places
    served = load_adapters(load_model(base, task="classification"), folders).served
    assert served is not None
    assert not any("attention.v" in name for name in served.tables)
    assert sum("attention.o" in name for name in served.tables) == 2
    assert served.head["dense.weight"].ndim == 2, "what no adapter changes is there once"
    assert served.head["out.weight"].shape == (3, 2, 16)


@pytest.mark.parametrize("bug", ["another's bias", "b_v is not folded"])
def test_the_comparison_sees(bug, places, monkeypatch):
    if bug == "another's bias":
        pick = Rows.pick
        monkeypatch.setattr(Rows, "pick", lambda rows, count: (pick(rows, count) + 1) % 3)
    else:
        monkeypatch.setattr(
            serve, "fold_values", lambda _, found: [each.pop(n) for each in found for n in [*each] if ".v." in n]
        )
    with pytest.raises(AssertionError, match="logits: error"):
        compare(*places)


def test_a_map_that_adapters_replace_whole():
    """RoBERTa's head has one; whole numbers, so that nothing rounds."""
    draws = Draws(1)
    weight, bias, x = (draws.integers(-9, 9, *shape).double() for shape in ((3, 5, 4), (3, 5), (6, 4)))
    found = Served({}, {"dense.weight": weight, "dense.bias": bias}, []).map("dense", WHO)(x)
    assert torch.equal(found, torch.stack([weight[n] @ x[i] + bias[n] for i, n in enumerate(WHO.tolist())]))


def test_what_cannot_be_served_together_is_refused(places, tmp_path):
    base, folders = places
    with pytest.raises(BadInput, match="need an encoder's classifier"):
        load_adapters(load_model(base, task="hidden"), folders)
    for backend in ("plain", "fused"):
        model = load_model(base, task="classification", backend=backend)
        with pytest.raises(ValueError, match="names one that is not loaded; there are 0"):
            model.classify(IDS, MASK, adapters=WHO)
        with pytest.raises(ValueError, match="names one that is not loaded; there are 0"):
            model(IDS, MASK, adapters=WHO)
        with pytest.raises(ValueError, match="adapters go with input_ids"):
            model(adapters=WHO)
    with pytest.raises(ValueError, match="names one that is not loaded; there are 2"):
        load_adapters(model, folders[:2]).classify(IDS, MASK, adapters=WHO)
    one = load_adapter(folders[0])
    saved = {
        name: torch.cat([value, value[:1]]) if "classifier" in name else value for name, value in one.saved.items()
    }
    save_adapter(Adapter(one.biases, saved, one.config, ("a", "b", "c")), tmp_path / "three")
    with pytest.raises(BadInput, match="different numbers of classes"):
        load_adapters(model, [folders[0], tmp_path / "three"])
    save_adapter(Adapter(one.biases, {}, one.config | {"modules_to_save": None}), tmp_path / "no head")
    load_adapters(model, [tmp_path / "no head"])  # the model's own
    model.fresh = frozenset({"head.out.weight", "head.out.bias"})
    with pytest.raises(BadInput, match=r"no head: has no classifier, nor has the model \(head.out.bias\)"):
        load_adapters(model, [folders[0], tmp_path / "no head"])
