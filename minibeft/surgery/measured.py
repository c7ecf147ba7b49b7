"""A checkpoint of any family without the biases that audit finds to do nothing, verified on transformers' own model.

Entries of b_k that are null wherever they are used become zero; a b_v that is one shift for all positions goes into the
bias after W_o, which must be there. Autograd, not names, tells which entry of which tensor a coordinate is, also in
fused layouts and where a layer has q_bias and v_bias: the gradient of a randomly weighted sum of an added bias is these
weights, each at the entry that it multiplies. Nothing is written unless both models agree (equivalence.py says how).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minibeft.audit.audit import Begin, LayerReport, audited
from minibeft.audit.measure import Audit, Finding
from minibeft.audit.roles import Part, coordinates
from minibeft.audit.subject import Subject, from_folder, loaded, quietly
from minibeft.audit.trace import Name, Product, Trace, traced
from minibeft.checkpoints.convert import plainly
from minibeft.checkpoints.find import find
from minibeft.checkpoints.rewrite import Edit, rewrite_folder
from minibeft.checkpoints.tensors import open_tensors
from minibeft.errors import BadInput, needs
from minibeft.show.files import new_folder, write_json
from minibeft.show.record import provenance
from minibeft.surgery.equivalence import Agreement, Difference
from minibeft.surgery.simplify import Simplified, Step
from minibeft.theory.agreement import distance, explained
from minibeft.theory.draws import Draws

# Two sums of the same numbers differ by at most this share; others come so close with a probability of this size.
ROUNDING = 1e-9
# A coordinate of what a product gives.
Place = tuple[Name, int]


def simplify_measured(
    model: str | Path, out: str | Path, *, seed: int = 0, progress: Begin = lambda *_: None
) -> Simplified:
    """Write the simplified checkpoint to the folder `out`; the input is left as it is.

    BadInput, and nothing written, when audit allows no step or the two models do not agree.
    """
    with needs("transformers", "audit", "simplify --engine transformers"):
        import transformers  # noqa: F401
    folder = find(model)
    with new_folder(Path(out)) as ready, plainly(folder) as source:
        done = write_simplified(source, ready, seed, progress)
        (ready / "simplify").mkdir(exist_ok=True)
        write_json(ready / "simplify" / "simplify.json", provenance() | done.as_json())
        return done


def write_simplified(folder: Path, ready: Path, seed: int, progress: Begin) -> Simplified:
    """The same into a folder that is there."""
    subject, layers = audited(str(folder), loaded(folder, seed, failed := []), failed, seed, progress)
    with quietly():
        edits = Edits(subject, layers, Draws(seed))
        steps = edits.zero_keys(), edits.fold_values()
        if not edits.exact:
            raise BadInput(f"{folder}: nothing to simplify, nothing was written; " + "; ".join(map(str, steps)))
        edit = Edit(in_file(folder, subject.model, edits.exact))
    rewrite_folder(folder, ready, edit)
    rounding = max(map(distance, edits.exact.values(), edit.tensors.values()))
    agreement = verified(folder, ready, subject, edits.exact, next(iter(edit.tensors.values())).dtype)
    return Simplified(steps, edits.zeroed, 0, 0, rounding, agreement)


class Edits:
    """The new values of a model's parameters.

    exact   by name, in float64
    zeroed  how many entries are zero now that were not
    home    a coordinate → the parameter and the entry that are added there
    users   a parameter and an entry → the coordinates where it is added
    """

    def __init__(self, subject: Subject, layers: Sequence[tuple[Audit, LayerReport]], draws: Draws):
        self.subject, self.layers = subject, layers
        self.exact: dict[str, Tensor] = {}
        self.zeroed = 0
        self.parameters = {name: p for name, p in subject.model.named_parameters() if p.dim() == 1}
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.home: dict[Place, tuple[str, int]] = {}
        trace = subject.cut(subject.given)
        for product in trace.products:
            self.home |= homes(product, self.parameters, draws)
        for here, _ in layers:
            layer, reader = here.layer, here.layer.reader and trace.named(here.layer.reader.name)
            self.home |= later(trace.softmaxes[layer.index].logits, layer.keys, trace, self.parameters, draws)
            if reader is not None:
                self.home |= later(reader.source, layer.values, trace, self.parameters, draws)
        subject.model.requires_grad_(False)
        self.users: dict[tuple[str, int], set[Place]] = {}
        for place, entry in self.home.items():
            self.users.setdefault(entry, set()).add(place)

    def value(self, entry: tuple[str, int]) -> float:
        """What an entry is now."""
        return self.parameters[entry[0]][entry[1]].item()

    def zero(self, entries: Iterable[tuple[str, int]]) -> None:
        for name, index in entries:
            self.changed(name)[index] = 0.0
            self.zeroed += 1

    def changed(self, name: str) -> Tensor:
        """The new value of a parameter, to be worked on."""
        return self.exact.setdefault(name, self.parameters[name].detach().clone())

    def movable(self, wanted: set[Place]) -> tuple[set[tuple[str, int]], bool]:
        """The nonzero entries that are added only at these places; whether some there are added elsewhere too."""
        entries = {self.home[place] for place in wanted & self.home.keys()}
        entries = {entry for entry in entries if self.value(entry)}
        alone = {entry for entry in entries if self.users[entry] <= wanted}
        return alone, alone != entries

    def zero_keys(self) -> Step:
        """b_k set to zero at each coordinate that is null in every layer that has it as a key, and nothing else."""
        null, other = set[Place](), set[Place]()
        for here, _ in self.layers:
            mine = places(here.null)
            null |= mine
            other |= places([*here.layer.queries, *here.layer.values, *here.layer.gates])
            other |= places(here.layer.keys) - mine
        entries, shared = self.movable(null - other)
        self.zero(entries)
        found = [report.found["k"] for _, report in self.layers]
        return step("k", "zero", found, len(entries), "its tensor serves other projections too" if shared else "")

    def fold_values(self) -> Step:
        """b_v folded into the bias after W_o; layers that share a W_o are folded together."""
        groups: dict[str, list[Audit]] = {}
        for here, report in self.layers:
            if report.found["v"].status == "foldable" and here.layer.reader is not None:
                groups.setdefault(here.layer.reader.name[0], []).append(here)
        done = [self.fold(group) for group in groups.values()]
        found = [report.found["v"] for _, report in self.layers]
        return step("v", "fold", found, sum(n for n, _ in done), next((why for _, why in done if why), ""))

    def fold(self, group: Sequence[Audit]) -> tuple[int, str]:
        """How many entries were folded, or why they stay."""
        wanted = set[Place]().union(*(places(here.layer.values) for here in group))
        others = set[Place]().union(
            *(places([*x.layer.queries, *x.layer.keys, *x.layer.gates]) for x, _ in self.layers),
            *(places(x.layer.values) for x, _ in self.layers if x not in group),
        )
        entries, shared = self.movable(wanted - others)
        if not entries and not shared:
            return 0, ""
        if shared or wanted & others & self.home.keys():
            return 0, "its tensor serves other projections too"
        readers = [here.layer.reader for here in group if here.layer.reader is not None]
        gives = {reader.name: coordinates(reader, reader.result.detach()).shape[1] for reader in readers}
        outputs = {(name, c) for name, width in gives.items() for c in range(width)}
        after = {self.home[place] for place in outputs & self.home.keys()}
        if not outputs <= self.home.keys() or any(not self.users[entry] <= outputs for entry in after):
            return 0, "foldable, but no bias after W_o, of its own, could hold W_o b_v"
        change = self.shift(group[0], readers[0])
        for coordinate, number in enumerate(change.tolist()):
            name, index = self.home[readers[0].name, coordinate]
            self.changed(name)[index] += number
        self.zero(entries)
        return len(entries), ""

    def shift(self, here: Audit, reader: Product) -> Tensor:
        """W_o b_v: by how much the reader's output falls when b_v is removed, averaged over positions."""
        taken: dict[Name, Tensor] = {}
        for part in here.layer.values:
            b_v = [
                -self.value(self.home[place]) if (place := (part.product.name, c)) in self.home else 0.0
                for c in part.chosen.flatten().nonzero().flatten().tolist()
            ]
            taken[part.product.name] = taken.get(part.product.name, 0.0) + part.spread(torch.tensor(b_v))
        now, then = self.subject.run(taken).named(reader.name), here.plain.named(reader.name)
        assert now is not None
        assert then is not None
        return coordinates(reader, then.result - now.result).mean(0)


