"""What the kernel tests share: awkward shapes, tensors in NaN, and checks that take the plan to be checked.

Every tensor lies between guards of NaN: a read past its end poisons the result, a write past its end is seen. Outputs
are NaN themselves before a launch. Without a GPU, Triton's interpreter runs the kernels (conftest.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels.bias_grad.forward import plan_column_sum
from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.key_cache.forward import plan_quantised_keys
from minibeft.kernels.key_cache.reference import levels, shifted_keys_reference, unpacked
from minibeft.kernels.lang import chip_of
from minibeft.kernels.owners import Owners, owners
from minibeft.kernels.qkv_bias.backward import plan_backward, plan_input_grad
from minibeft.kernels.qkv_bias.descriptors import describable, plan_described
from minibeft.kernels.qkv_bias.forward import Projection, plan_qkv_bias
from minibeft.kernels.qkv_bias.reference import OptionalTriple, Triple, input_grad_reference, qkv_bias_reference
from minibeft.kernels.rounding import Reach, rounding_bound
from minibeft.kernels.tiles import INTERPRETED_VARIANT, INTERPRETER
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws
from minibeft.theory.rotary import Rotation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GUARD = 1 << 15
Run = Callable[..., Any]


def guarded(values: Tensor) -> Tensor:
    """The same values, contiguous, with GUARD times NaN on either side of them in memory; 0 beside whole numbers."""
    guard = torch.nan if values.is_floating_point() else 0
    buffer = torch.full((values.numel() + 2 * GUARD,), guard, dtype=values.dtype, device=DEVICE)
    inner = buffer[GUARD : GUARD + values.numel()].view(values.shape)
    inner.copy_(values)
    return inner


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output nobody has written yet."""
    return guarded(torch.full(shape, torch.nan, dtype=dtype))


def assert_guards_intact(output: Tensor, what: str) -> None:
    buffer = output.new_empty(0).set_(output.untyped_storage())
    whole = buffer.isnan() if output.is_floating_point() else buffer == 0
    assert whole[:GUARD].all(), f"{what}: written before its beginning"
    assert whole[GUARD + output.numel() :].all(), f"{what}: written past its end"


