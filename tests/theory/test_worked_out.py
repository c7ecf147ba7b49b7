"""The statements worked out row by row in plain sums, as their docstrings say: every value and every allowance.

A too generous allowance lets a wrong statement hold, and perhaps no planted bug comes close enough to show it. So here
value and allowance are computed again, one row and one key at a time, and must be equal up to float64 rounding.
"""

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from breakers import PLAIN, some
from checks import some_directions, some_loss
from planted import off_by_one
from strategies import random_mask
from torch import Tensor

from minibeft.certificate.witness import Layer
from minibeft.theory import statements
from minibeft.theory.attention import Attended, HeadNorm, attend, mix
from minibeft.theory.bounds import (
    evaluation_error,
    gamma,
    key_bias_effect_bound,
    key_gradient_bound,
    logit_error,
    value_gradient_bound,
    value_shift_bound,
)
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary

U64 = 2.0**-53
B, H, G, T, S, D, C = 2, 4, 2, 3, 5, 2, 7


def problem(kind: str, dtype: torch.dtype = torch.float32, *, blind: bool = False, **changes: Any) -> Instance:
    """Two sequences, grouped heads, cross-attention: no two sizes are the same but B and D."""
    g = Draws(3)
    mask = random_mask(kind, (B, H, T, S), g, blind=blind)
    shapes = {"x": (B, T, C), "y": (B, S, C), "w_o": (C, H * D), "b_q": (H * D,), "b_o": (C,)}
    shapes |= {"w_q": (H * D, C), "w_k": (G * D, C), "w_v": (G * D, C), "b_k": (G * D,), "b_v": (G * D,)}
    given: dict[str, Any] = {name: g.normal(*shape).to(dtype) for name, shape in shapes.items()}
    return Instance(**given, heads=H, kv_heads=G, mask=None if mask is None else mask.to(dtype), **changes)


@lru_cache(maxsize=4)
def made(p: Instance) -> dict[str, Tensor]:
    """Queries without and with b_q and keys in float64, their sizes, and β."""
    e = p.exact()
    found = {"q0": e.q(None), "q": e.q(e.b_q), "k": e.k(e.b_k), "beta": p.shift(some(p.b_q))}
    return found | {"size q0": p.sizes("q"), "size q": p.sizes("q", p.b_q), "size k": p.sizes("k", p.b_k)}


