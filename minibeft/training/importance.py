"""How much a bias term matters, as BEFT measures it: Mag+Angle and Magnitude after training, Fisher before it.

They rank what training moved, not what the model uses: b_k can be moved by rounding noise (theorem K5), and its Fisher
information is 0 (K2). Source: BEFT, arXiv 2509.15974, §3 and its official code; theorems I1 to I3.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minibeft.errors import BadInput


def mag_angle(base: Float[Tensor, " d"], tuned: Float[Tensor, " d"]) -> float:
    """I1: 1 − cos∠(b, b')·min(‖b‖, ‖b'‖)/max(‖b‖, ‖b'‖), from 0 (nothing moved) to 2; undefined where a bias is 0.

    It is computed as l·(l − s)/l·l in float64, with l the longer and s the shorter of the two, because 1 − cos would
    lose the small changes that it is to show. BadInput for a bias of length 0, as in bias-free models.
    """
    b, t = base.detach().double(), tuned.detach().double()
    if not (b.any() and t.any()):
        raise BadInput(
            "Mag+Angle is undefined for a bias that is 0, as an added one starts: rank by magnitude or fisher"
        )
    longer, shorter = (b, t) if b.norm() > t.norm() else (t, b)
    longer, shorter = longer / longer.abs().max(), shorter / longer.abs().max()  # squares neither under- nor overflow
    return (longer @ (longer - shorter) / (longer @ longer)).item()


def magnitude(base: Float[Tensor, " d"], tuned: Float[Tensor, " d"]) -> float:
    """I2: the mean of |b' − b|, in float64."""
    return (tuned.detach().double() - base.detach().double()).abs().mean().item()


def fisher(parameters: Mapping[str, nn.Parameter], losses: Iterable[Float[Tensor, ""]]) -> dict[str, float]:
    """I3: each parameter's mean squared gradient, averaged over the batches, after clipping all to joint norm 1.

    parameters  everything that is clipped together (in BEFT: all biases and the head)
    losses      one loss per batch, of a model in evaluation mode; pass a generator, one graph is alive at a time
    """
    total, batches = dict.fromkeys(parameters, 0.0), 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = torch.nn.utils.get_total_norm(gradients).double()
        factor = (1 / (norm + 1e-6)).clamp_max(1.0)  # 1e-6 as in torch's clip_grad_norm_
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += (gradient.double() * factor).square().mean().item()
        batches += 1
    if not batches:
        raise BadInput("Fisher needs at least one batch")
    return {name: value / batches for name, value in total.items()}