@dataclass(frozen=True)
class Case:
    """One projection. dims: entries of a head that turn; layout: "strided" makes every large input non-contiguous;
    sets: how many sets of biases rows take theirs from, 0 for one bias; b_v is then one vector for all of them."""

    batch: int
    tokens: int
    width: int
    heads: int
    groups: int
    size: int
    dims: int = 0
    interleaved: bool = False
    positions: str = "shared"
    layout: str = "contiguous"
    biases: str = "qkv"
    sets: int = 0

    def __str__(self) -> str:
        turned = f"-turn{self.dims}{'i' if self.interleaved else 'h'}" if self.dims else ""
        shape = f"{self.batch}x{self.tokens}x{self.width}-{self.heads}:{self.groups}x{self.size}"
        return f"{shape}{turned}-{self.layout}-b{self.biases}{self.sets or ''}"

    def _lay(self, values: Tensor) -> Tensor:
        """Strided: stored with the last two axes exchanged, so that no axis but these has its usual stride."""
        return guarded(values) if self.layout == "contiguous" else guarded(values.mT).mT

    def draw(self, dtype: torch.dtype, seed: int = 0) -> "Drawn":
        """Everything at random, in numbers of eight bits, which every type holds exactly."""
        generator = Draws(seed)

        def normal(*shape: int) -> Tensor:
            return generator.normal(*shape, dtype=torch.float32).bfloat16().to(dtype)

        heads = (self.heads, self.groups, self.groups)
        rotation = None
        if self.dims:
            sequences = () if self.positions == "shared" else (self.batch,)
            angles = 2 * torch.pi * generator.uniform(*sequences, self.tokens, self.dims // 2, dtype=torch.float32)
            rotation = Rotation(guarded(angles.cos()), guarded(angles.sin()), self.interleaved)
        w_q, w_k, w_v = (self._lay(normal(h * self.size, self.width)) for h in heads)
        tables = {name: (self.sets,) if self.sets and name != "v" else () for name in "qkv"}
        b_q, b_k, b_v = (
            guarded(normal(*tables[n], h * self.size)) if n in self.biases else None
            for n, h in zip("qkv", heads, strict=True)
        )
        d_q, d_k, d_v = (self._lay(normal(self.batch, h, self.tokens, self.size)) for h in heads)
        x = self._lay(normal(self.batch, self.tokens, self.width))
        rows = self.batch * self.tokens
        sets = owners(generator.integers(0, self.sets, rows).to(DEVICE), self.sets) if self.sets else None
        sets = sets and Owners(*(guarded(part) for part in sets))
        return Drawn(x, (w_q, w_k, w_v), (b_q, b_k, b_v), (d_q, d_k, d_v), rotation, self.heads, sets)


@dataclass(frozen=True)
class Drawn:
    """The tensors of a case, in one type."""

    x: Float[Tensor, "B T C"]
    weights: Triple
    biases: OptionalTriple
    grads: Triple
    rotation: Any  # Rotation, None, or Reach
    heads: int
    sets: Owners | None

    def to(self, dtype: torch.dtype) -> "Drawn":
        """The same numbers in another type."""

        rotation = self.rotation
        if rotation is not None and dtype == torch.float64:
            rotation = rotation.double()
        return self._map(lambda t: t.to(dtype), rotation)

    def absolute(self) -> "Drawn":
        """The case with absolute values, and sums in place of turns: its results bound the sum of a result's terms."""
        turn = None if self.rotation is None else Reach(self.rotation)
        return self._map(torch.abs, turn)

    def _map(self, f: Callable[[Tensor], Tensor], rotation: Any) -> "Drawn":
        def each(tensors: Iterable[Tensor | None]) -> Any:
            return tuple(t if t is None else f(t) for t in tensors)

        return Drawn(
            f(self.x), each(self.weights), each(self.biases), each(self.grads), rotation, self.heads, self.sets
        )


def assert_within(candidate: Tensor, gold: Tensor, allowed: Tensor, what: str) -> None:
    """Every entry lies within its own bound; NaN lies in none."""
    off = (candidate.double() - gold).abs()
    assert (off <= allowed).all(), f"{what}: error {off.max():.3e}, up to {(off / allowed).max():.3g} times its bound"


def _compare(run: Run, reference: Run, drawn: Drawn, terms: dict[str, int], turned: bool = False) -> None:
    """Each named result against float64. terms: how many products or numbers one entry of it sums."""
    gold, sizes = (reference(of) for of in (drawn.to(torch.float64), drawn.to(torch.float64).absolute()))
    for (name, n), c, g, size in zip(terms.items(), run(drawn), gold, sizes, strict=True):
        assert_within(c, g, rounding_bound(g, size, n, c.dtype, turned=turned), name)
        assert_guards_intact(c, name)


def asked(d: Drawn, weights: Triple, out: Triple) -> Projection:
    """The projection of these inputs, with these weights, into these outputs."""
    return Projection(d.x, weights, d.biases, out, d.rotation, chip_of(DEVICE), d.sets and d.sets.each)


def filled(case: Case, dtype: torch.dtype) -> Triple:
    """Q, K and V with NaN in them."""
    q, k, v = (poisoned(case.batch, h, case.tokens, case.size, dtype=dtype) for h in (case.heads, *[case.groups] * 2))
    return q, k, v


def check_forward(case: Case, dtype: torch.dtype, plan: Run = plan_qkv_bias) -> None:
    """Q, K and V."""

    def run(d: Drawn) -> Triple:
        out = filled(case, dtype)
        plan(asked(d, d.weights, out)).run()
        return out

    def reference(d: Drawn) -> tuple[Tensor, ...]:
        return qkv_bias_reference(d.x, d.weights, d.biases, d.rotation, d.heads, d.sets and d.sets.each)

    _compare(run, reference, case.draw(dtype), dict.fromkeys("qkv", case.width))


def check_described(case: Case, dtype: torch.dtype, plan: Run = plan_described) -> None:
    """Q, K and V by descriptors, from one weight q|k|v."""

    def run(d: Drawn) -> Triple:
        w_q, w_k, w_v = guarded(torch.cat(d.weights)).split([len(w) for w in d.weights])
        projection = asked(d, (w_q, w_k, w_v), out := filled(case, dtype))
        assert describable(projection, INTERPRETED_VARIANT)
        plan(projection, INTERPRETED_VARIANT).run()
        return out

    def reference(d: Drawn) -> tuple[Tensor, ...]:
        return qkv_bias_reference(d.x, d.weights, d.biases, d.rotation, d.heads, d.sets and d.sets.each)

    _compare(run, reference, case.draw(dtype), dict.fromkeys("qkv", case.width))


def check_quantised_keys(case: Case, dtype: torch.dtype, plan: Run = plan_quantised_keys) -> None:
    """Each step, and each code times its step, in eight bits and in four."""
    d, shape = case.draw(dtype), (case.batch, case.groups, case.tokens)
    shift = guarded(Draws(1).normal(case.groups, case.size, dtype=torch.float32))
    parts = [(one.x, one.weights[1], one.biases[1], one.rotation) for one in (d.to(torch.float64), d.absolute())]
    gold, size = (
        shifted_keys_reference(x.double(), w.double(), None if b is None else b.double(), c, turn)
        for (x, w, b, turn), c in zip(parts, (shift.double(), -shift.double().abs()), strict=True)
    )
    off = rounding_bound(gold, size, case.width + 1, torch.float32)
    largest, unit = gold.abs().amax(-1), unit_roundoff(torch.float32)
    for bits in (8, 4):
        kind = torch.int8 if bits == 8 else torch.uint8
        codes = guarded(torch.full((*shape, case.size * bits // 8), 99, dtype=kind))
        steps = poisoned(*shape, dtype=torch.float32)
        plan(d.x, d.weights[1], d.biases[1], shift, codes, steps, d.rotation, bits, chip_of(DEVICE)).run()
        assert_guards_intact(codes, "codes")
        assert_guards_intact(steps, "steps")
        whole = codes if bits == 8 else unpacked(codes, d.rotation)
        assert_within(steps * levels(bits), largest, off.amax(-1) + 3 * unit * largest, f"steps of {bits} bits")
        restored, half = whole * steps[..., None].double(), steps[..., None].double() / 2
        # A quotient, its sum with ½ and the product: three roundings of at most the largest entry.
        assert_within(restored, gold, half + off + 4 * unit * largest[..., None], f"keys of {bits} bits")


def check_input_grad(case: Case, dtype: torch.dtype, plan: Run = plan_input_grad) -> None:
    """dX."""

    def run(d: Drawn) -> list[Tensor]:
        out = poisoned(case.batch, case.tokens, case.width, dtype=dtype)
        plan(d.grads, d.weights, out, d.rotation, chip_of(DEVICE)).run()
        return [out]

    def reference(d: Drawn) -> list[Tensor]:
        return [input_grad_reference(d.grads, d.weights, d.rotation)]

    columns = (case.heads + 2 * case.groups) * case.size
    _compare(run, reference, case.draw(dtype), {"d_x": columns}, turned=case.dims > 0)


def check_backward(case: Case, dtype: torch.dtype, plan: Run = plan_backward) -> None:
    """The biases' gradients from the dX kernel; its dX has the same bits as without them."""
    wide = torch.promote_types(dtype, torch.float32)

    def run(d: Drawn) -> list[Tensor]:
        d_x, alone = (poisoned(case.batch, case.tokens, case.width, dtype=dtype) for _ in range(2))
        sums = poisoned((case.heads + 2 * case.groups) * case.size, dtype=wide)
        first, second = plan(d.grads, d.weights, d_x, sums, d.rotation, chip_of(DEVICE), INTERPRETER)
        first.args[9].fill_(torch.nan)
        first.run()
        second.run()
        plan_input_grad(d.grads, d.weights, alone, d.rotation, chip_of(DEVICE), INTERPRETER).run()
        assert_guards_intact(d_x, "d_x")
        assert torch.equal(d_x, alone), "error: d_x is another"
        return [sums]

    def reference(d: Drawn) -> list[Tensor]:
        turns = (d.rotation, d.rotation, None)
        kind = torch.promote_types(d.x.dtype, torch.float32)
        return [torch.cat([column_sum_reference(g, t, 1, kind) for g, t in zip(d.grads, turns, strict=True)])]

    _compare(run, reference, case.draw(dtype), {"d_b": case.batch * case.tokens})


def check_column_sums(case: Case, dtype: torch.dtype, plan: Run = plan_column_sum) -> None:
    """db_q, db_k, db_v, and the value-bias gradient from the attention output (query heads summed by group)."""
    shared = case.heads // case.groups

    def run(d: Drawn) -> list[Tensor]:
        out = []
        for grad, rotation, members in _sums(d, shared):
            tables = (case.sets,) if case.sets else ()
            total = poisoned(*tables, grad.shape[1] * case.size // members, dtype=dtype)
            first, second = plan(grad, total, rotation, members, d.sets)
            first.args[3].fill_(torch.nan)
            first.run()
            second.run()
            out.append(total)
        return out

    def reference(d: Drawn) -> list[Tensor]:
        return [
            column_sum_reference(grad, rotation, members, d.x.dtype, d.sets)
            for grad, rotation, members in _sums(d, shared)
        ]

    rows = case.batch * case.tokens
    terms = {"db_q": rows, "db_k": rows, "db_v": rows, "V3": rows * shared}
    _compare(run, reference, case.draw(dtype), terms)


def _sums(d: Drawn, shared: int) -> list[tuple[Tensor, Rotation | None, int]]:
    d_q, d_k, d_v = d.grads
    return [(d_q, d.rotation, 1), (d_k, d.rotation, 1), (d_v, None, 1), (d_q, None, shared)]