def places(parts: Sequence[Part]) -> set[Place]:
    """The coordinates of these parts."""
    return {(part.product.name, c) for part in parts for c in part.chosen.flatten().nonzero().flatten().tolist()}


def homes(product: Product, parameters: Mapping[str, Tensor], draws: Draws) -> dict[Place, tuple[str, int]]:
    """For each coordinate of a product, the parameter and the entry of it that is added there.

    Entries that are added at several coordinates, or not unchanged, are left out.
    """
    added = product.added
    if added is None or not added.requires_grad or added.numel() != added.shape[-1]:
        return {}
    weights = draws.normal(added.numel())
    gradients = torch.autograd.grad(added, list(parameters.values()), weights.reshape(added.shape), allow_unused=True)
    numbers = {number: coordinate for coordinate, number in enumerate(weights.tolist())}
    return {
        (product.name, numbers[number]): (name, entry)
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
        for entry, number in enumerate(gradient.tolist())
        if number in numbers
    }


def later(
    of: Tensor, parts: Sequence[Part], trace: Trace, parameters: Mapping[str, Tensor], draws: Draws
) -> dict[Place, tuple[str, int]]:
    """The same for biases that are added after the products and before `of`, which is computed from them.

    A random sum of `of` has the same gradient at such an entry as at its coordinate, all positions summed.
    """
    products = {part.product.name: trace.named(part.product.name) for part in parts}
    sources = {name: product for name, product in products.items() if product is not None}
    leaves = [product.result for product in sources.values()] + list(parameters.values())
    found = torch.autograd.grad(of, leaves, draws.normal(*of.shape), retain_graph=True, allow_unused=True)
    numbers = {
        number: (name, coordinate)
        for (name, product), gradient in zip(sources.items(), found, strict=False)
        if gradient is not None
        for coordinate, number in enumerate(coordinates(product, gradient).sum(0).tolist())
        if number
    }
    ordered = torch.tensor(sorted(numbers), dtype=torch.float64)
    return {
        numbers[ordered[place].item()]: (name, entry)
        for name, gradient in zip(parameters, found[len(sources) :], strict=True)
        if gradient is not None
        for entry, number in enumerate(gradient)
        if number and (gaps := (ordered - number).abs())[place := int(gaps.argmin())] <= ROUNDING * number.abs()
    }


