"""One Transformer for every family: embeddings, blocks of attention and MLP, a head. Only the configuration differs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.models.config import Backend, ModelConfig
from minibeft.models.embeddings import Embeddings
from minibeft.models.heads import ClassificationHead, make_head
from minibeft.models.layers import MLP, Linear, make_norm
from minibeft.models.packed.dropout import make_dropout
from minibeft.models.packed.frozen import frozen_linear
from minibeft.models.packed.packing import Mix, Packing
from minibeft.theory.attention import Mask, attend, linear, mix
from minibeft.theory.rotary import Rotary, Rotation


class Output(NamedTuple):
    """hidden: the last hidden states, after the final norm where there is one. logits: None without a head."""

    hidden: Float[Tensor, "B T C"]
    logits: Float[Tensor, "B labels"] | Float[Tensor, "B T V"] | None = None


class Attention(nn.Module):
    """The modules q, k, v and o around attend(); a bias that the configuration does not name is absent."""

    def __init__(self, c: ModelConfig, backend: Backend):
        super().__init__()
        self.heads, self.kv_heads, self.dropout, self.backend = c.heads, c.kv_heads, c.attention_dropout, backend
        self.q = nn.Linear(c.width, c.heads * c.head_size, bias="q" in c.biases)
        self.k = nn.Linear(c.width, c.kv_heads * c.head_size, bias="k" in c.biases)
        self.v = nn.Linear(c.width, c.kv_heads * c.head_size, bias="v" in c.biases)
        self.o = nn.Linear(c.heads * c.head_size, c.width, bias="o" in c.biases)
        self.joined: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """What attend() needs besides x, mask and rotate; verify calls it with one bias exchanged."""
        weights = {f"w_{name}": getattr(self, name).weight for name in "qkvo"}
        biases = {f"b_{name}": getattr(self, name).bias for name in "qkvo"}
        return weights | biases | {"heads": self.heads, "kv_heads": self.kv_heads}

    def forward(self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None) -> Float[Tensor, "B T C"]:
        dropout = self.dropout if self.training else 0.0
        if self.backend == "triton":
            return self.on_kernels(x, mask, rotate, dropout)
        fused = self.backend == "fused"
        return attend(x, mask=mask, rotate=rotate, dropout=dropout, fused=fused, **self.arguments()).output

    def on_kernels(
        self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None, dropout: float
    ) -> Float[Tensor, "B T C"]:
        """The same with the three projections as one kernel. Without rotary positions b_k is not even loaded (K1)."""
        # Imported here: the operators register themselves with torch, which the other backends do not need.
        from minibeft.kernels.qkv_bias.function import qkv_bias

        weights, biases = (self.q.weight, self.k.weight, self.v.weight), (self.q.bias, self.k.bias, self.v.bias)
        q, k, v = qkv_bias(x, *weights, *biases, heads=self.heads, rotation=rotate, skip_null=rotate is None)
        o, _ = mix(q, k, v, mask=mask, dropout=dropout)
        return linear(o, self.o.weight, self.o.bias)

    def packed(self, x: Float[Tensor, "N C"], packing: Packing, first: bool) -> Float[Tensor, "n C"]:
        """The same for the N tokens of a packing; with `first`, for the first token of each sequence alone."""
        if first:
            q = self.project(x[packing.first], "q").unflatten(-1, (1, self.heads, -1)).transpose(1, 2)  # (B, H, 1, D)
            k, v = self.spread(x, packing, "kv")  # (B, H, T, D)
        else:
            q, k, v = self.spread(x, packing, "qkv")
        o = Mix.apply(q, k, v, packing.mask, self.dropout if self.training else 0.0)
        o = o.flatten(1) if first else packing.collect(o)
        return (linear if self.joined is None else frozen_linear)(o, self.o.weight, self.o.bias)

    def spread(self, x: Float[Tensor, "N C"], packing: Packing, names: str) -> list[Float[Tensor, "B H T D"]]:
        """The projections of these names by sequence and head: of one product, or each of its own where x has no
        gradient, in the lowest trained layer, for autograd then computes the gradients of trained biases alone."""
        groups = [names] if x.requires_grad else names
        return [part for group in groups for part in packing.spread(self.project(x, group), len(group))]

    def project(self, x: Float[Tensor, "N C"], names: str) -> Float[Tensor, "N n"]:
        """The projections of these names, neighbours in "qkv", side by side from one matrix product."""
        modules = [getattr(self, name) for name in names]
        weight, size = modules[0].weight, len(modules[0].weight)
        if self.joined is not None and self.joined.data_ptr() == self.q.weight.data_ptr():
            weight = self.joined.narrow(0, "qkv".index(names) * size, len(names) * size)
        elif len(names) > 1:
            weight = torch.cat([module.weight for module in modules])
        biases = [module.bias for module in modules]
        bias = None if None in biases else torch.cat(biases).to(weight.dtype)
        return (F.linear if self.joined is None else frozen_linear)(x, weight, bias)

    def join(self) -> None:
        """Lay the weights of q, k and v side by side in memory, where project() finds them as one; for frozen ones."""
        modules = self.q, self.k, self.v
        self.joined = torch.cat([module.weight.data for module in modules])
        for module, part in zip(modules, self.joined.chunk(3), strict=True):
            module.weight.data = part


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream; the norms sit where the configuration puts them."""

    def __init__(self, c: ModelConfig, backend: Backend):
        super().__init__()
        self.residual = c.residual
        self.attention = Attention(c, backend)
        self.mlp = MLP(c.width, c.inner, c.activation, gated=c.gated, bias="mlp" in c.biases)
        self.norm1 = make_norm(c.norm, c.width, c.eps)
        self.norm2 = None if c.residual == "parallel" else make_norm(c.norm, c.width, c.eps)
        self.drop = make_dropout(c.dropout, same=backend == "plain")

    def forward(self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None) -> Float[Tensor, "B T C"]:
        return self.around(x, lambda y: self.attention(y, mask, rotate))

    def packed(self, x: Float[Tensor, "N C"], packing: Packing, first: bool) -> Float[Tensor, "n C"]:
        """The same for the N tokens of a packing; with `first`, for the first token of each sequence alone."""
        return self.around(x, lambda y: self.attention.packed(y, packing, first), packing.first if first else ...)

    def around(self, x: Tensor, attention: Callable[[Tensor], Tensor], rows: Any = ...) -> Tensor:
        """The block around its attention, for these rows of x, which are those that attention returns."""
        if self.norm2 is None:
            y = self.norm1(x)
            return x[rows] + self.drop(attention(y)) + self.drop(self.mlp(y[rows]))
        if self.residual == "pre":
            x = x[rows] + self.drop(attention(self.norm1(x)))
            return x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(x[rows] + self.drop(attention(x)))
        return self.norm2(x + self.drop(self.mlp(x)))


