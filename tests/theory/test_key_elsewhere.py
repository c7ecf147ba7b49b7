"""K11 and K12: b_k beside a sink, under sigmoid weights and in linear attention; each with what must be rejected."""

from dataclasses import replace

import pytest
import torch
from breakers import PLAIN, some
from hypothesis import assume, given
from strategies import problems
from tolerance import assert_agrees, samples
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory.attention import project
from minibeft.theory.bounds import gamma
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary
from minibeft.theory.variants import without

SPECS = {
    "MQA": {},
    "GQA": {"heads": 4, "kv_heads": 2},
    "cross": {"cross": True, "causal": False},
    "ALiBi": {"position_bias": "alibi"},
    "window": {"window": 3},
}


def shift(layer: Layer) -> Tensor:
    """c_i = s (q_i + b_q)·b_k, (B, H, T, 1)."""
    spec, p = layer.spec, layer.params
    q = project(layer.x, p.w_q, p.b_q, spec.heads)
    by_head = some(p.b_k).view(spec.kv_heads, 1, -1).repeat_interleave(spec.heads // spec.kv_heads, 0)
    return (q * by_head).sum(-1, keepdim=True) * spec.head_size**-0.5


def by_gate(layer: Layer) -> Tensor:
    """P beside a sink as K11 says: sigmoid(ln Σ e^{z_ij} − σ + c_i) of the softmax without sink and b_k."""
    bare = without(layer.params, "k")
    sink = bare.sink if layer.spec.sink == "learned" else torch.zeros_like(bare.sink)
    with_sink = layer.run(bare)[1].sum(-1, keepdim=True)  # w of K4: ln Σ e^z = σ + ln w/(1 − w)
    plain = replace(layer, spec=replace(layer.spec, sink=None)).run(bare)[1]
    total = sink[:, None, None] + torch.logit(with_sink)
    return torch.sigmoid(total - sink[:, None, None] + shift(layer)) * plain


@pytest.mark.parametrize("sink", ["learned", "one"])
@pytest.mark.parametrize("change", SPECS.values(), ids=SPECS)
def test_K11_gate(change, sink):
    layer = Layer.random(replace(PLAIN, **change, sink=sink))
    assert_agrees(layer.run(layer.params)[1], samples(by_gate, layer, torch.float64), by_gate(layer))


@pytest.mark.parametrize("seed", range(5))
def test_K11_own_sink(seed):
    """A sink logit σ − c_i of the query's own: of one row at a time, whose c_i is taken off the head's sink."""
    layer = Layer.random(replace(PLAIN, heads=1, sink="learned"), seed)
    weights, c = layer.run(layer.params)[1], shift(layer)
    for row in range(c.shape[2]):
        moved = replace(without(layer.params, "k"), sink=layer.params.sink - c[0, :, row, 0])
        off = (layer.run(moved)[1][0, 0, row] - weights[0, 0, row]).abs().max()
        # logits of some |c| + 50 at the most, each off by some roundings
        assert off <= 64 * 2.0**-53 * (50 + c.abs().max())


def by_sigmoid(layer: Layer) -> Tensor:
    w = layer.run(without(layer.params, "k"))[1]
    return w / (w + (1 - w) * torch.exp(-shift(layer)))


@pytest.mark.parametrize("change", SPECS.values(), ids=SPECS)
def test_K11_sigmoid(change):
    layer = Layer.random(replace(PLAIN, **change, weighting="sigmoid"))
    assert_agrees(layer.run(layer.params)[1], samples(by_sigmoid, layer, torch.float64), by_sigmoid(layer))


@pytest.mark.parametrize(
    "change",
    [{"rotary": Rotary(16)}, {"relative_key": True}, {"qk_norm": "rms"}, {"softcap": 5.0}, {"prefix": 2}],
    ids=str,
)
def test_K11_needs(change):
    layer = Layer.random(replace(PLAIN, **change, sink="one"))
    rounding = samples(by_gate, layer, torch.float64)
    with pytest.raises(AssertionError):
        assert_agrees(layer.run(layer.params)[1], rounding, by_gate(layer))


def linear_attention(p: Instance, b_k: Tensor | None, feature=lambda x: x) -> Tensor:
    """O with the weights q·k/Σ q·k over the keys in sight, in float64."""
    e = p.exact()
    z = e.factor * feature(e.q(e.b_q)) @ feature(e.k(b_k)).mT
    seen = torch.ones_like(z) if p.mask is None else (~p.mask.isneginf()).expand_as(z)
    z = z * seen
    return z @ e.v(e.b_v) / z.sum(-1, keepdim=True)


def mixed(p: Instance) -> tuple[Tensor, Tensor]:
    """What K12 says of O(b_k), and what rounding may do to it: the sums are divided by n_i and n_i + m c_i."""
    e = p.exact()
    q, b_k = e.q(e.b_q), e.per_head(some(p.b_k).double())
    z = e.factor * q @ e.k(None).mT
    seen = torch.ones_like(z) if p.mask is None else (~p.mask.isneginf()).expand_as(z).double()
    c = e.factor * (q * b_k).sum(-1, keepdim=True)
    n, m = (z * seen).sum(-1, keepdim=True), seen.sum(-1, keepdim=True)
    rate = m * c / (n + m * c)
    mean = seen @ e.v(e.b_v) / m
    expected = (1 - rate) * linear_attention(p, None) + rate * mean
    sizes = e.factor * q.abs() @ e.sizes("k", e.b_k).mT + e.factor * (q.abs() * b_k.abs()).sum(-1, keepdim=True)
    value = e.sizes("v", e.b_v).amax((-2, -1))[..., None, None]
    total = (sizes * seen).sum(-1, keepdim=True)
    spread = (total / n.abs()) * (total / (n + m * c).abs()) + total / (n + m * c).abs() + (total / n.abs())
    return expected, 64 * gamma(64, 2.0**-53) * value * spread * (1 + total / (n + m * c).abs())


@given(problems((torch.float64,), magnitude=10.0))
def test_K12_b_k_mixes_in_the_mean(p):
    expected, allowed = mixed(p)
    assume(bool((allowed < 1e-6).all()))  # no normaliser next to 0
    assert ((linear_attention(p, p.b_k) - expected).abs() <= allowed).all()


def test_K12_needs_identity_features():
    """With φ = elu + 1 the formula misses by far."""
    p = Layer.random(PLAIN).instance()
    expected, allowed = mixed(p)
    feature = lambda x: torch.nn.functional.elu(x) + 1  # noqa: E731
    assert ((linear_attention(p, p.b_k, feature) - expected).abs() > 1e3 * allowed).any()


def test_K12_rejects():
    """Half the λ, and the mean of the values in place of O."""
    p = Layer.random(PLAIN).instance()
    expected, allowed = mixed(p)
    plain, true = linear_attention(p, None), linear_attention(p, p.b_k)
    assert ((true - expected).abs() <= allowed).all()
    assert ((true - (expected + plain) / 2).abs() > allowed).any()