class Row:
    """One query of one head of one sequence: the keys that it sees, and what rounding does to its logits."""

    def __init__(self, p: Instance, b: int, h: int, i: int):
        self.p, self.at, self.b, self.h = p, (b, h, i), b, h
        mask = torch.zeros(1) if p.mask is None else p.mask.double()
        self.added = mask.expand(*p.sees.shape, p.source.shape[1])[b, h, i].tolist()
        self.seen = [j for j, m in enumerate(self.added) if m != -math.inf]

    def logits(self, b_q: Tensor | None) -> list[float]:
        """Of the keys in sight, in float64."""
        q, k = made(self.p)["q0" if b_q is None else "q"][self.at], made(self.p)["k"][self.b, self.h]
        return [self.p.factor * float(q @ k[j]) + self.added[j] for j in self.seen]

    def weights(self, b_q: Tensor | None) -> list[float]:
        """Of the keys in sight."""
        z = self.logits(b_q)
        powers = [math.exp(each - max(z)) for each in z]
        return [power / sum(powers) for power in powers]

    def beta(self) -> list[float]:
        """What b_q adds to each logit."""
        return [float(made(self.p)["beta"][(*self.at, j)]) for j in self.seen]

    def osc(self) -> float:
        return max(self.beta()) - min(self.beta())

    def epsilon(self, b_q: Tensor | None) -> float:
        """s |q|ᵀ|k| γ + u|M|, of sizes, where both projections round."""
        p, a = self.p, self.p.arithmetic
        q, k = made(p)["size q0" if b_q is None else "size q"][self.at], made(p)["size k"][self.b, self.h]
        rounds = gamma(2 * a.roundings + q.shape[0] + 2, a.u)
        return max(p.factor * float(q @ k[j]) * rounds + a.u * abs(self.added[j]) for j in self.seen)

    def eta(self, b_q: Tensor | None) -> float:
        z, a = self.logits(b_q), self.p.arithmetic
        return a.u * (max(z) - min(z) + 6) + 2 * gamma(len(self.added), a.u)

    def weights_error(self, b_q: Tensor | None) -> float:
        return math.tanh(self.epsilon(b_q) / 2) + self.eta(b_q)

    def query_errors(self) -> float:
        """How far rounding may move both rows of P, and β."""
        b_q = self.p.b_q
        return self.weights_error(None) + self.weights_error(b_q) + math.tanh(self.epsilon(b_q) / 2)

    def log_errors(self) -> float:
        """2ε + 2η for each of the two rows, and 70 roundings of float64 for each of the two logarithms."""
        return sum(2 * self.epsilon(b) + 2 * self.eta(b) for b in (None, self.p.b_q)) + 140 * U64

    def price(self, variation: float) -> float:
        """4 artanh(TV)/(s diam K)."""
        k, a = self.p.k(self.p.b_k)[self.b, self.h], self.p.arithmetic
        apart = max(float((k[j] - k[l]).norm()) for j in self.seen for l in self.seen)  # noqa: E741
        size = max(float(each.norm()) for each in self.p.sizes("k", self.p.b_k)[self.b, self.h])
        diameter = apart + 2 * gamma(a.roundings, a.u) * size
        return 4 * math.atanh(variation) / (self.p.factor * diameter)


def by_row(p: Instance, value: Any) -> Tensor:
    """One number for each row."""
    heads, queries = p.heads, p.x.shape[1]
    rows = [[[value(Row(p, b, h, i)) for i in range(queries)] for h in range(heads)] for b in range(p.x.shape[0])]
    return torch.tensor(rows, dtype=torch.float64)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Entry by entry, without broadcasting."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


PROBLEMS = {
    f"{kind}, {str(dtype).removeprefix('torch.')}": problem(kind, dtype)
    for kind in ("none", "mixed")
    for dtype in (torch.float32, torch.float64)
}
PROBLEMS["scaled and capped"] = problem("mixed", scale=0.3, softcap=2.0, fused=False)
each_problem = pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS)


def variation(row: Row) -> float:
    pairs = zip(row.weights(None), row.weights(row.p.b_q), strict=True)
    return sum(abs(after - before) for before, after in pairs) / 2


def nats_of(one: list[float], other: list[float]) -> float:
    return sum(w * math.log(w / v) for w, v in zip(one, other, strict=True))


def double_differences(p: Instance, form: Any) -> Tensor:
    """form(rows i and r) for all pairs of rows of a head."""
    return torch.tensor(
        [
            [[[form(Row(p, b, h, i), Row(p, b, h, r)) for r in range(T)] for i in range(T)] for h in range(H)]
            for b in range(B)
        ],
        dtype=torch.float64,
    )


@each_problem
def test_what_the_statements_on_b_q_allow(p):
    quarter = lambda row: math.tanh(row.osc() / 4) + row.query_errors()  # noqa: E731
    same(statements.query_errors(p), by_row(p, Row.query_errors))
    same(statements.log_errors(p), by_row(p, Row.log_errors))
    same(statements.query_form(p).allowed, by_row(p, lambda row: 2 * (row.log_errors() + row.epsilon(p.b_q))))
    same(statements.query_variation(p).allowed, by_row(p, quarter))
    same(statements.blindness(p).allowed, double_differences(p, lambda i, r: 2 * (i.log_errors() + r.log_errors())))

    def nats(row: Row) -> float:
        osc, logs = row.osc(), row.log_errors()
        off = row.weights_error(None) + row.weights_error(p.b_q)
        return osc**2 / 8 + logs + 2 * off * (osc + logs) + 2 * osc * row.epsilon(p.b_q)

    def effect(row: Row) -> float:
        v = p.v(p.b_v)[row.b, row.h]
        apart = max(float((v[j] - v[l]).norm()) for j in range(S) for l in range(S))  # noqa: E741
        largest = max(float(each.norm()) for each in v)
        return apart * quarter(row) + 4 * gamma(2 * S + 1, p.arithmetic.u) * largest

    same(statements.nats(p).allowed, by_row(p, nats))
    same(statements.query_effect(p).allowed, by_row(p, effect), 1e-11)