def additive_mask(
    mask: Int[Tensor, "B T"] | None, length: int, causal: bool, like: Float[Tensor, "..."]
) -> Mask | None:
    """0 where a query may look, −∞ where it may not; None when everything is visible."""
    if mask is not None and bool(mask.all()):
        mask = None
    if mask is None and not causal:
        return None
    visible = torch.ones(1, 1, 1, length, dtype=torch.bool, device=like.device)
    if mask is not None:
        visible = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
    if causal:
        visible = visible & torch.ones(length, length, dtype=torch.bool, device=like.device).tril()  # (B|1, 1, T, T)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(~visible, -torch.inf)


class Transformer(nn.Module):
    """model(input_ids, attention_mask=None, token_type_ids=None) → Output(hidden, logits).

    attention_mask is 1 for real tokens and 0 for padding, on either side. backend: "fused" uses torch's fused
    attention, "plain" the formula of attention.py, "triton" the kernels of kernels/ for the three projections (on a
    GPU; elsewhere their plain reference). fresh: the names of parameters that no checkpoint gave.
    """

    fresh: frozenset[str] = frozenset()

    def __init__(self, config: ModelConfig, backend: Backend = "fused"):
        super().__init__()
        self.config, self.backend = config, backend
        self.embed = Embeddings(config, same_dropout=backend == "plain")
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.layers))
        self.norm = None if config.residual == "post" else make_norm(config.norm, config.width, config.eps)
        self.head = make_head(config)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
    ) -> Output:
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, input_ids {tuple(input_ids.shape)}")
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids, real, token_type_ids)
        mask = additive_mask(attention_mask, input_ids.shape[1], self.config.causal, x)
        rotate = None
        if isinstance(self.config.positions, Rotary):
            rotate = self.config.positions.rotate(torch.arange(input_ids.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x, mask, rotate)
        hidden = x if self.norm is None else self.norm(x)
        return Output(hidden, None if self.head is None else self.head(hidden, self.embed.tokens.weight))

    def classify(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B labels"]:
        """model(...).logits of a classifier, for padding on the right, from what the logits depend on and no more.

        The backend "fused" computes the real tokens without the padding, and in the last block the first tokens, which
        are all that the head reads; the other backends take the way of forward().
        """
        if self.backend != "fused":
            logits = self(input_ids, attention_mask, token_type_ids).logits
            assert logits is not None
            return logits
        assert isinstance(self.head, ClassificationHead)
        packing = Packing(attention_mask, self.config.heads)
        x = self.embed(input_ids, attention_mask, token_type_ids, packing.real)
        x = x.to(self.head.dense.weight.dtype)  # half precision, where it is asked for, starts here
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, Block)
            x = block.packed(x, packing, first=number == len(self.blocks))
        logits = self.head((x if self.norm is None else self.norm(x))[:, None], self.embed.tokens.weight)
        assert logits is not None
        return logits

    def join(self) -> None:
        """Let classify() compute q, k and v as one matrix product where their weights are frozen, and evaluate frozen
        maps by frozen_linear. Values, names and memory stay what they are."""
        if self.backend != "fused" or not isinstance(self.head, ClassificationHead):
            return
        for module in self.modules():
            if isinstance(module, Attention) and not any(getattr(module, n).weight.requires_grad for n in "qkvo"):
                module.join()
            if isinstance(module, Linear):
                module.frozen = not module.weight.requires_grad
