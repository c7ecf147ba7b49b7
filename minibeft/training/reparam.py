"""LoRA, VeRA, VeRA1D and DoRA on a bias: b + g(θ) with b frozen, where b is read as the most square matrix possible.

With b of size d viewed as R×C, rank k and scale s, the forms reach what theorem R1 says:

    form    b becomes                          trains                    starts from
    plain   b                                  b: d numbers              b
    lora    b + s (AᵀBᵀ)                       A k×R, B C×k              b
    vera    b + s (diag(δ)A)ᵀ (diag(β)B)ᵀ      δ k, β C (A, B random)    b + a random vector
    vera1d  b + s σ 1                          σ: one number             b + s 1
    dora    b + s t (b+Δ)/‖b+Δ‖, Δ = BA        A, B, t: one number       (1 + s) b

The forms are those of BEFT's official code (arXiv 2509.15974, §4.3), even where the original papers (arXiv 2106.09685,
2310.11454, 2402.09353) differ: VeRA and VeRA1D do not start at b, DoRA adds the direction to b.
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minibeft.errors import BadInput

RANK = 8
SCALE = 1 / 8


def most_square(width: int) -> tuple[int, int]:
    """(R, C) with R·C = width, R ≥ C and R − C least: 32×24 for 768, width×1 for a prime."""
    columns = next(c for c in range(math.isqrt(width), 0, -1) if width % c == 0)
    return width // columns, columns


def kaiming(*shape: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Kaiming-uniform with a = √5 as nn.Linear starts: uniform on ±1/√(columns)."""
    drawn = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
    return drawn.to(like)


class Plus(nn.Module):
    """b ↦ b + step(b). Registered as torch's parametrization of a module's bias."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def step(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """What is added to the frozen bias; each form has its own."""
        raise NotImplementedError

    def forward(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        with torch.autocast(bias.device.type, enabled=False):  # a bias stays in its own type
            return bias + self.step(bias)


class LoRA(Plus):
    """b + s (AᵀBᵀ) flattened, A (k×R) Kaiming-uniform, B (C×k) zero: k(R + C) parameters."""

    def __init__(self, bias: Float[Tensor, " d"], rank: int, scale: float, generator: torch.Generator):
        super().__init__(scale)
        rows, columns = most_square(bias.numel())
        self.A = nn.Parameter(kaiming(rank, rows, like=bias, generator=generator))
        self.B = nn.Parameter(bias.new_zeros(columns, rank))

    def step(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        return self.scale * (self.A.T @ self.B.T).flatten()


class VeRA(Plus):
    """b + s (diag(δ)A)ᵀ(diag(β)B)ᵀ flattened; A and B stay random, δ (k) and β (C) train: k + C parameters."""

    A: Tensor
    B: Tensor

    def __init__(self, bias: Float[Tensor, " d"], rank: int, scale: float, generator: torch.Generator):
        super().__init__(scale)
        rows, columns = most_square(bias.numel())
        self.register_buffer("A", kaiming(rank, rows, like=bias, generator=generator))
        self.register_buffer("B", kaiming(columns, rank, like=bias, generator=generator))
        self.delta = nn.Parameter(kaiming(1, rank, like=bias, generator=generator))
        self.beta = nn.Parameter(kaiming(1, columns, like=bias, generator=generator))

    def step(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        return self.scale * ((self.delta.T * self.A).T @ (self.beta.T * self.B).T).flatten()


class VeRA1D(Plus):
    """b + s σ 1: one parameter, which starts at 1."""

    def __init__(self, bias: Float[Tensor, " d"], rank: int, scale: float, generator: torch.Generator):
        super().__init__(scale)
        self.sigma = nn.Parameter(bias.new_ones(1))

    def step(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        return (self.scale * self.sigma).expand_as(bias)


class DoRA(Plus):
    """b + s t (b+Δ)/‖b+Δ‖ with Δ = BA flattened; t starts at ‖b‖: LoRA's parameters and one more. b must not be 0."""

    def __init__(self, bias: Float[Tensor, " d"], rank: int, scale: float, generator: torch.Generator):
        super().__init__(scale)
        if not bias.any():
            raise BadInput("the dora form needs a bias that is not zero: it trains a direction; choose another form")
        rows, columns = most_square(bias.numel())
        self.A = nn.Parameter(kaiming(rank, rows, like=bias, generator=generator))
        self.B = nn.Parameter(bias.new_zeros(columns, rank))
        self.magnitude = nn.Parameter(bias.detach().norm().reshape(1))

    def step(self, bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        direction = bias + (self.B @ self.A).flatten()
        return self.scale * self.magnitude * direction / direction.norm()


Make = Callable[[Tensor, int, float, torch.Generator], Plus]
FORMS: dict[str, Make] = {"lora": LoRA, "vera": VeRA, "vera1d": VeRA1D, "dora": DoRA}


def reparametrise(
    model: nn.Module,
    biases: Iterable[str],
    form: str,
    *,
    rank: int = RANK,
    scale: float = SCALE,
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Put a form on these biases ("blocks.0.attention.v.bias", …), in place; returns what trains in their stead.

    The biases freeze and stay readable under their old names as b + g(θ). The random start comes from `seed` alone,
    so that the numbers drawn in training do not depend on the form (theorem K3, R2).
    """
    if form not in FORMS:
        raise BadInput(f"{form!r} is not a form of a bias; choose among plain, {', '.join(FORMS)}")
    if rank < 1:
        raise BadInput(f"rank = {rank}: must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    trained: dict[str, nn.Parameter] = {}
    for name in biases:
        module = model.get_submodule(name.rpartition(".")[0])
        bias = module.get_parameter("bias").requires_grad_(False)
        parametrize.register_parametrization(module, "bias", FORMS[form](bias, rank, scale, generator))
        where = f"{name.rpartition('.')[0]}.parametrizations.bias.0"
        trained |= {f"{where}.{key}": value for key, value in model.get_submodule(where).named_parameters()}
    return trained


def merge(model: nn.Module) -> None:
    """Replace every reparametrised bias by its value, a plain parameter again, in place."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "bias"):
            parametrize.remove_parametrizations(module, "bias", leave_parametrized=True)
