"""What b_q, b_k and b_v can do in one attention layer: exact zero tests on its gradients, and the biases redrawn.

A softmax ignores a number added to all logits of a row, so b_k acts only through weighted sums of a row's logits whose
weights sum to zero. A coordinate of b_k is null if and only if the gradient of a random such sum is zero. The same test
over the positions of the output projection's input tells whether b_v is the same shift at all of them. A sum of n terms
counts as zero when it is at most (n + OPERATIONS) u Σ|terms|, its rounding error (Higham, Accuracy and Stability of
Numerical Algorithms, 3.1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minibeft.audit.roles import Layer, Part, as_read, coordinates, gathers, gradients, random, read
from minibeft.audit.trace import Name, Product, Trace
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws

Status = Literal[
    "null", "partly null", "active", "foldable", "partly foldable", "not foldable", "limited", "not measured"
]
Run = Callable[[Mapping[Name, Tensor]], Trace]
# Between a projection and the sum: rotation, norm, scale, the two products.
OPERATIONS = 64
# Random sums for each coordinate.
SUMS = 8
# A key that no projection made is looked for among this many first and this many last keys.
ENDS = 4
UNSEEN = "not measured"


@dataclass
class Finding:
    """What one bias can do in one layer.

    why          the mechanism that makes it active or not foldable, or why it was not measured
    without      how many of the coordinates have no effect (b_v: are one shift for all positions)
    largest_null, smallest_active   extremes of |Σ terms| / Σ|terms| over the coordinates
    moved        how far P moves when the null part of b_k, or all of b_q, is redrawn; when b_v is redrawn, how much its
                 shift of the output projection's input differs between positions; None: not measured
    allowed      the most that rounding explains of `moved`
    """

    status: Status
    why: str = ""
    without: int = 0
    coordinates: int = 0
    largest_null: float | None = None
    smallest_active: float | None = None
    moved: float | None = None
    allowed: float | None = None


def cancelling(draws: Draws, over: Tensor) -> Tensor:
    """Integers that sum exactly to zero over these entries of the last axis, and are zero elsewhere.

    Along that axis they grow with a random slope per row, so that a slow dependence on position adds up.
    """
    count, dtype = over.shape[-1], torch.get_default_dtype()
    rising = torch.arange(count) + draws.integers(0, 8, *over.shape)
    numbers = (rising * draws.integers(-8, 9, *over.shape[:-1], 1) * over).to(dtype)
    return (numbers * over.sum(-1, keepdim=True) - numbers.sum(-1, keepdim=True)) * over


def ratios(of: Tensor, parts: Sequence[Part], draw: Callable[[], Tensor]) -> tuple[list[Tensor], int]:
    """|Σ terms| / Σ|terms| over positions for each chosen coordinate, and the number of terms.

    Numerator and denominator are each added up over several random sums. A null coordinate's sum is zero in all of
    them; that either is small by chance in all of them is unlikely.
    """
    sums, sizes = ([torch.zeros(int(part.chosen.sum())) for part in parts] for _ in range(2))
    terms = 0
    for _ in range(SUMS):
        for i, (part, g) in enumerate(zip(parts, gradients(of, [p.product for p in parts], draw()), strict=True)):
            table = coordinates(part.product, g)[:, part.chosen]
            sums[i] += table.sum(0).abs()
            sizes[i] += table.abs().sum(0)
            terms = max(terms, len(table))
    return [s / size.clamp(min=torch.finfo(size.dtype).tiny) for s, size in zip(sums, sizes, strict=True)], terms


def judged(found: Sequence[Tensor], bound: float, words: tuple[Status, Status, Status]) -> Finding:
    """The first of these words where no coordinate is above the bound, the second where some are, the last where
    all are."""
    both = torch.cat(list(found))
    null, active = both[both <= bound].tolist(), both[both > bound].tolist()
    status = words[0] if not active else words[1] if null else words[2]
    return Finding(status, "", len(null), len(both), max(null, default=None), min(active, default=None))


def within(part: Part, mask: Tensor) -> Part:
    """Those of a part's coordinates where the mask is true."""
    return Part(part.product, torch.zeros_like(part.chosen).masked_scatter(part.chosen, mask))