@each_problem
def test_what_Q2_allows(p):
    g, a = some_directions(p), p.arithmetic
    rounds = 2 * (gamma(a.roundings, a.u) + gamma(2 * S + 1, a.u))
    sizes = p.sizes("v", p.b_v)
    expected = [
        [[[rounds * float(sizes[b, h].max(0).values @ g[:, n].abs()) for n in range(g.shape[1])]] for h in range(H)]
        for b in range(B)
    ]
    same(statements.hull(p, g).allowed, torch.tensor(expected, dtype=torch.float64))


@each_problem
def test_what_Q10_needs(p):
    """The price is that of the measured variation less what rounding may do; the length has its own rounding."""
    gap = statements.query_price(p)
    measured = (statements.query_variation(p).value - statements.query_errors(p)).clamp_min(0)
    same(gap.value, by_row(p, lambda row: row.price(float(measured[row.at]))), 1e-11)
    length = some(p.b_q).double().view(H, D).norm(dim=-1, keepdim=True)
    assert (gap.allowed > length).all()
    same(gap.allowed, length)


def test_Q10_where_everything_moves_and_where_nothing_can():
    """All the weight goes elsewhere: the price is large, not infinite. Keys of size 0: nothing moved costs nothing."""
    p = problem("none", torch.float64)
    moved = statements.query_price(replace(p, b_q=1e5 * some(p.b_q)))
    assert moved.holds
    assert moved.value.max() > 1
    still = statements.query_price(replace(p, w_k=0 * p.w_k, b_k=0 * some(p.b_k)))
    assert still.value.tolist() == torch.zeros(B, H, T).tolist()


@pytest.mark.parametrize("kind", ["none", "mixed"])
def test_what_the_statements_on_b_q_measure(kind):
    p = problem(kind, torch.float64)
    same(statements.query_variation(p).value, by_row(p, variation))

    def nats(row: Row) -> float:
        one, other = row.weights(None), row.weights(p.b_q)
        return max(nats_of(one, other), nats_of(other, one))

    same(statements.nats(p).value, by_row(p, nats))

    def moved(row: Row) -> float:
        v = p.v(p.b_v)[row.b, row.h][row.seen]
        change = torch.tensor(row.weights(p.b_q)) - torch.tensor(row.weights(None))
        return float((change.double() @ v).norm())

    same(statements.query_effect(p).value, by_row(p, moved), 1e-6)  # the row's weights here are float32


def bent(*given: Any, b_q: Tensor | None = None, **arguments: Any) -> Attended:
    """Attention in which b_q counts three times, so Q1, Q4 and Q2's neighbours measure something."""
    return attend(*given, b_q=None if b_q is None else 3 * b_q, **arguments)


def test_what_Q1_and_Q4_measure():
    """Where b_q counts three times the row's logits are off by 2β, the same for every query; under a cap Q4 fails."""
    p = replace(problem("mixed", torch.float64), function=bent)
    same(statements.query_form(p).value, by_row(p, lambda row: 2 * row.osc()), 1e-11)
    capped = replace(problem("mixed", torch.float64, softcap=1.0, fused=False))

    def change(row: Row) -> dict[int, float]:
        exact, caps = capped.exact(), []
        for b_q in (capped.b_q, None):
            q, k = exact.q(b_q)[row.at], exact.k(exact.b_k)[row.b, row.h]
            caps.append([math.tanh(exact.factor * float(q @ k[j])) for j in row.seen])
        return dict(zip(row.seen, (x - y for x, y in zip(*caps, strict=True)), strict=True))

    def apart(one: Row, other: Row) -> float:
        left, right = change(one), change(other)
        both = [left[j] - right[j] for j in left.keys() & right.keys()]
        return max(both) - min(both) if both else 0.0

    same(statements.blindness(capped).value, double_differences(capped, apart), 1e-11)


