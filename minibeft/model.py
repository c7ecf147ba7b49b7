"""One Transformer for every family: embeddings, blocks of attention and MLP, a head. Only the configuration differs."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.attention import Mask, attend, linear, mix
from minibeft.config import Backend, ModelConfig
from minibeft.heads import make_head
from minibeft.kernels.rotation import Rotation
from minibeft.layers import MLP, Learned, Rotary, make_norm


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


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream; the norms sit where the configuration puts them."""

    def __init__(self, c: ModelConfig, backend: Backend):
        super().__init__()
        self.residual = c.residual
        self.attention = Attention(c, backend)
        self.mlp = MLP(c.width, c.inner, c.activation, gated=c.gated, bias="mlp" in c.biases)
        self.norm1 = make_norm(c.norm, c.width, c.eps)
        self.norm2 = None if c.residual == "parallel" else make_norm(c.norm, c.width, c.eps)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None) -> Float[Tensor, "B T C"]:
        if self.norm2 is None:
            y = self.norm1(x)
            return x + self.drop(self.attention(y, mask, rotate)) + self.drop(self.mlp(y))
        if self.residual == "pre":
            x = x + self.drop(self.attention(self.norm1(x), mask, rotate))
            return x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop(self.attention(x, mask, rotate)))
        return self.norm2(x + self.drop(self.mlp(x)))


def look_up(table: nn.Embedding, ids: Int[Tensor, "B T"], what: str) -> Float[Tensor, "B T C"]:
    """Rows of a table. Ids are not looked at beforehand, which on a GPU would wait for them."""
    try:
        return table(ids)
    except IndexError as error:
        raise ValueError(
            f"{what} run from {int(ids.min())} to {int(ids.max())}, the model knows 0 to {table.num_embeddings - 1}"
        ) from error


class Embeddings(nn.Module):
    """Token vectors, plus learned positions and token types where the family has them."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.learned = c.positions if isinstance(c.positions, Learned) else None
        self.pad = c.pad
        self.tokens = nn.Embedding(c.vocab, c.width)
        self.positions = nn.Embedding(self.learned.rows, c.width) if self.learned else None
        self.types = nn.Embedding(c.token_types, c.width) if c.token_types else None
        self.norm = make_norm(c.norm, c.width, c.eps) if c.embedding_norm else None
        self.drop = nn.Dropout(c.embedding_dropout)

    def forward(
        self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"], types: Int[Tensor, "B T"] | None
    ) -> Float[Tensor, "B T C"]:
        x = look_up(self.tokens, ids, "input_ids")
        if self.types is not None:
            x = x + look_up(self.types, torch.zeros_like(ids) if types is None else types, "token_type_ids")
        if self.positions is not None and self.learned is not None:
            longest = self.learned.rows - self.learned.start
            if ids.shape[1] > longest:
                raise ValueError(f"input has {ids.shape[1]} tokens, the model has positions for {longest}")
            x = x + self.positions(self.learned.indices(ids, mask, self.pad))
        return self.drop(x if self.norm is None else self.norm(x))


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
    GPU; elsewhere their plain reference).
    """

    def __init__(self, config: ModelConfig, backend: Backend = "fused"):
        super().__init__()
        self.config = config
        self.embed = Embeddings(config)
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
