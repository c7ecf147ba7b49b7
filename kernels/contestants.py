"""The fused operators and what they are measured against, all on the same inputs.

forward     fused    qkv_bias, heads and rotary included
            linears  three nn.Linear, view, transpose and rotary, as transformers does it
            addmm    one torch.addmm over packed weights, cuBLASLt adding the bias: no heads, so only without rotary
            compiled torch.compile of linears
backward    the same without addmm: dX and the bias gradients that can be nonzero, weights frozen
column sum  fused against torch.sum: the gradient of the query bias, without rotary positions
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minibeft.kernels.bias_grad.function import column_sum
from minibeft.kernels.qkv_bias.function import qkv_bias
from minibeft.kernels.qkv_bias.reference import OptionalTriple, Triple, qkv_bias_reference
from minibeft.kernels.shapes import Shape
from minibeft.theory.rotary import Rotation

Project = Callable[..., tuple[Tensor, ...]]


def rotate_as_transformers(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x·cos + rotate_half(x)·sin with tables as wide as the entries that turn, in the type of x."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if interleaved:
        swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    else:
        low, high = turned.chunk(2, -1)
        swapped = torch.cat((-high, low), -1)
    turned = turned * cos + swapped * sin
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def linears(
    x: Tensor, weights: Triple, biases: OptionalTriple, tables: tuple[Tensor, Tensor] | None, shape: Shape
) -> Triple:
    """Three projections as transformers writes them."""
    (w_q, w_k, w_v), (b_q, b_k, b_v) = weights, biases
    by_head = (*x.shape[:-1], -1, shape.size)
    q = F.linear(x, w_q, b_q).view(by_head).transpose(1, 2)
    k = F.linear(x, w_k, b_k).view(by_head).transpose(1, 2)
    v = F.linear(x, w_v, b_v).view(by_head).transpose(1, 2)
    if tables is not None:
        q = rotate_as_transformers(q, *tables, shape.interleaved)
        k = rotate_as_transformers(k, *tables, shape.interleaved)
    return q, k, v


class Inputs:
    """One set of inputs of a shape, in one type, and each contestant as a call without arguments."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int):
        self.shape = shape
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(size, generator=generator, device=device)).to(dtype)

        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        self.x = normal(shape.batch, shape.tokens, shape.width).requires_grad_()
        self.packed = torch.cat([normal(h * shape.size, shape.width, scale=shape.width**-0.5) for h in heads])
        rows = [h * shape.size for h in heads]
        w_q, w_k, w_v = self.packed.split(rows)
        self.weights = w_q, w_k, w_v
        b_q, b_k, b_v = (normal(n).requires_grad_() for n in rows)
        if not shape.dims:
            b_k.requires_grad_(False)  # its gradient is zero (theorem K2)
        self.biases = b_q, b_k, b_v
        self.packed_bias = torch.cat(self.biases).detach()
        self.wanted = [t for t in (self.x, *self.biases) if t.requires_grad]
        self.grads = [normal(shape.batch, h, shape.tokens, shape.size) for h in heads]
        self.rotation, self.tables = None, None
        if shape.dims:
            exponents = torch.arange(0, shape.dims, 2, device=device) / shape.dims
            angles = torch.arange(shape.tokens, device=device)[:, None] * 10_000.0**-exponents
            self.rotation = Rotation(angles.cos(), angles.sin(), shape.interleaved)
            spread = angles.repeat_interleave(2, -1) if shape.interleaved else torch.cat((angles, angles), -1)
            self.tables = spread.cos().to(dtype), spread.sin().to(dtype)

    def fused(self) -> Triple:
        return qkv_bias(self.x, *self.weights, *self.biases, heads=self.shape.heads, rotation=self.rotation)

    def linears(self, function: Project = linears) -> tuple[Tensor, ...]:
        return function(self.x, self.weights, self.biases, self.tables, self.shape)

    def addmm(self) -> Tensor:
        return torch.addmm(self.packed_bias, self.x.flatten(0, 1), self.packed.mT)

    def backward_of(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """dX and the bias gradients."""
        return torch.autograd.grad(outputs, self.wanted, self.grads, retain_graph=True)

    def fused_sum(self) -> Tensor:
        return column_sum(self.grads[0], None, None, False, 1, self.x.dtype)

    def torch_sum(self) -> Tensor:
        return self.grads[0].sum((0, 2)).flatten()

    def double(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs and gradients in float64: the gold of the correctness gate."""
        x, *biases = (t.detach().double().requires_grad_(t.requires_grad) for t in (self.x, *self.biases))
        rotation = self.rotation and Rotation(
            self.rotation.cos.double(), self.rotation.sin.double(), self.shape.interleaved
        )
        w_q, w_k, w_v = (w.double() for w in self.weights)
        out = qkv_bias_reference(x, (w_q, w_k, w_v), (biases[0], biases[1], biases[2]), rotation, self.shape.heads)
        wanted = [t for t in (x, *biases) if t.requires_grad]
        return out, torch.autograd.grad(out, wanted, [g.double() for g in self.grads])