def test_what_Q2_measures():
    """Twice the output leaves the hull by what it says."""
    p = problem("mixed", torch.float64, blind=True)
    doubled = replace(p, function=lambda *given, **arguments: Attended(2 * attend(*given, **arguments).output, None))
    g, out, v = some_directions(p), p.outputs(), p.v(p.b_v)

    def beyond(row: Row, n: int) -> float:
        most = max((float(v[row.b, row.h, j] @ g[:, n]) for j in row.seen), default=math.inf)
        return max(0.0, 2 * float(out[row.at] @ g[:, n]) - most)

    found = statements.hull(doubled, g).value
    assert (found > 0).any()
    for n in range(g.shape[1]):
        same(found[..., n], by_row(p, lambda row, n=n: beyond(row, n)))


def test_a_weight_is_read_down_to_READABLE():
    """One of exactly READABLE is, one below it is not: NaN, whichever of the two it is."""
    p = problem("none", torch.float64)
    for b_q_given in (True, False):

        def function(*_: Any, b_q: Tensor | None, b=b_q_given, **__: Any) -> Attended:
            least = torch.tensor([0.5, statements.READABLE, statements.READABLE / 2, 0.0, 1.0], dtype=torch.float64)
            row = least if (b_q is not None) == b else torch.ones(S, dtype=torch.float64)
            return Attended(torch.zeros(B, T, H * D).double(), row.expand(B, H, T, S))

        change = statements.log_change(replace(p, function=function))
        assert change[1, 2, 0].isnan().tolist() == [False, False, True, True, False]


def test_the_spread_of_a_row():
    nan = torch.nan
    rows = torch.tensor([[1.0, nan, 4.0, -2.0], [nan, nan, nan, nan], [nan, 3.0, nan, nan]])
    assert statements.spread(rows).tolist() == [6.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["none", "mixed", "causal"])
def test_how_long_b_q_must_be(kind):
    """Q10, (osc z + ln((m − 1)/rest))/gap, the largest of a head's rows; of a row with one key 0."""
    p, rest = problem(kind, torch.float64), 0.02

    def price(row: Row) -> float:
        direction = [x / float(some(p.b_q).view(H, D)[row.h].norm()) for x in row.beta()]
        z = row.logits(None)
        if len(z) < 2:
            return 0.0
        first, second = sorted(direction)[-1:-3:-1]
        return (max(z) - min(z) + math.log((len(z) - 1) / rest)) / (first - second)

    expected = by_row(p, price)
    if kind == "causal":
        assert (expected == 0).any()
    same(statements.enough(p, rest), expected.amax((0, 2)), 1e-11)
    long = statements.enough(p, rest) / some(p.b_q).view(H, D).norm(dim=-1)
    longer = replace(p, b_q=(some(p.b_q).view(H, D) * long[:, None]).flatten())
    gap = statements.saturated(p, rest)
    same(gap.value, by_row(longer, lambda row: 1 - max(row.weights(longer.b_q))), 1e-9)
    same(gap.allowed, rest + statements.query_errors(longer))


def test_a_head_whose_rows_see_one_key_needs_no_length():
    """Whether the others are hidden or are not there."""
    one = torch.full((1, 1, T, S), -torch.inf).masked_fill(torch.arange(S) == 1, 0.0).double()
    p = replace(problem("none", torch.float64), mask=one)
    assert statements.enough(p, 0.02).tolist() == [0.0] * H
    alone = problem("none", torch.float64)
    assert alone.y is not None
    assert statements.enough(replace(alone, y=alone.y[:, :1]), 0.02).tolist() == [0.0] * H