def bends(of: Tensor, parts: Sequence[Part], weights: Tensor) -> bool:
    """Whether a sum of these logits, or outputs, is more than linear in these coordinates."""
    products = [part.product for part in parts]
    first = gradients(of, products, weights, again=True)
    slope = sum(((coordinates(p.product, g)[:, p.chosen]) ** 2).sum() for p, g in zip(parts, first, strict=True))
    if not isinstance(slope, Tensor) or not slope.requires_grad:
        return False
    second = gradients(slope, products, torch.ones_like(slope))
    size = sum(g.abs().max() for g in first)
    largest = max(coordinates(p.product, g)[:, p.chosen].abs().max() for p, g in zip(parts, second, strict=True))
    return bool(largest > OPERATIONS * unit_roundoff(of.dtype) * size**2)


class Audit:
    """Measures one layer; `run` is the model's forward pass with these shifts added to its projections.

    null  the coordinates of b_k without effect, once keys() has found them
    """

    def __init__(self, layer: Layer, plain: Trace, run: Run, draws: Draws):
        self.layer, self.plain, self.run, self.draws = layer, plain, run, draws
        self.logits, self.seen = layer.softmax.logits, layer.softmax.seen
        self.u = unit_roundoff(self.logits.dtype)
        self.null: list[Part] = []

    def shifted(self, parts: Sequence[Part]) -> Trace:
        """The model with a random bias on these coordinates, as large as what it is added to."""
        shifts: dict[Name, Tensor] = {}
        for part in parts:
            size = coordinates(part.product, part.product.result.detach())[:, part.chosen].std().item()
            numbers = random(self.draws, part.chosen[part.chosen]) * (size or 1.0)
            shifts[part.product.name] = shifts.get(part.product.name, 0.0) + part.spread(numbers)
        return self.run(shifts)

    def moved(self, parts: Sequence[Part]) -> tuple[float, float]:
        """How far P moves when a random bias is added to these coordinates, and how far rounding alone can move it."""
        then, now = self.plain.softmaxes[self.layer.index], self.shifted(parts).softmaxes[self.layer.index]
        size = sum(s.logits[s.seen].abs().max().item() for s in (then, now))
        terms = OPERATIONS + max(part.chosen.numel() for part in parts)
        return (now.weights - then.weights).abs().max().item(), terms * self.u * (1 + size)

    def keys(self) -> Finding:
        """b_k, coordinate by coordinate."""
        parts = self.layer.keys
        found, terms = ratios(self.logits, parts, lambda: cancelling(self.draws, self.seen))
        bound = (terms + self.logits.shape[-1] + OPERATIONS) * self.u
        null = [within(p, r <= bound) for p, r in zip(parts, found, strict=True)]
        rest = [part for p, r in zip(parts, found, strict=True) if (part := within(p, r > bound)).chosen.any()]
        null = [part for part in null if part.chosen.any()]
        self.null = null
        result = judged(found, bound, ("null", "partly null", "active"))
        if null:
            result.moved, result.allowed = self.moved(null)
            if result.moved > result.allowed:
                return Finding(
                    UNSEEN, f"its gradient is zero, and yet P moves by {result.moved:.1e} when it is redrawn"
                )
        if rest:
            moved, allowed = self.moved(rest)
            if moved <= allowed:
                return Finding(UNSEEN, "its gradient is not zero, and yet P does not move when it is redrawn")
            result.why = self.key_mechanism(rest)
        return result

    def key_mechanism(self, parts: Sequence[Part]) -> str:
        """Why b_k is active: the logits bend, a key has no b_k, or the shift depends on the position."""
        if bends(self.logits, parts, cancelling(self.draws, self.seen)):
            return "through a nonlinearity"
        real, count = torch.ones_like(self.seen), self.seen.shape[-1]
        for key in {*range(min(ENDS, count)), *range(max(count - ENDS, 0), count)}:
            column = torch.zeros(self.seen.shape, dtype=self.logits.dtype)
            column[..., key] = random(self.draws, column[..., key]) * self.seen[..., key]
            found = gradients(self.logits, [p.product for p in parts], column)
            real[..., key] = any(
                coordinates(p.product, g)[:, p.chosen].any() for p, g in zip(parts, found, strict=True)
            )
        over = self.seen & real
        if not bool(real.all()):
            found, terms = ratios(self.logits, parts, lambda: cancelling(self.draws, over))
            if torch.cat(found).max() <= (terms + self.logits.shape[-1] + OPERATIONS) * self.u:
                return "a sink or a key that no projection made"
        return "by position"

    def queries(self) -> Finding:
        """b_q: limited, or nothing at all."""
        moved, allowed = self.moved(self.layer.queries)
        count = sum(int(part.chosen.sum()) for part in self.layer.queries)
        if moved <= allowed:
            return Finding(UNSEEN, "b_q has no effect either", moved=moved, allowed=allowed)
        return Finding("limited", coordinates=count, moved=moved)

    def values(self) -> Finding:
        """b_v: whether it shifts what the output projection reads by the same vector at every position."""
        reader, parts = self.layer.reader, self.layer.values
        if reader is None or not parts:
            return Finding(UNSEEN, "no product with a parameter reads what the weights gathered")
        real, positions = gathers(reader), int(gathers(reader).sum())
        if positions < 2:
            return Finding(UNSEEN, "one position alone is read")
        over = real.expand(read(reader).mT.shape)
        draw = lambda: as_read(reader, cancelling(self.draws, over).mT)  # noqa: E731
        found, terms = ratios(reader.source, parts, draw)
        bound = (terms + positions + OPERATIONS) * self.u
        result = judged(found, bound, ("foldable", "not foldable", "not foldable"))
        result.moved, result.allowed = self.unequal(parts, reader)
        if (result.moved <= result.allowed) != (result.status == "foldable"):
            return Finding(UNSEEN, f"its gradient is {result.status}, its redrawn bias is not")
        if result.status == "not foldable":
            result.why = self.value_mechanism(parts, draw())
        elif self.forgets_a_bias(reader):
            result.status, result.why = "not foldable", "the bias after W_o is never added"
        return result

    def forgets_a_bias(self, reader: Product) -> bool:
        """Whether the reader's module has a bias of its output's length that no step of the forward pass uses."""
        length, module = coordinates(reader, reader.result).shape[1], reader.name[0].rpartition(".")[0]
        return any(
            name.rpartition(".")[0] == module and parameter.shape == (length,)
            for name, parameter in self.plain.idle.items()
        )

    def unequal(self, parts: Sequence[Part], reader: Product) -> tuple[float, float]:
        """By how much the shift that a redrawn b_v makes differs between positions, and what rounding allows."""
        now = self.shifted(parts).named(reader.name)
        then = self.plain.named(reader.name)
        assert now is not None
        assert then is not None
        change = (read(now) - read(then))[gathers(then)]
        size = now.source.abs().max() + then.source.abs().max()
        differs = change.amax(0) - change.amin(0)
        return differs.max().item(), (OPERATIONS + self.logits.shape[-1]) * self.u * size.item()

    def value_mechanism(self, parts: Sequence[Part], weights: Tensor) -> str:
        """Why b_v does not fold."""
        reader = self.layer.reader
        assert reader is not None
        if bends(reader.source, parts, weights):
            of = self.layer.softmax.weights
            (slope,) = torch.autograd.grad(reader.source, of, weights, create_graph=True)
            bent = (
                slope.requires_grad
                and torch.autograd.grad((slope**2).sum(), of, retain_graph=True, materialize_grads=True)[0].any()
            )
            return "a norm before W_o" if bent else "a norm on the values"
        return "a gate" if self.layer.gates else "rows of P that do not sum to one (a sink or a value without b_v)"
