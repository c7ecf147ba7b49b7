"""The float bound of K4 against errors that really occur: the worst inputs are searched for, the bound is not tuned.

torch is imported inside, so that the proofs themselves do without it.
"""

from typing import TYPE_CHECKING

from minibeft.proofs.relation import Relation
from minibeft.proofs.statement import MEASURED, Step, Verdict

if TYPE_CHECKING:
    import torch

TYPES = ("float32", "bfloat16", "float16")
SHAPES = ((2, 1), (2, 4), (8, 16), (32, 64))  # keys, head size
MAGNITUDES = (1.0, 8.0, 64.0)  # of b_k
CROWD, ROUNDS = 48, 16  # candidates side by side, and how often they are improved
LOOSE = 1e-3


def effect_and_bound(q, k, v, b_k) -> "tuple[torch.Tensor, torch.Tensor]":
    """max |O(b_k) − O(0)| as computed in the inputs' type, and the bound; one of each for every candidate."""
    from minibeft.theory.attention import mix
    from minibeft.theory.bounds import Arithmetic, key_bias_effect_bound, unit_roundoff

    with_bias, _ = mix(q, k + b_k, v, fused=False)
    without, _ = mix(q, k, v, fused=False)
    exact = [x.double() for x in (q, k, v, b_k)]
    bound = key_bias_effect_bound(
        exact[0],
        exact[1],
        exact[2],
        exact[1].abs(),
        exact[3],
        Arithmetic(None, q.shape[-1] ** -0.5, unit_roundoff(q.dtype), roundings=1),
    )
    return (with_bias.double() - without.double()).abs().amax((-2, -1)), bound.flatten()


def climb(dtype: "torch.dtype", keys: int, size: int, magnitude: float, generator: "torch.Generator") -> float:
    """The largest ratio of effect to bound that hill climbing finds: redraw some entries, keep what raises it."""
    import torch

    def draw() -> list[torch.Tensor]:
        shapes = (1, size), (keys, size), (keys, size), (1, size)
        q, k, v, b = (torch.randn(CROWD, 1, *shape, generator=generator) for shape in shapes)
        return [x.to(dtype) for x in (q, k, v.sign(), b * magnitude)]

    best = draw()
    effect, bound = effect_and_bound(*best)
    ratio = effect / bound
    for _ in range(ROUNDS):
        trial = []
        for old, new in zip(best, draw(), strict=True):
            change = torch.rand(old.shape, generator=generator) < 0.25
            trial.append(torch.where(change, new, old))
        effect, bound = effect_and_bound(*trial)
        better = effect / bound > ratio
        ratio = torch.where(better, effect / bound, ratio)
        best = [torch.where(better[:, None, None, None], new, old) for old, new in zip(best, trial, strict=True)]
    return ratio.max().item()


def lost_at(dtype: "torch.dtype", generator: "torch.Generator") -> float:
    """The |q·b_k|/√d, a power of two, from which on b_k moves the output by a tenth of diam(V) = 2."""
    import torch

    q, k = (torch.randn(CROWD, 1, rows, 16, generator=generator) for rows in (1, 8))
    v = torch.randn(CROWD, 1, 8, 16, generator=generator).sign().to(dtype)
    c = 1.0
    while c < 2.0**40:
        b = q * (c * 4 / q.square().sum(-1, keepdim=True))  # q·b/√16 = c
        effect, _ = effect_and_bound(q.to(dtype), k.to(dtype), v, b.to(dtype))
        if effect.median() >= 0.2:
            return c
        c *= 2
    return float("inf")


def measured() -> Step:
    def decide() -> Verdict:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the matrices are small: more would wait for each other
        try:
            return search()
        finally:
            torch.set_num_threads(threads)

    def search() -> Verdict:
        import torch

        generator = torch.Generator().manual_seed(0)
        notes, ok = [], True
        for name in TYPES:
            dtype = getattr(torch, name)
            ratios = [climb(dtype, *shape, size, generator) for shape in SHAPES for size in MAGNITUDES]
            ok &= max(ratios) < 1 and max(ratios) > LOOSE
            notes.append(
                f"{name}: worst ratio {max(ratios):.3f} (from {min(ratios):.4f} on, by shape and size of b_k), "
                f"a tenth of diam(V) lost from |q·b_k|/√d = {lost_at(dtype, generator):.0f} on"
            )
        return Verdict(ok, "; ".join(notes))

    return Step(
        "Measured: the largest effect of b_k that a search for hostile inputs finds, over the bound (bounds.py).",
        (Relation("10⁻³", "<", "effect / bound"), Relation("effect / bound", "<", "1")),
        "float32, bfloat16, float16",
        decide,
        level=MEASURED,
    )