def step(bias: str, action: Any, found: Sequence[Finding], entries: int, why: str) -> Step:
    """What happened to one bias, with audit's verdicts on all layers."""
    kinds: dict[str, int] = {}
    for each in found:
        name = f"{each.status}{', ' * bool(each.why)}{each.why}"
        kinds[name] = kinds.get(name, 0) + 1
    measured = "measured: " + "; ".join(f"{name} in {n} of {len(found)} layers" for name, n in kinds.items())
    if entries:
        return Step(bias, action, "", f"{entries:,} entries; {measured}{'; ' * bool(why)}{why}")
    if why or not any(each.without for each in found):
        return Step(bias, "refused", "", why or measured)
    return Step(bias, "nothing", "", "no entry of one was found that is not zero")


def in_file(folder: Path, model: Any, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new values by the names in the files, in the files' types.

    transformers may use another name than the file; then the tensor with the same values is taken. BadInput where that
    is not exactly one.
    """
    tensors, found = open_tensors(folder), {}
    for name, value in exact.items():
        now = model.get_parameter(name)
        named = [n for n in (name, f"{model.base_model_prefix}.{name}") if n in tensors]
        same = [n for n in named or tensors if (t := tensors[n]()).shape == now.shape and torch.equal(t.double(), now)]
        if len(same) != 1:
            raise BadInput(
                f"{folder}: nothing was written; {len(same)} tensors of its files may be transformers' {name}"
            )
        found[same[0]] = value.to(tensors[same[0]]().dtype)
    return found


def outputs(model: Any, subject: Subject, dtype: torch.dtype) -> Tensor:
    """All that a model returns on the subject's two inputs, in this type."""
    given = [
        {n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in inputs.items()}
        for inputs in (subject.given, subject.other)
    ]
    with quietly(dtype):
        return torch.cat([t.flatten().double() for x in given for t in traced(model, x, {}, dtype).outputs])


def verified(folder: Path, ready: Path, subject: Subject, exact: Mapping[str, Tensor], dtype: torch.dtype) -> Agreement:
    """Whether the new folder computes what the old one does; the subject's model gets the unrounded values.

    dtype  of the files
    """
    model = subject.model
    gold, single = (
        outputs(model, subject, torch.float64),
        outputs(opened(folder, torch.float32), subject, torch.float32),
    )
    plain = outputs(opened(folder, dtype), subject, dtype)
    candidate = outputs(opened(ready, dtype), subject, dtype)
    for name, value in exact.items():
        model.get_parameter(name).data = value
    unrounded, largest = outputs(model, subject, torch.float64), gold.abs().max().item()
    allowed = explained(distance(single, gold), largest, torch.float64, sampled_in=torch.float32, roundings=2)
    written = Difference(
        str(dtype).removeprefix("torch."),
        distance(candidate, gold),
        explained(distance(plain, gold), largest, dtype),
    )
    sequences = 2 * max(len(x) for x in subject.given.values() if isinstance(x, Tensor))
    agreement = Agreement(
        sequences, largest, Difference("float64", distance(unrounded, gold), allowed), written, "random inputs"
    )
    agreement.require(folder)
    return agreement


def opened(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model of a folder in this type."""
    with quietly(dtype):
        return from_folder(folder, dtype)