def test_a_row_that_sees_no_key_keeps_nothing():
    p = problem("mixed", torch.float64, blind=True)
    gap = statements.saturated(p, 0.02)
    assert not p.sees.all()
    assert gap.value[~p.sees].tolist() == [0.0] * int((~p.sees).sum())


@pytest.mark.parametrize("blind", [False, True])
def test_what_the_statements_on_b_k_and_b_v_measure(blind):
    """Beside a sink both do something: how much, by their definitions. V1 and V3 leave out rows that see no key."""
    p = replace(problem("mixed", torch.float64, blind=blind), function=off_by_one)
    with_k, without_k, without_v = (p.outputs(**change) for change in ({}, {"b_k": None}, {"b_v": None}))
    b_v, d_o = some(p.b_v).view(G, D).repeat_interleave(2, 0), some_loss(p)
    same(statements.key_effect(p).value, by_row(p, lambda row: float((with_k - without_k)[row.at].abs().max())))
    shift = statements.value_shift(p).value
    for d in range(D):
        off = lambda row, d=d: abs(float((with_k - without_v)[row.at][d] - bool(row.seen) * b_v[row.h][d]))  # noqa: E731
        same(shift[..., d], by_row(p, off))
    seen = by_row(p, lambda row: float(bool(row.seen)))
    gradient = statements.bias_gradients(p, d_o * seen[..., None])["b_v"]
    expected = [
        sum(d_o[b, h, i, d] * seen[b, h, i] for b in range(B) for h in (2 * g, 2 * g + 1) for i in range(T))
        for g in range(G)
        for d in range(D)
    ]
    same(
        statements.value_gradient(p, d_o).value, (gradient - torch.stack([torch.as_tensor(e) for e in expected])).abs()
    )


@each_problem
def test_what_the_statements_on_b_k_and_b_v_allow(p):
    """Each allowance is its bound in bounds.py, with the arguments written out here again."""
    a, d_o, b_k, b_v = p.arithmetic, some_loss(p), some(p.b_k), some(p.b_v)
    repeated = lambda bias: bias.double().view(G, 1, D).repeat_interleave(2, 0)  # noqa: E731
    q, k, v, sizes = p.q(p.b_q), p.k(b_k), p.v(b_v), p.sizes("k", b_k)
    group = lambda by_head: by_head.view(G, 2, D).sum(1).flatten()  # noqa: E731
    bound = key_bias_effect_bound(q, p.k(None), v, p.sizes("k"), repeated(b_k), a)
    same(statements.key_effect(p).allowed, bound)
    same(statements.key_gradient(p, d_o).allowed, group(key_gradient_bound(d_o, q, k, v, sizes, a)))
    shift = value_shift_bound(p.sizes("v"), repeated(b_v), a)
    same(statements.value_shift(p).allowed, shift)
    grad = statements.bias_gradients(p, d_o)["b_v"]
    allowed = group(value_gradient_bound(d_o, q, k, sizes, a)) + a.u * grad.abs()
    same(statements.value_gradient(p, d_o).allowed, allowed)
    c = Draws(5).normal(B, G, 1, D)
    at_hand = key_bias_effect_bound(q, k, v, k.abs(), c.repeat_interleave(2, 1).abs(), a._replace(roundings=1))
    same(statements.cached_keys(p, c).allowed, at_hand)
    w_o, most = some(p.w_o).double(), p.sizes("v").amax((0, 2)).flatten()
    for n in range(C):
        row = w_o[n].abs()
        outputs = float(row @ (2 * most + repeated(b_v).flatten().abs()) + some(p.b_o)[n].double().abs())
        allowed = float(row @ shift.amax((0, 2)).flatten()) + 2 * gamma(H * D + 3, a.u) * outputs
        assert statements.value_fold(p).allowed[n].item() == pytest.approx(allowed, rel=1e-12)


