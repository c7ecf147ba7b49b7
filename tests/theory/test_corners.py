"""Every claim of the catalogue as a property of plain numbers, with a search for counterexamples in its corners.

Corners: rows that see no key, one key, keys that are equal, vectors of zeros, sinks, foreign keys, shared heads. Each
claim is computed anew from its wording, in float64, by nothing of the library. Entries are at most some 5 and sizes at
most 5, so rounding stays below 1e-10, and a claim that is false misses by far more than CLOSE.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import Tensor

from minibeft.theory.draws import Draws
from minibeft.theory.theorems import THEOREMS

CLOSE = 1e-8
NAMES = ("q", "k", "v", "b_q", "b_k", "b_v", "r")


@dataclass
class Corner:
    """A head: n queries, m keys, d dims; μ (n, m) ≥ 0; a sink's e^σ; foreign keys and values; and where other numbers
    come from."""

    q: Tensor
    k: Tensor
    v: Tensor
    b_q: Tensor
    b_k: Tensor
    b_v: Tensor
    r: Tensor  # ∂L/∂O
    mu: Tensor
    scale: float
    sink: float
    g: Draws

    @property
    def sees(self) -> Tensor:
        return self.mu.sum(-1) > 0

    def z(self, b_q: float | Tensor = 0.0, b_k: float | Tensor = 0.0) -> Tensor:
        return self.scale * (self.q + b_q) @ (self.k + b_k).T

    def p(self, z: Tensor, extra: float | Tensor = 0.0) -> Tensor:
        """Weights beside competitors of e^logit `extra` in all; a row without keys has weights 0."""
        weights = self.mu * z.exp()
        total = weights.sum(-1, keepdim=True) + extra
        return weights / torch.where(total > 0, total, torch.ones_like(total))

    def both(self) -> tuple[Tensor, Tensor]:
        """P without and with b_q."""
        return self.p(self.z(0.0, self.b_k)), self.p(self.z(self.b_q, self.b_k))

    def beta(self) -> Tensor:
        return self.scale * (self.k + self.b_k) @ self.b_q

    def osc(self, beta: Tensor) -> Tensor:
        """Of each row, over the keys that it sees; 0 where there are none."""
        beta = beta.expand_as(self.mu)
        high = beta.masked_fill(self.mu == 0, -torch.inf).amax(-1)
        return (high - beta.masked_fill(self.mu == 0, torch.inf).amin(-1)).clamp_min(0.0)


@st.composite
def corners(draw: st.DrawFn) -> Corner:
    n, m, d = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    g = Draws(draw(st.integers(0, 2**20)))
    shapes = {"q": (n, d), "k": (m, d), "v": (m, d), "b_q": (d,), "b_k": (d,), "b_v": (d,), "r": (n, d)}
    tables = {name: g.normal(*shape).clamp(-3, 3) for name, shape in shapes.items()}
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=3)):
        tables[name] = 0 * tables[name]
    if draw(st.booleans()):  # two equal keys
        tables["k"][-1] = tables["k"][0]
    mu = g.normal(n, m).exp() if draw(st.booleans()) else torch.ones(n, m, dtype=torch.float64)
    mu = mu * (g.uniform(n, m) > draw(st.sampled_from((0.0, 0.4, 0.8))))
    scale, sink = draw(st.sampled_from((0.5, 1.0, 2.0))), draw(st.sampled_from((0.5, 1.0, 20.0)))
    return Corner(**tables, mu=mu, scale=scale, sink=sink, g=g)


def same(x: Tensor, y: Tensor | float) -> bool:
    return bool(((x - y).abs() <= CLOSE * (1 + x.abs())).all())


def at_most(x: Tensor, y: Tensor | float) -> bool:
    return bool((x <= y + CLOSE).all())


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(at), at, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


CLAIMS: dict[str, Callable[[Corner], bool]] = {}


def claim(name: str) -> Callable[[Callable[[Corner], bool]], Callable[[Corner], bool]]:
    def register(holds: Callable[[Corner], bool]) -> Callable[[Corner], bool]:
        CLAIMS[name] = holds
        return holds

    return register


# ---------------------------------------------------------------- K


@claim("K1")
def no_effect(c: Corner) -> bool:
    return same(c.p(c.z(c.b_q, c.b_k)), c.p(c.z(c.b_q)))


@claim("K2")
def no_gradient(c: Corner) -> bool:
    return same(gradient(lambda b: (c.r * (c.p(c.z(c.b_q, b)) @ c.v) ** 2).sum(), c.b_k), 0.0)


@claim("K3")
def same_trajectory(c: Corner) -> bool:
    """Two steps of Adam on a linear head, beside b_k and alone, under one clip of the joint norm."""
    ends = []
    for beside in (True, False):
        b_k, head = c.b_k.clone().requires_grad_(), c.b_v.clone().requires_grad_()
        trained = [b_k, head] if beside else [head]
        optimiser = torch.optim.Adam(trained, lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            ((c.p(c.z(c.b_q, b_k)) @ c.v @ head - c.r[:, 0]) ** 2).sum().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
        ends.append(head.detach())
    return same(*ends)


def share(w: Tensor, c: Tensor) -> Tensor:
    return w / (w + (1 - w) * (-c).exp())


@claim("K4")
def beside_competitors(c: Corner) -> bool:
    """The sink; foreign keys, which are the sink with a value F; and rotary positions in the plane."""
    shift = c.scale * (c.q @ c.b_k)[:, None]
    kept = share(c.p(c.z(), c.sink).sum(-1, keepdim=True), shift)
    foreign = c.g.normal(c.v.shape[1])
    weights = c.p(c.z(0.0, c.b_k), c.sink)
    output = weights @ c.v + (1 - weights.sum(-1, keepdim=True)) * foreign
    angles, (qx, qy, bx, by) = c.g.normal(2), c.g.normal(4)
    turn = lambda a, x, y: (a.cos() * x - a.sin() * y, a.sin() * x + a.cos() * y)  # noqa: E731
    one, two = turn(angles[0], qx, qy), turn(angles[1], bx, by)
    late = turn(angles[1] - angles[0], bx, by)
    return same(output, kept * (c.p(c.z()) @ c.v) + (1 - kept) * foreign) and same(
        one[0] * two[0] + one[1] * two[1], qx * late[0] + qy * late[1]
    )


@claim("K5")
def adam_by_noise(c: Corner) -> bool:
    """The first step, for gradients far below eps, about it and far above it; and for 0."""
    lr, eps = 0.1, 1e-8
    for size in (0.0, 1e-14, 1e-8, 1e-3):
        b = c.b_k.clone().requires_grad_()
        b.grad = g = size * c.b_q
        torch.optim.Adam([b], lr=lr, eps=eps).step()
        if not same((b.detach() - c.b_k).abs(), lr * g.abs() / (g.abs() + eps)):
            return False
    return True


@claim("K8")
def hidden_in_the_weights(c: Corner) -> bool:
    """Keys behind a LayerNorm with gain γ ≠ 0: W_k + t nᵀ, n = 1/γ."""
    width, d = 4, c.q.shape[1]
    gamma, beta, w, x = (
        c.g.uniform(width, low=0.5),
        c.g.normal(width),
        c.g.normal(d, width),
        c.g.normal(len(c.k), width),
    )
    y = torch.nn.functional.layer_norm(x, (width,), gamma, beta, 1e-5)
    weights = lambda w: c.p(c.scale * c.q @ (y @ w.T + c.b_k).T)  # noqa: E731
    grad = gradient(lambda w: (c.r * (weights(w) @ c.v) ** 2).sum(), w)
    return same(weights(w + torch.outer(c.b_v, 1 / gamma)), weights(w)) and same(grad @ (1 / gamma), 0.0)


@claim("K9")
def cached_keys(c: Corner) -> bool:
    return same(c.p(c.scale * c.q @ (c.k - c.b_v).T), c.p(c.scale * c.q @ c.k.T))


@claim("K10")
def rotary_bound(c: Corner) -> bool:
    """tanh of a quarter of s Σ_u ‖q^u‖ ‖b^u‖ min(2, ω_u (L − 1)), for keys at the distances 0 to L − 1."""
    planes, (n, m) = 2, c.mu.shape
    q, b, omega = c.g.normal(n, planes, 2), c.g.normal(planes, 2), torch.tensor([0.0, 0.3]) + c.g.uniform(2)
    far = torch.arange(m).double()[:, None] * omega
    turned = torch.stack([far.cos() * b[:, 0] - far.sin() * b[:, 1], far.sin() * b[:, 0] + far.cos() * b[:, 1]], -1)
    added = c.scale * torch.einsum("nud,mud->nm", q, turned)
    size = c.scale * (q.norm(dim=-1) * b.norm(dim=-1) * (omega * (m - 1)).clamp_max(2)).sum(-1)
    moved = (c.p(c.z() + added) - c.p(c.z())).abs().sum(-1) / 2
    return at_most(moved, torch.tanh(size / 4))


@claim("K11")
def gate(c: Corner) -> bool:
    shift = c.scale * ((c.q + c.b_q) @ c.b_k)[:, None]
    bare, full = c.z(c.b_q), c.z(c.b_q, c.b_k)
    total = (c.mu * bare.exp()).sum(-1, keepdim=True)
    kept = torch.where(total > 0, torch.sigmoid(total.log() - torch.tensor(c.sink).log() + shift), 0.0)
    own = c.p(bare, c.sink * (-shift).exp())
    return (
        same(c.p(full, c.sink), kept * c.p(bare))
        and same(c.p(full, c.sink), own)
        and same(torch.sigmoid(full), share(torch.sigmoid(bare), shift))
    )


@claim("K12")
def mean_of_the_values(c: Corner) -> bool:
    seen = (c.mu > 0).double()
    shift, z = c.scale * ((c.q + c.b_q) @ c.b_k)[:, None], c.z(c.b_q)
    n, m = (seen * z).sum(-1, keepdim=True), seen.sum(-1, keepdim=True)
    rows = ((n.abs() > 0.1) & ((n + m * shift).abs() > 0.1)).flatten()  # where both are defined, and not next to 0
    n, m, shift, z, seen = n[rows], m[rows], shift[rows], z[rows], seen[rows]
    rate = m * shift / (n + m * shift)
    output = seen * (z + shift) @ c.v / (seen * (z + shift)).sum(-1, keepdim=True)
    return same(output, (1 - rate) * (seen * z @ c.v / n) + rate * (seen @ c.v / m))


# ---------------------------------------------------------------- V


@claim("V1")
def shift_by_b_v(c: Corner) -> bool:
    p = c.p(c.z(c.b_q))[c.sees]
    return same(p @ (c.v + c.b_v), p @ c.v + c.b_v)


def grouped(c: Corner) -> tuple[list[Tensor], Tensor, Tensor]:
    """P of four heads in two groups, where every head sees a key; W_o (C, 4 D); and the groups' value biases."""
    heads = [c.p(c.z(c.g.normal(c.q.shape[1])))[c.sees] for _ in range(4)]
    d = c.v.shape[1]
    return heads, c.g.normal(3, 4 * d), torch.stack([c.b_v, c.g.normal(d)])


