"""Which coordinates of which projections are the queries, keys, values and gates of a softmax, told by gradients alone.

A row of logits depends on one position of the queries and on many of the keys. One position of what the next product
reads depends on many positions of the values, through the weights, and on one position of a gate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minibeft.audit.trace import Product, Softmax, Trace
from minibeft.theory.draws import Draws

MOST_ROWS, MOST_POSITIONS = 512, 12


@dataclass(eq=False)
class Part:
    """These coordinates (a mask over the features) of what this product gives."""

    product: Product
    chosen: Tensor

    def spread(self, numbers: Tensor) -> Tensor:
        """A number for each chosen coordinate as a tensor that can be added to the product's result."""
        made = [axis % self.product.result.dim() for axis in self.product.made]
        whole = torch.zeros(self.chosen.shape, dtype=numbers.dtype).masked_scatter(self.chosen, numbers)
        shape = [size if axis in made else 1 for axis, size in enumerate(self.product.result.shape)]
        return whole.reshape(shape)


@dataclass(eq=False)
class Layer:
    """One softmax with what it is made of.

    index    its number in the trace
    keys     without those that are the same for every input: these encode positions
    reader   the product that reads what the weights gathered; None: no product does
    values   the coordinates that the reader reads through the weights; gates: those that it reads without them
    """

    index: int
    softmax: Softmax
    queries: list[Part]
    keys: list[Part]
    reader: Product | None
    values: list[Part]
    gates: list[Part]


def coordinates(product: Product, gradient: Tensor) -> Tensor:
    """A gradient as positions × coordinates."""
    made = sorted(axis % gradient.dim() for axis in product.made)
    return gradient.movedim(made, list(range(-len(made), 0))).flatten(-len(made)).flatten(0, -2)


def reached(tensor: Tensor) -> set[int]:
    """The ids of the leaves that a tensor was made of."""
    todo, seen, found = [tensor.grad_fn], set(), {id(tensor)} if tensor.is_leaf else set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            found |= set() if leaf is None else {id(leaf)}
    return found


def gradients(of: Tensor, to: Sequence[Product], weights: Tensor, *, again: bool = False) -> list[Tensor]:
    """The gradient of a weighted sum with respect to each product's result; zeros where there is none."""
    leaves = [product.result for product in to]
    found = torch.autograd.grad(of, leaves, weights, retain_graph=True, create_graph=again, materialize_grads=True)
    return list(found)


def sort_out(
    of: Tensor, to: list[Product], tries: Iterable[Tensor], everything: Tensor, *, soon: bool
) -> tuple[list[Part], list[Part]]:
    """The coordinates that every try reads at one position at most, and those that some try reads at several.

    tries       weights over the entries of `of`, each for one row or one position
    everything  weights over all rows or positions together
    soon        stop once every coordinate on which `of` depends has been met
    """
    wanted = [(coordinates(p, g) != 0).any(0) for p, g in zip(to, gradients(of, to, everything), strict=True)]
    most = [torch.zeros(mask.shape, dtype=torch.long) for mask in wanted]
    for one in tries:
        for i, (p, g) in enumerate(zip(to, gradients(of, to, one), strict=True)):
            most[i] = torch.maximum(most[i], (coordinates(p, g) != 0).sum(0))
        if soon and all((m[mask] > 0).all() for m, mask in zip(most, wanted, strict=True)):
            break
    split = [[Part(p, hit(m)) for p, m in zip(to, most, strict=True)] for hit in (lambda m: m == 1, lambda m: m > 1)]
    one, many = ([part for part in parts if part.chosen.any()] for parts in split)
    return one, many


def rows(softmax: Softmax, draws: Draws) -> Iterator[Tensor]:
    """Weights on the logits that one row sees, for rows that see two or more, in random order."""
    seen = softmax.seen.flatten(0, -2)
    several = (seen.sum(-1) > 1).nonzero().flatten()
    for row in several[draws.permutation(len(several))][:MOST_ROWS].tolist():
        weights = torch.zeros(seen.shape, dtype=softmax.logits.dtype)
        weights[row] = random(draws, seen[row]) * seen[row]
        yield weights.reshape(softmax.seen.shape)


def read(product: Product) -> Tensor:
    """What a product reads as positions × features."""
    summed = sorted(axis % product.source.dim() for axis in product.summed)
    moved = product.source.detach().movedim(summed, list(range(-len(summed), 0)))
    return moved.flatten(-len(summed)).flatten(0, -2)


def gathers(product: Product) -> Tensor:
    """Which positions of the product's input are not all zero.

    They are zero at padding that a model adds and hides by itself, as Longformer does.
    """
    return read(product).any(1)


def as_read(product: Product, table: Tensor) -> Tensor:
    """Positions × features in the axes of what the product reads."""
    summed = sorted(axis % product.source.dim() for axis in product.summed)
    ends = list(range(-len(summed), 0))
    return table.reshape(product.source.detach().movedim(summed, ends).shape).movedim(ends, summed)


def places(product: Product, draws: Draws) -> Iterator[Tensor]:
    """Weights on what a product reads at one position, for a few positions, the last one first."""
    real, shape = gathers(product).nonzero().flatten(), read(product).shape
    order = torch.cat([real[-1:], real[draws.permutation(len(real))]])
    for position in order[:MOST_POSITIONS]:
        weights = torch.zeros(shape)
        weights[position] = draws.normal(shape[1])
        yield as_read(product, weights)


def random(draws: Draws, like: Tensor) -> Tensor:
    return draws.normal(*like.shape, dtype=torch.get_default_dtype())


def layers(trace: Trace, other: Trace, draws: Draws) -> Iterator[Layer]:
    """Each softmax that has queries and keys; `other` is the trace of another input."""
    by_leaf = {id(product.result): product for product in trace.products}
    fixed = {
        product.name
        for product in trace.products
        if (again := other.named(product.name)) is not None and torch.equal(product.result, again.result)
    }
    for index, softmax in enumerate(trace.softmaxes):
        sources = [by_leaf[leaf] for leaf in sorted(reached(softmax.logits) & by_leaf.keys(), key=list(by_leaf).index)]
        if not sources:
            continue
        everything = random(draws, softmax.seen) * softmax.seen
        queries, keys = sort_out(softmax.logits, sources, rows(softmax, draws), everything, soon=True)
        keys = [part for part in keys if part.product.name not in fixed] or keys
        if not queries or not keys:
            continue
        reader = next((p for p in trace.products[softmax.before :] if id(softmax.weights) in reached(p.source)), None)
        gates, values = [], []
        if reader is not None:
            to = [by_leaf[leaf] for leaf in reached(reader.source) & by_leaf.keys()]
            gates, values = sort_out(reader.source, to, places(reader, draws), random(draws, reader.source), soon=False)
        yield Layer(index, softmax, queries, keys, reader, values, gates)