def test_K9_takes_the_constant_away():
    """Under a cap it matters whether c is taken off the keys or added to them."""
    p = problem("none", torch.float64, softcap=1.0, fused=False)
    c = Draws(5).normal(B, G, 1, D)
    k, v = (x[:, ::2] for x in (p.k(p.b_k), p.v(p.b_v)))
    kept, taken = (mix(p.q(p.b_q), keys, v, softcap=1.0, fused=False)[0] for keys in (k, k - c))
    expected = (taken - kept).view(B, T, H, D).transpose(1, 2).abs().amax(-1)
    same(statements.cached_keys(p, c).value, expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_K10_allows(interleaved, window, dtype):
    """tanh(¼ s Σ_u ‖q^u‖ ‖b_k^u‖ min(2, ω_u W)) with the pair u of each head written out, and its rounding."""
    turn = Rotary(4, base=10.0, interleaved=interleaved)
    p = Layer.random(replace(PLAIN, rotary=turn, head_size=5, window=window)).instance()
    p = replace(p, **{n: x.to(dtype) for n, x in vars(p).items() if isinstance(x, Tensor)}, function=attend)
    omega = [1.0, 10.0**-0.5]
    pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
    q, bias, u32, tokens = p.q(p.b_q), p.per_head(some(p.b_k)), 2.0**-24, p.x.shape[1]
    epsilon = logit_error(
        p.sizes("q", p.b_q), p.sizes("k", p.b_k), p.arithmetic._replace(roundings=2 * p.arithmetic.roundings)
    )

    def allowed(row: Row) -> float:
        reach, limit = max(row.seen) - min(row.seen), 0.0
        for w, pair in zip(omega, pairs, strict=True):
            one, other = (math.hypot(*(float(x[n]) for n in pair)) for x in (q[row.at], bias[row.h, 0]))
            limit += p.factor * one * other * (min(2, w * reach) + 2 * u32 * (tokens * w + 4))
        errors = [evaluation_error(q, p.k(b), p.arithmetic)[row.at] for b in (None, p.b_k)]
        return math.tanh(limit / 4) + sum(math.tanh(float(epsilon[row.at]) / 2) + float(e) for e in errors)

    gap = statements.rotary_variation(p, torch.tensor(omega, dtype=torch.float64), interleaved)
    same(gap.allowed, by_row(p, allowed), 1e-10)
    same(gap.value, (p.weights() - p.weights(b_k=None)).abs().sum(-1) / 2)


def test_K10_a_row_that_sees_no_key_has_no_reach():
    p = problem("mixed", torch.float64, blind=True)
    gap = statements.rotary_variation(p, torch.tensor([0.5], dtype=torch.float64), False)
    blind = gap.allowed[~p.sees]
    assert len(blind)
    assert (blind < 1e-5).all()  # a reach of one key would allow a tenth


def test_what_a_norm_makes_of_an_error():
    """2|g|/r · (size + |x| ‖size‖/(√D r)), r = √(mean x² + eps), each entry written out."""
    g, eps = Draws(1), 0.3
    x, size, gain = g.normal(2, 3, 4, 5), g.normal(2, 3, 4, 5).abs(), g.normal(5, dtype=torch.float32)
    found = HeadNorm(gain, eps).reach(x, size)
    for place in itertools.product(range(2), range(3), range(4)):
        r = math.sqrt(sum(float(v) ** 2 for v in x[place]) / 5 + eps)
        norm = math.sqrt(sum(float(s) ** 2 for s in size[place]))
        for d in range(5):
            moved = abs(float(x[place][d])) * norm / (math.sqrt(5) * r)
            expected = 2 * abs(float(gain[d])) / r * (float(size[place][d]) + moved)
            assert found[place][d].item() == pytest.approx(expected, rel=1e-12)