def layer(heads: list[Tensor], v: Tensor, w_o: Tensor, b_v: Tensor, b_o: Tensor) -> Tensor:
    return torch.cat([p @ (v + b_v[u // 2]) for u, p in enumerate(heads)], -1) @ w_o.T + b_o


@claim("V2")
def folds(c: Corner) -> bool:
    heads, w_o, b_v = grouped(c)
    b_o = c.g.normal(3)
    folded = b_o + w_o @ b_v.repeat_interleave(2, 0).flatten()
    return same(layer(heads, c.v, w_o, b_v, b_o), layer(heads, c.v, w_o, 0 * b_v, folded))


@claim("V3")
def gradient_of_b_v(c: Corner) -> bool:
    """Of a group's bias: W_oᵀ ∂L/∂b_o, summed over its heads."""
    heads, w_o, b_v = grouped(c)
    b_o = c.g.normal(3)
    of_v = gradient(lambda b: (layer(heads, c.v, w_o, b, b_o) ** 3).sum(), b_v)
    of_o = gradient(lambda b: (layer(heads, c.v, w_o, b_v, b) ** 3).sum(), b_o)
    return same(of_v, (w_o.T @ of_o).view(2, 2, -1).sum(1))


@claim("V4")
def reach_of_b_v(c: Corner) -> bool:
    """Every shift of O is one b_v; and W_o E b = t has a solution for every t iff W_o E has rank C."""
    p, target = c.p(c.z(c.b_q))[c.sees], c.g.normal(3)
    w_o = c.g.normal(3, 4 * c.v.shape[1]) * (c.g.uniform(3) > 0.2).double()[:, None]  # some rows 0
    shared = w_o.view(3, 2, 2, -1).sum(2).flatten(1)
    solved = shared @ torch.linalg.pinv(shared) @ target
    onto = torch.linalg.matrix_rank(shared).item() == 3
    return same(p @ (c.v + c.b_v) - p @ c.v, c.b_v) and onto == same(solved, target)


@claim("V5")
def not_a_shift(c: Corner) -> bool:
    p, other = c.p(c.z(c.b_q)), c.p(-c.z(c.b_q))
    factor = 2 * (c.g.uniform(*p.shape) < 0.5).double()
    beside = c.p(c.z(c.b_q), c.sink)
    moved = lambda weights: weights @ (c.v + c.b_v) - weights @ c.v  # noqa: E731
    held = 1 - c.sink / ((c.mu * c.z(c.b_q).exp()).sum(-1, keepdim=True) + c.sink)
    return (
        same(moved(p * factor), (p * factor).sum(-1, keepdim=True) * c.b_v)
        and same(moved(beside), held * c.b_v)
        and same(moved(p - 0.3 * other)[c.sees], 0.7 * c.b_v.expand(int(c.sees.sum()), -1))
        and same(moved(p)[~c.sees], 0.0)
    )


@claim("V6")
def dimension_of_the_reach(c: Corner) -> bool:
    rank, d = 1 + int(c.g.integers(0, 3, 1)), c.v.shape[1]
    w_o = c.g.normal(3, rank) @ c.g.normal(rank, 4 * d)
    shared = w_o.view(3, 2, 2, d).sum(2).flatten(1)
    reached = torch.linalg.matrix_rank(shared).item()
    unseen = torch.eye(2 * d, dtype=torch.float64) - torch.linalg.pinv(shared, rtol=1e-9) @ shared  # W_o E x = 0
    identifiable = same(unseen, 0.0)
    return (
        same(shared @ unseen, 0.0)
        and reached <= min(3, torch.linalg.matrix_rank(w_o).item(), 2 * d)
        and identifiable == (reached == 2 * d)
    )


@claim("V7")
def mean_is_not_read(c: Corner) -> bool:
    """Two LayerNorms read a residual stream to which t·1 was added."""
    width = 4
    stream, w = c.g.normal(3, width), c.g.normal(width, width)
    norm = lambda x: torch.nn.functional.layer_norm(x, (width,))  # noqa: E731
    read = lambda b: norm(stream + b + torch.tanh(norm(stream + b) @ w)).pow(3).sum()  # noqa: E731
    b_o = c.g.normal(width)
    return same(read(b_o + 3.0), read(b_o)) and same(gradient(read, b_o).sum(), 0.0)


@claim("V8")
def ranking(c: Corner) -> bool:
    p, reader = c.p(c.z(c.b_q))[c.sees], c.r[0]
    with_bias, without = p @ (c.v + c.b_v) @ reader, p @ c.v @ reader
    return same(with_bias, without + c.b_v @ reader) and same(
        with_bias[:, None] - with_bias, without[:, None] - without
    )


@claim("V9")
def latent_bias(c: Corner) -> bool:
    latent, b_c = c.g.normal(len(c.k), 3), c.g.normal(3)
    up_k, up_v = c.g.normal(c.k.shape[1], 3), c.g.normal(c.v.shape[1], 3)
    rotary = c.g.normal(*c.mu.shape)
    p = lambda x: c.p(c.scale * (c.q + c.b_q) @ (x @ up_k.T).T + rotary)  # noqa: E731
    shifted = (p(latent + b_c) @ (latent + b_c) @ up_v.T)[c.sees]
    return same(p(latent + b_c), p(latent)) and same(shifted, (p(latent) @ latent @ up_v.T)[c.sees] + up_v @ b_c)


# ---------------------------------------------------------------- Q


@claim("Q1")
def one_number_a_key(c: Corner) -> bool:
    part = c.scale * c.k @ c.b_q
    return same(c.z(c.b_q, c.b_k), c.z(0.0, c.b_k) + c.beta()) and same(c.both()[1], c.p(c.z(0.0, c.b_k) + part))


@claim("Q2")
def hull(c: Corner) -> bool:
    p, along = c.both()[1][c.sees], c.g.normal(c.v.shape[1])
    seen = (c.v @ along).expand_as(c.mu).masked_fill(c.mu == 0, -torch.inf).amax(-1)[c.sees]
    return bool((p >= 0).all()) and same(p.sum(-1), 1.0) and at_most(p @ c.v @ along, seen)


@claim("Q3")
def variation(c: Corner) -> bool:
    before, after = c.both()
    bound = torch.tanh(c.osc(c.beta()) / 4)
    moved = ((after - before) @ c.v).norm(dim=-1)
    return at_most((after - before).abs().sum(-1) / 2, bound) and at_most(moved, torch.cdist(c.v, c.v).max() * bound)


@claim("Q4")
def blind_to_who_asks(c: Corner) -> bool:
    """With a sink too, over keys that all rows see."""
    seen = (c.mu > 0).all(0)
    for extra in (0.0, c.sink):
        logs = [c.p(z, extra)[:, seen].log() for z in (c.z(0.0, c.b_k), c.z(c.b_q, c.b_k))]
        double = [x[:, :, None] - x[:, None, :] for x in logs]
        if not same(double[1] - double[1][:1], double[0] - double[0][:1]):
            return False
    return True


@claim("Q5")
def null_directions(c: Corner) -> bool:
    """Rows that see all keys: P stays iff β is constant; the differences span min(d, m − 1) dims at most."""
    p = lambda b: c.z(b).softmax(-1)  # noqa: E731
    away = c.k - c.k.mean(0)
    null = c.b_q - torch.linalg.pinv(away) @ (away @ c.b_q)
    ratio = (p(c.b_q) / p(0.0)).log()
    rank = torch.linalg.matrix_rank(away, atol=1e-9).item()
    return (
        same(p(null), p(0.0))
        and same(ratio - ratio[:, :1], c.scale * (away - away[0]) @ c.b_q)
        and rank <= min(away.shape[1], away.shape[0] - 1)
    )


@claim("Q6")
def saturation(c: Corner) -> bool:
    lead, z = (c.k @ c.b_q) * c.scale, c.z()
    if len(lead) < 2 or (top := lead.topk(2).values)[0] - top[1] < 1e-3:
        return True  # no single maximiser
    left = [1 - c.z(t * c.b_q).softmax(-1)[:, lead.argmax()] for t in (0.0, 1.0, 10.0, 300.0)]
    osc = z.amax(-1) - z.amin(-1)
    bounds = [(len(lead) - 1) * (osc - t * (top[0] - top[1])).exp() for t in (0.0, 1.0, 10.0, 300.0)]
    return all(at_most(x, y) for x, y in zip(left, bounds, strict=True))


@claim("Q7")
def row_by_row(c: Corner) -> bool:
    """β_ij of every row its own: the hull and the bound hold."""
    beta = c.g.normal(*c.mu.shape)
    before, after = c.p(c.z()), c.p(c.z() + beta)
    along = c.v[:, 0].expand_as(c.mu).masked_fill(c.mu == 0, -torch.inf).amax(-1)[c.sees]
    moved = (after - before).abs().sum(-1) / 2
    return at_most(moved, torch.tanh(c.osc(beta) / 4)) and at_most((after @ c.v)[c.sees][:, 0], along)


@claim("Q8")
def covariance(c: Corner) -> bool:
    p = c.both()[1]
    for i in range(len(p)):
        centred_v, centred_k = c.v - p[i] @ c.v, c.k - p[i] @ c.k
        found = torch.stack(
            [gradient(lambda b, i=i, a=a: (c.p(c.z(b, c.b_k)) @ c.v)[i, a], c.b_q) for a in range(c.v.shape[1])]
        )
        said = c.scale * torch.einsum("j,ja,je->ae", p[i], centred_v, centred_k)
        seen = c.mu[i] > 0
        k, v = c.k[seen], c.v[seen]
        bound = c.scale / 4 * torch.cdist(k, k).max() * torch.cdist(v, v).max() if len(k) else 0.0
        if c.sees[i] and not (same(found, said) and at_most(torch.linalg.matrix_norm(found, 2), bound)):
            return False
    return True


def relative_entropy(p: Tensor, other: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / other).log(), 0.0).sum(-1)


@claim("Q9")
def divergence(c: Corner) -> bool:
    before, after = (p[c.sees] for p in c.both())
    bound = c.osc(c.beta())[c.sees] ** 2 / 8
    return at_most(relative_entropy(before, after), bound) and at_most(relative_entropy(after, before), bound)


@claim("Q10")
def price(c: Corner) -> bool:
    before, after = c.both()
    length, moved = c.b_q.norm(), (after - before).abs().sum(-1) / 2
    apart = torch.cdist(c.k, c.k).expand(len(c.mu), -1, -1)
    seen = (c.mu > 0).double()
    diameter = (apart * seen[:, :, None] * seen[:, None, :]).amax((-2, -1))
    if not at_most(4 * torch.atanh(moved.clamp_max(1 - 1e-9)), c.scale * length * diameter + 1e-6):
        return False
    unit = c.b_q / length.clamp_min(1e-12)
    lead = (c.scale * c.k @ unit).expand_as(c.mu).masked_fill(c.mu == 0, -torch.inf)
    z = c.z() + c.mu.log()
    for i in range(len(c.mu)):
        count = int((c.mu[i] > 0).sum())
        if count < 2 or (gap := -lead[i].topk(2).values.diff()[0]) < 1e-3:
            continue
        osc = z[i][c.mu[i] > 0].max() - z[i][c.mu[i] > 0].min()
        enough = (osc + torch.tensor((count - 1) / 0.01).log()) / gap
        if not at_most(1 - c.p(c.z(enough * unit))[i].max(), 0.01):
            return False
    return True


@claim("Q11")
def mean_keys(c: Corner) -> bool:
    """Every key in sight has a part in the mean key; the mean key grows along b_q, and is the same only where P is."""
    before, after = (p[c.sees] for p in c.both())
    seen = c.mu[c.sees] > 0
    along = ((after - before) @ c.k) @ c.b_q * c.scale
    moved = (after - before).abs().sum(-1) / 2
    return bool((after[seen] > 0).all()) and at_most(4 * moved**2, along)


# ---------------------------------------------------------------- R, I, G


@claim("R1")
def reparametrised(c: Corner) -> bool:
    """A bias as an r×c matrix: LoRA's rank, VeRA's zero and what makes it, VeRA1D's line, DoRA's start and length."""
    rows, columns, rank = 3, 2, 1 + int(c.g.integers(0, 2, 1))
    one, two = c.g.normal(rows, rank), c.g.normal(rank, columns)
    left, middle = c.g.normal(rows), c.g.normal(rank) * (c.g.uniform(rank) > 0.3)
    vera = left[:, None] * ((one * middle) @ two)
    target = c.g.normal(rows, rank) @ c.g.normal(rank, columns)  # any matrix of rank k, made by two others
    u, s, vt = torch.linalg.svd(target)
    reached = (u[:, :rank] * s[:rank]) @ vt[:rank]
    b, delta = c.g.normal(4), c.g.normal(4)
    dora = b + 2.0 * b.norm() * (b + delta) / (b + delta).norm()
    return (
        torch.linalg.matrix_rank(one @ two).item() <= rank
        and same(reached, target)
        and (not bool(middle.any())) == same(vera, 0.0)
        and same(b + 2.0 * b.norm() * b / b.norm(), 3 * b)
        and same((dora - b).norm(), 2 * b.norm())
    )


@claim("R2")
def any_parametrisation(c: Corner) -> bool:
    """b_k = tanh(A θ): no effect and no gradient; b_v = tanh(A θ): a shift."""
    a, theta = c.g.normal(len(c.b_k), 3), c.g.normal(3)
    made = lambda t: torch.tanh(a @ t)  # noqa: E731
    grad = gradient(lambda t: (c.r * (c.p(c.z(c.b_q, made(t))) @ c.v) ** 2).sum(), theta)
    p = c.p(c.z(c.b_q))[c.sees]
    shifted = same(p @ (c.v + made(theta)), p @ c.v + made(theta))
    return same(c.p(c.z(c.b_q, made(theta))), c.p(c.z(c.b_q))) and same(grad, 0.0) and shifted


@claim("I1")
def mag_angle(c: Corner) -> bool:
    def measure(x: Tensor, y: Tensor) -> Tensor:
        longer = torch.maximum(x.norm(), y.norm())
        return 1 - (x @ y) / (x.norm() * y.norm()) * torch.minimum(x.norm(), y.norm()) / longer

    x, y = c.b_q + 0.1, c.g.normal(len(c.b_q))  # neither is the zero vector
    turn = torch.linalg.qr(c.g.normal(len(x), len(x))).Q
    value = measure(x, y)
    return (
        same(value, measure(y, x))
        and same(value, measure(3 * x, 3 * y))
        and same(value, measure(turn @ x, turn @ y))
        and same(measure(x, x), 0.0)
        and (bool(value > CLOSE) or same(x, y))
        and at_most(value, 1.0 if bool(x @ y >= 0) else 2.0)
    )


@claim("I2")
def magnitude(c: Corner) -> bool:
    measure = lambda x, y: (x - y).abs().mean()  # noqa: E731
    x, y, w = c.b_q, c.b_k, c.b_v
    return (
        same(measure(x, y), measure(y, x))
        and (bool(measure(x, y) > 0) != bool((x == y).all()))
        and at_most(measure(x, w), measure(x, y) + measure(y, w))
        and same(measure(-2 * x, -2 * y), 2 * measure(x, y))
    )


@claim("I3")
def fisher(c: Corner) -> bool:
    """g of a few batches clipped to joint norm 1 together with those of other terms."""
    gradients = c.g.normal(3, 2, len(c.b_q)) * (c.g.uniform(3) > 0.4)[:, None, None]  # batches, terms, dims
    clipped = gradients / gradients.flatten(1).norm(dim=1).clamp_min(1.0)[:, None, None]
    found = clipped.square().mean(-1).mean(0)  # of each term
    d = len(c.b_q)
    zero = [bool((gradients[:, term] == 0).all()) == bool(found[term] == 0) for term in range(2)]
    return at_most(found, 1 / d) and at_most(d * found.sum(), 1.0) and all(zero)


def sides(c: Corner) -> dict[str, tuple[Tensor, Tensor]]:
    """[W b] of q, k and v, W_o, with their gradients, of one head on tokens x."""
    width, d = 3, c.q.shape[1]
    x, y = c.g.normal(len(c.q), width), c.g.normal(len(c.k), width)
    one = lambda t: torch.cat([t, torch.ones(len(t), 1, dtype=torch.float64)], 1)  # noqa: E731
    tables = [c.g.normal(d, width + 1) for _ in range(3)] + [c.g.normal(width, d)]
    leaves = [t.clone().requires_grad_() for t in tables]
    q, k, v = (one(t) @ leaf.T for t, leaf in ((x, leaves[0]), (y, leaves[1]), (y, leaves[2])))
    loss = ((c.p(c.scale * q @ k.T) @ v @ leaves[3].T) ** 2).sum()
    grads = torch.autograd.grad(loss, leaves)
    return {name: (t, g) for name, t, g in zip(("q", "k", "v", "o"), tables, grads, strict=True)}


@claim("G2")
def gradients_agree(c: Corner) -> bool:
    (q, g_q), (k, g_k), (v, g_v), (o, g_o) = sides(c).values()
    return same(g_q @ q.T, k @ g_k.T) and same(g_v @ v.T, o.T @ g_o)


@claim("G1")
def stationary_gauge(c: Corner) -> bool:
    """λ times what is claimed to be 0 is what is left of the gradient S of L + λ/2 ‖θ‖², so it is 0 where S is."""
    decay = 0.7
    (q, g_q), (k, g_k), (v, g_v), (o, g_o) = sides(c).values()
    s_q, s_k, s_v, s_o = (g + decay * t for g, t in ((g_q, q), (g_k, k), (g_v, v), (g_o, o)))
    return (
        same(s_q @ q.T - k @ s_k.T, decay * (q @ q.T - k @ k.T))
        and same(s_v @ v.T - o.T @ s_o, decay * (v @ v.T - o.T @ o))
        and same(s_k[:, -1], decay * k[:, -1])
    )


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("name", CLAIMS)
def test_no_counterexample_is_found(name: str):
    @given(corners())
    def search(c: Corner) -> None:
        assert CLAIMS[name](c), name

    search()


def test_every_claim_is_searched():
    assert {name for name, theorem in THEOREMS.items() if not theorem.measured} <= set(CLAIMS)


# What was once claimed, or is claimed easily: each has a counterexample in the corners, and the search finds it.
FALSE: dict[str, Callable[[Corner], bool]] = {
    "K1 beside a sink": lambda c: same(c.p(c.z(c.b_q, c.b_k), c.sink), c.p(c.z(c.b_q), c.sink)),
    "V1 of blind rows": lambda c: same(c.p(c.z()) @ (c.v + c.b_v), c.p(c.z()) @ c.v + c.b_v),
    "Q1's part alone beside a sink": lambda c: same(
        c.p(c.z(c.b_q, c.b_k), c.sink), c.p(c.z(0.0, c.b_k) + c.scale * c.k @ c.b_q, c.sink)
    ),
    "Q3 with osc/8": lambda c: at_most((c.both()[1] - c.both()[0]).abs().sum(-1) / 2, torch.tanh(c.osc(c.beta()) / 8)),
    "Q5 with rank m": lambda c: torch.linalg.matrix_rank(c.k - c.k.mean(0)).item() == min(c.k.shape),
    "Q9 with osc²/16": lambda c: at_most(relative_entropy(*c.both())[c.sees], (c.osc(c.beta()) ** 2 / 16)[c.sees]),
}


@pytest.mark.parametrize("name", FALSE)
def test_the_search_finds_what_is_false(name: str):
    try:
        find(corners(), lambda c: not FALSE[name](c))
    except NoSuchExample:
        pytest.fail(f"no counterexample to {name} was found")
