"""What a classifier computes from packed tokens is what it computes from padded ones: logits and every gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same
from tolerance import error, samples
from torch import Tensor

from minibeft.checkpoints.load import build_model
from minibeft.models import transformer
from minibeft.models.biases import freeze_except
from minibeft.models.config import Backend
from minibeft.models.packed import dropout, packing
from minibeft.models.packed.packing import Mix, Packing, Spread, mixing
from minibeft.models.transformer import Attention, Transformer
from minibeft.theory.draws import Draws

LENGTHS = (5, 11, 1, 8)
IDS = Draws(3).integers(2, 30, 4, 11)
MASK = (torch.arange(11) < torch.tensor(LENGTHS)[:, None]).long()
TERMS = ["v", "q", "k,v", "m1,ln2", "all", "full", "none"]


def classifier(family: str, dtype: torch.dtype, backend: Backend, terms: str = "full") -> Transformer:
    """Three layers with all parameters redrawn, no dropout."""
    raw: dict[str, Any] = {"model_type": family, "vocab_size": 34, "hidden_size": 16, "num_hidden_layers": 3}
    raw |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 1}
    model, draws = build_model(raw, task="classification", backend=backend), Draws(0)
    for name, value in model.named_parameters():
        mean = float("norm" in name and name.endswith("weight"))
        value.data.copy_(draws.normal(*value.shape, mean=mean, std=0.5))
    freeze_except(model, terms, head=True)
    model.to(dtype).eval().join()
    return model


def results(model: Transformer) -> dict[str, Tensor]:
    """Logits, and the gradient of each parameter that trains; b_q's, b_k's and b_v's together, for b_k's is rounding
    alone (K2)."""
    ids = IDS.masked_fill(MASK == 0, 1)
    logits = model.classify(ids, MASK, torch.zeros_like(ids))
    logits.square().sum().backward()
    found: dict[str, list[Tensor]] = {"logits": [logits.detach()]}
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            shared = "qkv.bias" if name[-6:] in ("q.bias", "k.bias", "v.bias") else name
            found.setdefault(shared, []).append(value.grad.flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}


def compare(family: str, terms: str) -> None:
    """The packed results against the padded ones, in float32 and in float64."""
    plain = classifier(family, torch.float64, "plain", terms)
    exact, singles, doubles = results(plain), samples(results, plain), samples(results, plain, torch.float64)
    packed, packed64 = (results(classifier(family, t, "fused", terms)) for t in (torch.float32, torch.float64))
    assert packed.keys() == exact.keys()
    for name in exact:
        single, double = ([run[name] for run in runs] for runs in (singles, doubles))
        assert_same(packed[name], packed64[name], exact[name], single, double, name)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_packed_is_padded(family: str, terms: str):
    compare(family, terms)


def unmasked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    return MIX(q, k, v, None, *rest)


def keeps_garbage(ctx: Any, x: Tensor, places: packing.Places, size: int) -> Tensor:
    return SPREAD(ctx, x, places._replace(empty=places.empty[:0]), size)


def off_in_k(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv, *rest = MIX_BACKWARD(ctx, do)
    return dq, None if dk is None else 1.001 * dk, dv, *rest


MIX, SPREAD, MIX_BACKWARD = Mix.apply, Spread.forward, Mix.backward
BUGS: dict[str, tuple[Any, str, Any]] = {
    "padding is not masked": (Mix, "apply", staticmethod(unmasked)),
    "padding holds another token's gradient": (Spread, "forward", staticmethod(keeps_garbage)),
    "a gradient is off by a thousandth": (Mix, "backward", staticmethod(off_in_k)),
    "the head reads the second token": (
        Packing,
        "first",
        property(lambda self: self.start + 1, lambda self, v: setattr(self, "start", v)),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_sees(bug: str, monkeypatch: pytest.MonkeyPatch):
    owner, name, wrong = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong, raising=False)
    with pytest.raises(AssertionError, match="error"):
        compare("bert", "full")


def test_the_derivatives_are_right():
    """In float64 against differences, dropout included: the same numbers are drawn each time."""
    places = Packing(MASK, heads=2)
    x = Draws(4).normal(sum(LENGTHS), 3 * 2 * 4).requires_grad_()
    mask = None if places.mask is None else places.mask.double()

    def attend(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        q, k, v = places.spread(x, 3)
        return places.collect(Mix.apply(q, k, v, mask, 0.3))

    assert torch.autograd.gradcheck(attend, x)


def test_there_and_back_is_the_identity():
    places, x = Packing(MASK, heads=2), Draws(5).normal(sum(LENGTHS), 8)
    (grid,) = places.spread(x, 1)
    assert torch.equal(places.collect(grid), x)
    assert (grid.transpose(1, 2)[MASK == 0] == 0).all()
    assert torch.equal(grid.transpose(1, 2)[MASK == 1].flatten(1), x)


def reaches(model: Transformer) -> set[str]:
    """The projections of the lowest block whose result autograd follows."""
    found, attention = set(), model.blocks[0].attention
    assert isinstance(attention, Attention)
    project = attention.project

    def watched(x: Tensor, names: str) -> Tensor:
        out = project(x, names)
        found.update(names if out.requires_grad else ())
        return out

    attention.project = watched  # type: ignore[method-assign]
    model.classify(IDS, MASK)
    return found


@pytest.mark.parametrize(("terms", "followed"), [("v", "v"), ("q", "q"), ("q,v", "qv"), ("m1", ""), ("none", "")])
def test_autograd_stops_at_the_lowest_bias_that_trains(terms: str, followed: str):
    assert reaches(classifier("bert", torch.float32, "fused", terms)) == set(followed)


def test_joined_weights_are_the_same_memory_under_the_same_names():
    apart = classifier("bert", torch.float32, "fused", "full").state_dict()
    model = classifier("bert", torch.float32, "fused", "v")
    assert model.state_dict().keys() == apart.keys()
    assert all(torch.equal(value, apart[name]) for name, value in model.state_dict().items())
    attention = model.blocks[1].attention
    before = model.classify(IDS, MASK)
    attention.k.weight.data.mul_(2)  # type: ignore[union-attr]
    assert torch.equal(attention.joined[16:32], attention.k.weight)  # type: ignore[index, union-attr]
    assert error(model.classify(IDS, MASK), before) > 1e-3
    model.double()  # the weights move: what was joined is not theirs any more
    assert model.classify(IDS, MASK).dtype == torch.float64


@pytest.mark.parametrize(("terms", "joined"), [("v", True), ("full", False)])
def test_joined_projections_go_by_the_frozen_map(terms: str, joined: bool, monkeypatch: pytest.MonkeyPatch):
    calls: list[Tensor] = []
    monkeypatch.setattr(transformer, "frozen_linear", lambda x, *rest: calls.append(x) or F.linear(x, *rest))
    classifier("bert", torch.float32, "fused", terms).classify(IDS, MASK)
    assert bool(calls) == joined


@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_which_attention_a_backend_takes(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    paths: list[bool] = []
    honest = transformer.attend
    monkeypatch.setattr(
        transformer, "attend", lambda *given, **named: (paths.append(named["fused"]), honest(*given, **named))[1]
    )
    classifier("bert", torch.float32, backend)(IDS, MASK)
    assert paths == [backend == "fused"] * 3


def test_four_numbers_share_a_random_word():
    """Exactly so many words are drawn: the next random number is the one that follows them."""
    for size, words in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        dropout.draw_keep(torch.empty(size), 0.5, ours)
        torch.empty(words, dtype=torch.int64).random_(-(2**63), None, generator=theirs)
        assert torch.equal(ours.get_state(), theirs.get_state())


def test_no_dropout_and_each_kind_of_it():
    """With probability 0 none of a million entries is dropped; without dropout the same tensor object is returned."""
    torch.manual_seed(0)
    x = torch.ones(1_000_000)
    assert dropout.draw_keep(x, 0.0).all()
    assert dropout.Dropout(0.0)(x) is x
    assert dropout.Dropout(1e-3)(x) is not x
    assert (type(dropout.make_dropout(0.1, same=True)), type(dropout.make_dropout(0.1, same=False))) == (
        torch.nn.Dropout,
        dropout.Dropout,
    )


def test_attention_drops_what_draw_keep_says_and_keeps_what_its_backward_pass_needs():
    q, k, v = (Draws(n).normal(2, 2, 4, 3) for n in range(3))
    p = (q @ k.mT / 3**0.5).softmax(-1)
    torch.manual_seed(0)
    keep = dropout.draw_keep(p, 0.4)
    torch.manual_seed(0)
    dropped = Mix.apply(q, k, v, None, 0.4)
    torch.testing.assert_close(dropped, dropout.keep_only(keep, p, 0.4) @ v)
    state = torch.get_rng_state()
    torch.testing.assert_close(Mix.apply(q, k, v, None, 0.0), p @ v)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn for no dropout

    def kept(needed: str) -> tuple[Tensor | None, ...]:
        given = [x.clone().requires_grad_(name in needed) for name, x in zip("qkv", (q, k, v), strict=True)]
        mixed = Mix.apply(*given, None, 0.0)  # which holds what its backward pass has
        return mixed.grad_fn.saved_tensors[:5]

    *others, p_kept = kept("v")
    assert others == [None] * 4
    torch.testing.assert_close(p_kept, p)
    for needed in ("q", "k", "qkv"):
        *given, mask, p_kept = kept(needed)
        assert all(one is not None for one in given)
        assert mask is p_kept is None  # P has T entries per token and head: it is computed again


@pytest.mark.parametrize("autocast", [False, True])
def test_the_backward_pass_sees_the_weights_of_the_forward_pass(autocast: bool, monkeypatch: pytest.MonkeyPatch):
    """Bit by bit, also where autocast chooses the types of the forward pass and no longer those of the backward one."""
    seen: list[Tensor] = []
    monkeypatch.setattr(packing, "mixing", lambda *given: (seen.append(mixing(*given)), seen[-1])[1])
    model = classifier("bert", torch.float32, "fused", "q,k,v")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.classify(IDS, MASK).sum()
    loss.backward()
    forward, again = seen[:3], seen[3:]
    assert len(again) == 3
    for one, other in zip(forward, reversed(again), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_classify_packs_for_the_fused_backend_alone(monkeypatch: pytest.MonkeyPatch):
    """The other backends take the way of forward(), and have nothing joined or frozen for the packed one."""
    calls: list[str] = []
    forward = Transformer.forward
    monkeypatch.setattr(
        Transformer, "forward", lambda self, *given: (calls.append(self.backend), forward(self, *given))[1]
    )
    backends: tuple[Backend, ...] = ("fused", "plain")
    for backend in backends:
        model = classifier("bert", torch.float64, backend, "v")
        assert model.classify(IDS, MASK).shape == (4, 2)
        attentions = [module for module in model.modules() if isinstance(module, Attention)]
        assert [each.joined is not None for each in attentions] == [backend == "fused"] * 3
        assert [each.q.frozen for each in attentions] == [backend == "fused"] * 3
    assert calls == ["plain"]
    trained = classifier("bert", torch.float64, "fused", "full")
    assert all(
        module.joined is None and not module.q.frozen for module in trained.modules() if isinstance(module, Attention)
    )
    decoder = build_model(
        {
            "model_type": "llama",
            "vocab_size": 9,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 8,
        },
        task="classification",
    )
    decoder.requires_grad_(False)
    decoder.join()
    assert all(module.joined is None for module in decoder.modules() if isinstance(module, Attention))
    assert decoder.classify(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.long)).shape == (1, 2)
    assert calls == ["plain", "fused"]


def test_dropout_keeps_each_number_by_itself_with_the_right_probability():
    """Frequencies within seven standard deviations: of one number, and of two neighbours, which share random words.

    By Bernstein's inequality the chance of more is at most 2 exp(−n t²/(2σ² + 2t/3)), 6e-11 for n = 10⁶ and p = 0.1.
    Pairs overlap: they are two sets of n/2 that do not, so twice as far covers them.
    """
    torch.manual_seed(0)
    p, size = 0.1, 1_000_000
    keep = dropout.draw_keep(torch.empty(size), p).double()
    assert abs(dropout.rounded(p) - p) <= 2**-17
    for distance in (0, 1, 2, 3, 4):
        both = (keep * keep.roll(distance)).mean().item()
        expected = (1 - p) ** (2 if distance else 1)
        assert abs(both - expected) < 7 * (expected * (1 - expected) / size) ** 0.5 * (2 if distance else 1)


def test_dropout_keeps_the_mean_and_its_gradient_is_itself():
    """The mean within seven standard deviations, as above."""
    torch.manual_seed(0)
    x = torch.ones(1_000_000, dtype=torch.float64, requires_grad=True)
    y = dropout.Dropout(0.1)(x)
    assert abs(y.mean().item() - 1) < 7 * (0.1 / 0.9 / len(x)) ** 0.5
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout.Dropout(0.1).eval()(x), x)
