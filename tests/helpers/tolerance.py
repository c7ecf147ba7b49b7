"""Two computations agree when one errs no more than rounding makes the other err.

Rounding is sampled: a backward stable computation gives what exact arithmetic gives on inputs that are a few roundings
off, so the exact computation is run on SAMPLES such inputs, each entry off by up to REACH roundings of the type under
test (`nudge`); of a model so are the results of its modules, and with them the gradients on their way back. A candidate
passes when

    ‖candidate − gold‖∞ ≤ FACTOR · max over samples of ‖sample − gold‖∞ + u ‖gold‖∞,

gold in float64; the last term is the one rounding that even a perfect result needs when it is stored. Where float64 is
under test, gold is a float64 run too: its own error is one more of the samples' size, well inside FACTOR.

The chance that a right candidate fails. Errors are sums of many roundings: normal, and of the samples' size or less.
Of all norms of normal vectors the one that varies most, relative to itself, is |z| of a single normal number (the
S-inequality of Latała and Oleszkiewicz, 1999), and P(|z| ≤ t) ≤ t√(2/π), so

    P(|z₀| > F max(|z₁|, …, |z_k|)) ≤ E (√(2/π) |z₀|/F)^k = (2/π)^{k/2} (k − 1)!!/F^k,

1.7e-13 for k = 12 and F = 20: below 1e-9 for a test with 5,000 comparisons. A wrong formula is off by 1e3 and more of
what the float64 comparison allows.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minibeft.theory.agreement import within
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws

SAMPLES, FACTOR, REACH = 12, 20.0, 4


def error(value: Tensor, gold: Tensor) -> float:
    """‖value − gold‖∞ in float64; NaN or ±∞ where gold is finite counts as an infinite error."""
    if not value.numel():
        return 0.0
    difference = (value.double() - gold.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with its floating-point tensors changed: a tensor, a module's parameters, or any structure of them."""
    if isinstance(value, Tensor):
        return change(value.detach()) if value.is_floating_point() else value
    if isinstance(value, nn.Module):
        # Buffers, which hold rotary angles, stay in float32: every checkpoint was trained with these.
        model = copy.deepcopy(value)
        for parameter in model.parameters():
            parameter.data = change(parameter.data)
        return model
    if isinstance(value, Mapping):
        return {key: each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(each_tensor(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: each_tensor(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **changed)
    return value


def in_float64(value: Any) -> Any:
    """The same numbers in float64."""
    return each_tensor(value, Tensor.double)


def nudge(value: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """In float64, every entry off by up to REACH roundings of this type."""
    draws, reach = Draws(seed), REACH * unit_roundoff(dtype)

    def off(t: Tensor) -> Tensor:
        return t.double() * (1 + draws.uniform(*t.shape, low=-reach, high=reach).to(t.device))

    def off_result(_: nn.Module, __: Any, result: Any) -> Any:
        return off(result) if isinstance(result, Tensor) else result

    nudged = each_tensor(value, off)
    for module in nudged.modules() if isinstance(nudged, nn.Module) else ():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(off_result)
    return nudged


def samples(run: Callable[[Any], Any], inputs: Any, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The exact results for inputs that are off by a few roundings of this type."""
    return [run(nudge(inputs, seed, dtype)) for seed in range(1, SAMPLES + 1)]


def in_other_type(samples: Sequence[Tensor], gold: Tensor, had: torch.dtype, dtype: torch.dtype) -> list[Tensor]:
    """Samples of rounding in one type as samples in another: small errors are linear in the unit roundoff."""
    ratio = unit_roundoff(dtype) / unit_roundoff(had)
    return [gold + ratio * (sample - gold) for sample in samples]


def assert_agrees(candidate: Tensor, samples: Sequence[Tensor], gold: Tensor, *, what: str = "result") -> None:
    """The candidate's error is at most FACTOR times the samples' largest, plus one rounding of the largest entry."""
    assert len(samples) >= SAMPLES, f"{what}: {len(samples)} samples are too few for FACTOR"
    for name, value in (("gold", gold), *(("a sample", sample) for sample in samples)):
        assert candidate.shape == value.shape, f"{what}: shapes {tuple(candidate.shape)}, {name}'s {tuple(value.shape)}"
    assert gold.dtype == torch.float64, f"{what}: gold must be float64, got {gold.dtype}"
    assert gold.isfinite().all(), f"{what}: gold is not finite"
    size = gold.abs().max().item() if gold.numel() else 0.0
    rounding = max(error(sample, gold) for sample in samples)
    allowed, actual = FACTOR * rounding + unit_roundoff(candidate.dtype) * size, error(candidate, gold)
    assert within(actual, allowed), (
        f"{what}: error {actual:.3e} > {allowed:.3e} allowed (rounding makes it {rounding:.3e})"
    )
