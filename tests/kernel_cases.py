"""What the kernel tests share: awkward shapes, tensors in NaN, and checks that take the plan to be checked.

Every tensor lies between guards of NaN: a read past its end poisons the result, a write past its end is seen. Outputs
are NaN themselves before a launch. Without a GPU, Triton's interpreter runs the kernels (conftest.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.kernels.bias_grad.forward import plan_column_sum
from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.lang import chip_of
from minibeft.kernels.qkv_bias.backward import plan_input_grad
from minibeft.kernels.qkv_bias.forward import plan_qkv_bias
from minibeft.kernels.qkv_bias.reference import input_grad_reference, qkv_bias_reference
from minibeft.kernels.rotation import Rotation
from tolerance import assert_agrees, assert_close_float64, error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GUARD = 1 << 15
Run = Callable[..., Any]


def guarded(values: Tensor) -> Tensor:
    """The same values, contiguous, with GUARD times NaN on either side of them in memory."""
    buffer = torch.full((values.numel() + 2 * GUARD,), torch.nan, dtype=values.dtype, device=DEVICE)
    inner = buffer[GUARD : GUARD + values.numel()].view(values.shape)
    inner.copy_(values)
    return inner


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output nobody has written yet."""
    return guarded(torch.full(shape, torch.nan, dtype=dtype))


def assert_guards_intact(output: Tensor, what: str) -> None:
    buffer = output.new_empty(0).set_(output.untyped_storage())
    assert buffer[:GUARD].isnan().all(), f"{what}: written before its beginning"
    assert buffer[GUARD + output.numel() :].isnan().all(), f"{what}: written past its end"


@dataclass(frozen=True)
class Case:
    """One projection. dims: entries of a head that turn; layout: "strided" makes every large input non-contiguous."""

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

    def __str__(self) -> str:
        turned = f"-turn{self.dims}{'i' if self.interleaved else 'h'}" if self.dims else ""
        shape = f"{self.batch}x{self.tokens}x{self.width}-{self.heads}:{self.groups}x{self.size}"
        return f"{shape}{turned}-{self.layout}-b{self.biases}"

    def _lay(self, values: Tensor) -> Tensor:
        """Strided: stored with the last two axes exchanged, so that no axis but these has its usual stride."""
        return guarded(values) if self.layout == "contiguous" else guarded(values.mT).mT

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers, exact in float16 and bfloat16: eight bits of them."""
        values = torch.randn(shape, generator=self._generator).bfloat16()
        return values.clamp(-8, 8).float().to(DEVICE)

    def draw(self, dtype: torch.dtype, seed: int = 0) -> "Drawn":
        self.__dict__["_generator"] = torch.Generator().manual_seed(seed)
        n = {"q": self.heads * self.size, "k": self.groups * self.size, "v": self.groups * self.size}
        rotation = None
        if self.dims:
            shape = (
                (self.tokens, self.dims // 2)
                if self.positions == "shared"
                else (self.batch, self.tokens, self.dims // 2)
            )
            angles = torch.rand(shape, generator=self._generator) * 6.28
            rotation = Rotation(guarded(angles.cos()), guarded(angles.sin()), self.interleaved)
        outputs = (self.heads, self.groups, self.groups)
        return Drawn(
            x=self._lay(self.normal(self.batch, self.tokens, self.width).to(dtype)),
            weights=tuple(self._lay(self.normal(rows, self.width).to(dtype)) for rows in n.values()),
            biases=tuple(guarded(self.normal(r).to(dtype)) if name in self.biases else None for name, r in n.items()),
            grads=tuple(self._lay(self.normal(self.batch, h, self.tokens, self.size).to(dtype)) for h in outputs),
            rotation=rotation,
            heads=self.heads,
        )


@dataclass(frozen=True)
class Drawn:
    """The tensors of a case, in one type."""

    x: Float[Tensor, "B T C"]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    grads: tuple[Tensor, ...]
    rotation: Rotation | None
    heads: int

    def to(self, dtype: torch.dtype) -> "Drawn":
        """The same numbers in another type."""

        def cast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(t if t is None else t.to(dtype) for t in tensors)

        rotation = self.rotation
        if rotation is not None and dtype == torch.float64:
            rotation = Rotation(rotation.cos.double(), rotation.sin.double(), rotation.interleaved)
        return Drawn(self.x.to(dtype), cast(self.weights), cast(self.biases), cast(self.grads), rotation, self.heads)


def _compare(run: Run, reference: Run, drawn: Drawn, names: tuple[str, ...]) -> None:
    """gold in float64, plain in the type of x, and the candidate; float64 itself by its float32 error."""
    candidate, plain, gold = run(drawn), reference(drawn), reference(drawn.to(torch.float64))
    single = reference(drawn.to(torch.float32)) if drawn.x.dtype == torch.float64 else plain
    for name, c, p, g, s in zip(names, candidate, plain, gold, single, strict=True):
        if c.dtype == torch.float64:
            assert_close_float64(c, g, error(s, g), what=name)
        else:
            assert_agrees(c, p, g, what=name)
        assert_guards_intact(c, name)


def check_forward(case: Case, dtype: torch.dtype, plan: Run = plan_qkv_bias) -> None:
    """Q, K and V."""

    def run(d: Drawn) -> list[Tensor]:
        out = [
            poisoned(case.batch, h, case.tokens, case.size, dtype=dtype) for h in (case.heads, case.groups, case.groups)
        ]
        plan(d.x, d.weights, d.biases, tuple(out), d.rotation, chip_of(DEVICE)).run()
        return out

    def reference(d: Drawn) -> tuple[Tensor, ...]:
        return qkv_bias_reference(d.x, *d.weights, *d.biases, d.rotation, d.heads)

    _compare(run, reference, case.draw(dtype), ("q", "k", "v"))


def check_input_grad(case: Case, dtype: torch.dtype, plan: Run = plan_input_grad) -> None:
    """dX."""

    def run(d: Drawn) -> list[Tensor]:
        out = poisoned(case.batch, case.tokens, case.width, dtype=dtype)
        plan(d.grads, d.weights, out, d.rotation, chip_of(DEVICE)).run()
        return [out]

    _compare(run, lambda d: [input_grad_reference(*d.grads, *d.weights, d.rotation)], case.draw(dtype), ("d_x",))


def check_column_sums(case: Case, dtype: torch.dtype, plan: Run = plan_column_sum) -> None:
    """db_q, db_k, db_v, and the value-bias gradient from the attention output (query heads summed by group)."""
    shared = case.heads // case.groups

    def run(d: Drawn) -> list[Tensor]:
        out = []
        for grad, rotation, members in _sums(d, shared):
            total = poisoned(grad.shape[1] * case.size // members, dtype=dtype)
            first, second = plan(grad, total, rotation, members)
            first.args[3].fill_(torch.nan)
            first.run()
            second.run()
            out.append(total)
        return out

    def reference(d: Drawn) -> list[Tensor]:
        return [column_sum_reference(grad, rotation, members) for grad, rotation, members in _sums(d, shared)]

    _compare(run, reference, case.draw(dtype), ("db_q", "db_k", "db_v", "V3"))


def _sums(d: Drawn, shared: int) -> list[tuple[Tensor, Rotation | None, int]]:
    d_q, d_k, d_v = d.grads
    return [(d_q, d.rotation, 1), (d_k, d.rotation, 1), (d_v, None, 1), (d_q, None, shared)]
