"""Q10 and Q11: what moving attention costs, and which mean keys b_q reaches; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN
from checks import U, check_enough, check_price
from hypothesis import assume, given
from hypothesis import strategies as st
from planted import quadruple_b_q, rejects, rotated
from strategies import problems
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import attend
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary
from minibeft.theory.statements import enough, query_errors, query_price, query_variation

MODERATE = 10.0


@given(problems((torch.float32, torch.float64), blind=True))
def test_Q10_needed(p):
    check_price(p)


@given(problems((torch.float64,), keys=2, magnitude=1.0))
def test_Q10_enough(p):
    assume(enough(p, 0.01).max() < 1e6)  # level keys: no b_q tells them apart
    check_enough(p)


@pytest.mark.parametrize("bug", [quadruple_b_q, rotated])
def test_Q10_rejects_what_moves_further(bug):
    assert rejects(check_price, problems((torch.float64,), magnitude=MODERATE), function=bug)


def third(x, *weights, b_q=None, **given):
    """b_q comes in at a third of its length."""
    return attend(x, *weights, b_q=None if b_q is None else b_q / 3, **given)


def test_Q10_has_a_price_for_rows_that_move_by_more_than_one():
    """Which only a wrong function's do: it is finite, and beyond what b_q can pay."""

    def heavy(*weights, **given):
        found = attend(*weights, **given)
        assert found.weights is not None
        return found if given["b_q"] is None else found._replace(weights=4 * found.weights)

    p = replace(Layer.random(PLAIN).instance(), function=heavy)
    assert query_variation(p).value.max() > 1
    price = query_price(p)
    assert price.value.isfinite().all()
    assert not price.holds


def test_Q10_rejects_what_is_not_enough():
    assert rejects(check_enough, problems((torch.float64,), keys=2, magnitude=1.0, masks=("none",)), function=third)


def alike(p: Instance) -> Instance:
    """All keys equal: diam(K) = 0, so no b_q may move anything."""
    return replace(p, w_k=0 * p.w_k)


def close(p: Instance) -> Instance:
    """Keys a thousandth apart, with logits as before; b_q meets all of them alike, by their first entry."""
    first = torch.arange(p.w_k.shape[0] // p.kv_heads) == 0
    w_q = (1e3 * p.w_q.unflatten(0, (p.heads, -1))).masked_fill(first[:, None], 0.0).flatten(0, 1)
    return replace(
        p, w_k=1e-3 * p.w_k, w_q=w_q, b_k=first.to(p.w_k).repeat(p.kv_heads), b_q=first.to(p.w_q).repeat(p.heads)
    )


def short(p: Instance) -> Instance:
    """Keys a thousandth as long, which a norm makes as long as ever."""
    return replace(p, w_k=1e-3 * p.w_k, b_k=None if p.b_k is None else 0 * p.b_k)


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"rotary": Rotary(16)}, alike),
        ({"relative_query": True}, alike),
        ({"weighting": "sigmoid"}, alike),
        ({"sink": "one"}, alike),
        ({"softcap": 0.5}, close),
        ({"qk_norm": "rms"}, short),
    ],
    ids=lambda given: given.__name__ if callable(given) else str(given),
)
def test_Q10_needs(change, made):
    """Keys as they are projected lie together, and yet b_q moves a row, once a hypothesis is gone."""
    p = made(replace(Layer.random(replace(PLAIN, **change)).instance(), rotate=None))
    assert not query_price(p).holds
    assert query_price(made(Layer.random(PLAIN).instance())).holds


def two_keys(z: float) -> Instance:
    """One query whose keys ±1 have the logits ±z."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    w = torch.eye(1, dtype=torch.float64)
    return Instance(z * one, w, w, w, None, torch.zeros(1, dtype=torch.float64), None, None, None, 1, 1, y=y)


@given(st.floats(0.05, 8.0))
def test_Q10_is_sharp(length):
    """Two keys ±1 with logits ∓‖b_q‖/2: b_q turns them around, and no shorter one does."""
    p = replace(two_keys(-length / 2), b_q=torch.tensor([length], dtype=torch.float64))
    needed = query_price(p)
    # artanh magnifies what rounding does to TV by its slope, cosh² of its value: e^{‖b_q‖} at most.
    slack = 40 * torch.tensor(length).exp().item() * (length + 20) * U
    assert needed.value.item() == pytest.approx(length, abs=slack)


def mean_keys(p: Instance, b_q: Tensor) -> Tensor:
    return p.weights(b_q=b_q)[0, 0, 0] @ p.k(p.b_k)[0, 0]


@pytest.mark.parametrize(("seed", "keys", "size"), [(0, 2, 1), (1, 2, 3), (2, 3, 1), (3, 4, 2), (4, 5, 3), (5, 6, 5)])
def test_Q11_every_point_inside_is_reached_once(seed, keys, size):
    """Newton's method finds a b_q for a random point inside; two b_q of one mean key give one P."""
    g = Draws(seed)
    x, y, w_q, w_k, b_k, mask = (
        g.normal(*shape) for shape in ((1, 1, 4), (1, keys, 4), (size, 4), (size, 4), (size,), (1, 1, 1, keys))
    )
    p = Instance(x, w_q, w_k, w_k, None, None, b_k, None, None, 1, 1, y=y, mask=mask)
    k = p.k(p.b_k)[0, 0]
    w = g.uniform(k.shape[0], low=0.1, high=1.0)
    target = (w / w.sum()) @ k
    b = torch.zeros(size, dtype=torch.float64)

    def height(b: Tensor) -> Tensor:
        z = p.factor * (p.q(b)[0, 0, 0] @ (k - target).mT)
        return (z if p.mask is None else z + p.mask[0, 0, 0]).logsumexp(0)

    for _ in range(40):
        weights = p.weights(b_q=b)[0, 0, 0]
        slope = weights @ k - target
        centred = k - weights @ k
        step = torch.linalg.pinv(p.factor * (weights[:, None] * centred).mT @ centred, rtol=1e-12) @ slope
        length = 1.0
        while length > 1e-6 and height(b - length * step) > height(b):
            length /= 2
        b = b - length * step
    assert (mean_keys(p, b) - target).norm() <= 1e-6 * (1 + k.norm())
    # a null direction more: the same mean key, the same P
    null = torch.eye(size, dtype=torch.float64) - torch.linalg.pinv(k - k.mean(0)) @ (k - k.mean(0))
    other = b + null @ g.normal(size)
    moved = (p.weights(b_q=other) - p.weights(b_q=b)).abs().sum(-1).max() / 2
    assert moved <= 1e-9 + query_errors(replace(p, b_q=other)).max()


@given(problems((torch.float64,), keys=2, magnitude=3.0, single=True))
def test_Q11_two_mean_keys_are_equal_only_where_P_is(p):
    """(b − b')·(mean − mean') = Σ_j (P_j − P'_j)(β_j − β'_j)/s ≥ the symmetric divergence's share, 2 TV² times 1/s."""
    one, two = p.weights(b_q=p.b_q), p.weights(b_q=None)
    k = p.k(p.b_k)
    assert p.b_q is not None
    along = p.factor * ((one - two) @ k) @ p.b_q.double()
    variation = (one - two).abs().sum(-1) / 2
    errors = query_errors(p)
    size = p.factor * k.norm(dim=-1).amax() * p.b_q.double().norm()
    assert (along >= 4 * variation**2 - (8 + 4 * size) * errors).all()  # Pinsker, twice


def test_Q11_needs_one_query():
    """Two queries share b_q: with logits ±1 no b_q gives both the mean key 0."""
    rows = [two_keys(z) for z in (1.0, -1.0)]
    for b_q in torch.linspace(-5, 5, 101, dtype=torch.float64):
        means = [mean_keys(p, b_q.view(1)).item() for p in rows]
        assert max(map(abs, means)) > 0.5
