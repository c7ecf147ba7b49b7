"""One Transformer for every family: embeddings, blocks of attention and MLP, a head. Only the configuration differs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.models.config import Backend, ModelConfig
from minibeft.models.embeddings import Embeddings, make_embeddings
from minibeft.models.heads import ClassificationHead, LastTokenHead, make_head
from minibeft.models.layers import MLP, Linear, RMSNorm, Scale, make_norm
from minibeft.models.packed.dropout import make_dropout
from minibeft.models.packed.frozen import frozen_linear
from minibeft.models.packed.packing import Packing, Packings
from minibeft.models.packed.sets import Rows, Served, in_sets, side_by_side
from minibeft.theory.attention import HeadNorm, Mask, attend, linear, mix
from minibeft.theory.mechanisms import broken
from minibeft.theory.rotary import Rotation
from minibeft.theory.variants import AttentionSpec, alibi_slopes


class Output(NamedTuple):
    """hidden: the last hidden states, after the final norm where there is one. logits: None without a head."""

    hidden: Float[Tensor, "B T C"]
    logits: Float[Tensor, "B labels"] | Float[Tensor, "B T V"] | None = None


class Attention(nn.Module):
    """The modules q, k, v and o around attend(); a bias that the configuration does not name is absent."""

    def __init__(self, c: ModelConfig, spec: AttentionSpec, backend: Backend):
        super().__init__()
        self.spec, self.backend = spec, backend
        self.heads, self.kv_heads, self.dropout = spec.heads, spec.kv_heads, spec.dropout
        self.q = Linear(c.width, c.heads * c.head_size, bias="q" in c.biases)
        self.k = Linear(c.width, c.kv_heads * c.head_size, bias="k" in c.biases)
        self.v = Linear(c.width, c.kv_heads * c.head_size, bias="v" in c.biases)
        self.o = Linear(c.heads * c.head_size, c.width, bias="o" in c.biases)
        normed = spec.qk_norm is not None
        self.q_norm, self.k_norm = (make_norm(c.norm, c.head_size, c.eps) if normed else None for _ in "qk")
        self.joined: Tensor | None = None

    def norms(self) -> dict[str, HeadNorm]:
        """QK-norm as attend() takes it; empty where there is none."""
        modules = {"q_norm": self.q_norm, "k_norm": self.k_norm}
        return {name: HeadNorm(m.gain, m.eps) for name, m in modules.items() if isinstance(m, RMSNorm)}

    def arguments(self) -> dict[str, Any]:
        """What attend() needs besides x, mask and rotate; verify calls it with one bias exchanged."""
        logits = {"scale": self.spec.scale, "softcap": self.spec.softcap} | self.norms()
        weights = {f"w_{name}": getattr(self, name).weight for name in "qkvo"}
        biases = {f"b_{name}": getattr(self, name).bias for name in "qkvo"}
        return weights | biases | logits | {"heads": self.heads, "kv_heads": self.kv_heads}

    def forward(self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None) -> Float[Tensor, "B T C"]:
        dropout = self.dropout if self.training else 0.0
        if self.backend == "triton":
            return self.on_kernels(x, mask, rotate, dropout)
        fused = self.backend == "fused"
        return attend(x, mask=mask, rotate=rotate, dropout=dropout, fused=fused, **self.arguments()).output

    def on_kernels(
        self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None, dropout: float
    ) -> Float[Tensor, "B T C"]:
        """The same with the three projections as one kernel."""
        norms = self.norms()
        q, k, v = self.from_kernel(x, self.heads, None if norms else rotate)  # a norm comes before the turn
        if norms:
            q, k = norms["q_norm"](q), norms["k_norm"](k)
            q, k = (q, k) if rotate is None else (rotate(q), rotate(k))
        o, _ = mix(q, k, v, mask=mask, scale=self.spec.scale, softcap=self.spec.softcap, dropout=dropout)
        return linear(o, self.o.weight, self.o.bias)

    def from_kernel(
        self, x: Float[Tensor, "B T C"], heads: int, turn: Rotation | None
    ) -> tuple[Float[Tensor, "B h T D"], Float[Tensor, "B g T D"], Float[Tensor, "B g T D"]]:
        """Q, K and V in so many heads, turned; a row adds the biases of its own set. A null b_k is not loaded (K1)."""
        # Imported here: the operators register themselves with torch, which the other backends do not need.
        from minibeft.kernels.qkv_bias.function import qkv_bias

        modules = self.q, self.k, self.v
        weights, biases = [m.weight for m in modules], [m.bias if m.sets is None else m.sets.table for m in modules]
        found = next((m.sets for m in modules if m.sets is not None), None)
        sets = found and found.rows.of_sets(len(found.table), x.shape[0] * x.shape[1])
        null = not broken(self.spec, "k")
        return qkv_bias(x, *weights, *biases, heads=heads, rotation=turn, skip_null=null, sets=sets)

    def packed(self, x: Float[Tensor, "N C"], packing: Packing | Packings, first: bool) -> Float[Tensor, "n C"]:
        """The same for the N tokens of a packing; with `first`, for the first token of each sequence alone.

        The projections are one product where their weights were joined and x has a gradient, else one product each. In
        the lowest trained layer x has none, and with separate products autograd computes only the gradients of trained
        biases. On kernels they are one product, for every token.
        """
        if self.backend == "triton":
            q, k, v = (part[0, 0] for part in self.from_kernel(x[None], 1, None))  # heads side by side
            q, projected = (q[packing.first], [k, v]) if first else (None, [q, k, v])
        else:
            q, names = (self.project(x[packing.first], "q"), "kv") if first else (None, "qkv")
            together = x.requires_grad and self.is_joined()
            projected = [self.project(x, group) for group in ([names] if together else names)]
        return self.o(packing.mix(q, projected, self.dropout if self.training else 0.0))

    def project(self, x: Float[Tensor, "N C"], names: str) -> Float[Tensor, "N n"]:
        """The projection of this name; or of several names, neighbours in "qkv", side by side from one product."""
        modules = [getattr(self, name) for name in names]
        if len(modules) == 1:
            return modules[0](x)
        assert self.joined is not None
        size = len(modules[0].weight)
        weight = self.joined.narrow(0, "qkv".index(names) * size, len(names) * size)
        biases, sets = [module.bias for module in modules], [module.sets for module in modules]
        if any(each is not None for each in sets):
            return side_by_side(biases, sets, [len(module.weight) for module in modules]).linear(x, weight)
        return frozen_linear(x, weight, None if None in biases else torch.cat(biases).to(weight.dtype))

    def is_joined(self) -> bool:
        """Whether the weights lie where join() put them, and not where a change of type or device moved them."""
        return self.joined is not None and self.joined.data_ptr() == self.q.weight.data_ptr()

    def join(self) -> None:
        """Lay the frozen weights of q, k and v side by side in memory, so that project() can use them as one."""
        modules = self.q, self.k, self.v
        self.joined = torch.cat([module.weight.data for module in modules])
        for module, part in zip(modules, self.joined.chunk(3), strict=True):
            module.weight.data = part


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream; the norms sit where the configuration puts them."""

    def __init__(self, c: ModelConfig, spec: AttentionSpec, backend: Backend):
        super().__init__()
        self.residual = c.residual
        self.attention = Attention(c, spec, backend)
        self.mlp = MLP(c.width, c.inner, c.activation, gated=c.gated, bias="mlp" in c.biases)
        self.norm1 = make_norm(c.norm, c.width, c.eps)
        self.norm2 = None if c.residual == "parallel" else make_norm(c.norm, c.width, c.eps)
        self.after1, self.after2 = make_after(c), make_after(c)
        self.drop = make_dropout(c.dropout, same=backend == "plain")

    def forward(self, x: Float[Tensor, "B T C"], mask: Mask | None, rotate: Rotation | None) -> Float[Tensor, "B T C"]:
        return self.around(x, lambda y: self.attention(y, mask, rotate))

    def packed(self, x: Float[Tensor, "N C"], packing: Packing | Packings, first: bool) -> Float[Tensor, "n C"]:
        """The same for the N tokens of a packing; with `first`, for the first token of each sequence alone."""
        return self.around(x, lambda y: self.attention.packed(y, packing, first), packing.first if first else ...)

    def around(self, x: Tensor, attention: Callable[[Tensor], Tensor], rows: Any = ...) -> Tensor:
        """The block around its attention, for these rows of x, which are those that attention returns."""
        if self.residual in ("parallel", "twin"):
            y = self.norm1(x)
            z = y[rows] if self.norm2 is None else self.norm2(x[rows])
            return x[rows] + self.drop(attention(y)) + self.drop(self.mlp(z))
        assert self.norm2 is not None
        if self.residual in ("pre", "sandwich", "scaled"):
            x = x[rows] + self.drop(self.after1(attention(self.norm1(x))))
            return x + self.drop(self.after2(self.mlp(self.norm2(x))))
        x = self.norm1(x[rows] + self.drop(attention(x)))
        return self.norm2(x + self.drop(self.mlp(x)))


def make_after(c: ModelConfig) -> nn.Module:
    """What a branch goes through before it is added."""
    if c.residual == "scaled":
        return Scale(c.width)
    return make_norm(c.norm, c.width, c.eps) if c.residual == "sandwich" else nn.Identity()


def additive_mask(
    mask: Int[Tensor, "B T"] | None, length: int, spec: AttentionSpec, like: Float[Tensor, "..."]
) -> Mask | None:
    """0 where a query may look and −∞ where it may not, plus ALiBi; None when nothing is hidden or added."""
    alibi = None
    if spec.position_bias == "alibi":
        tokens = torch.ones(1, length, dtype=torch.long, device=like.device) if mask is None else mask
        places = tokens.cumsum(1)  # a key's position, which is its distance up to a constant per row
        alibi = (alibi_slopes(spec.heads).to(like.device)[:, None, None] * places[:, None, None]).to(like.dtype)
    if mask is not None and bool(mask.all()):
        mask = None
    if mask is None and not spec.causal and spec.window is None:
        return alibi
    visible = torch.ones(1, 1, 1, length, dtype=torch.bool, device=like.device)
    if mask is not None:
        visible = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
    back = torch.arange(length, device=like.device)[:, None] - torch.arange(length, device=like.device)
    if spec.causal:
        visible = visible & (back >= 0)  # (B|1, 1, T, T)
    if spec.window is not None:
        visible = visible & (back < spec.window)
    seen = torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(~visible, -torch.inf)
    return seen if alibi is None else seen + alibi


class Transformer(nn.Module):
    """model(input_ids, attention_mask=None, token_type_ids=None), or model(features=…) → Output(hidden, logits).

    attention_mask is 1 for real tokens and 0 for padding, on either side. features: images or spectrograms, all of
    them real. backend: "fused" uses torch's fused attention, "plain" the formula of attention.py, "triton" the kernels
    of kernels/ for the three projections (on a GPU; elsewhere their plain reference). fresh: the names of parameters
    that no checkpoint gave.
    """

    fresh: frozenset[str] = frozenset()
    served: Served | None = None

    def __init__(self, config: ModelConfig, backend: Backend = "fused"):
        super().__init__()
        self.config, self.backend = config, backend
        self.embed = make_embeddings(config, same_dropout=backend == "plain")
        self.blocks = nn.ModuleList(Block(config, spec, backend) for spec in config.attention)
        self.norm = None if config.residual == "post" else make_norm(config.norm, config.width, config.eps)
        self.head = make_head(config)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
        features: Float[Tensor, "B channels *grid"] | None = None,
        adapters: Int[Tensor, " B"] | None = None,
        places: Int[Tensor, "B M"] | None = None,
    ) -> Output:
        """
        adapters  as classify() takes them, with padding on the right, where hidden is then zero
        places    of a language model: compute logits for these positions of each row alone, (B, M, V)
        """
        if adapters is not None:
            if input_ids is None or features is not None:
                raise ValueError("adapters go with input_ids, and not with features")
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            packing = Packing(mask, self.config.heads)
            x = self.states_mixed(input_ids, mask, token_type_ids, packing, adapters, whole=True)
            hidden = x.new_zeros(mask.numel(), x.shape[1]).index_copy(0, packing.real, x).view(*mask.shape, -1)
            return Output(hidden, self.answer(hidden[:, 0], adapters))
        x = self.embedded(input_ids, attention_mask, token_type_ids, features)
        positions = torch.arange(x.shape[1], device=x.device)
        kinds = set(self.config.attention)  # one or two: with and without a window, or a rotation
        masks = {spec: additive_mask(attention_mask, x.shape[1], spec, x) for spec in kinds}
        turns = {spec: spec.rotary.rotate(positions) for spec in kinds if spec.rotary is not None}
        for block, spec in zip(self.blocks, self.config.attention, strict=True):
            x = block(x, masks[spec], turns.get(spec))
        hidden = x if self.norm is None else self.norm(x)
        if isinstance(self.head, LastTokenHead):
            assert input_ids is not None
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return Output(hidden, self.head(hidden, input_ids, real))
        read = hidden if places is None else hidden[torch.arange(len(x), device=x.device)[:, None], places]
        return Output(hidden, None if self.head is None else self.head(read, self.token_vectors))

    @property
    def token_vectors(self) -> Float[Tensor, "V E"] | None:
        """The token embeddings, to which a head may be tied; None where features are read."""
        return self.embed.tokens.weight if isinstance(self.embed, Embeddings) else None

    def embedded(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, features: Tensor | None
    ) -> Float[Tensor, "B T C"]:
        """The first hidden states, of what the model reads."""
        reads, other = ("input_ids", features) if self.config.features is None else ("features", ids)
        if (given := features if ids is None else ids) is None or other is not None:
            raise ValueError(f"this {self.config.family} model reads {reads}, and those alone must be given")
        if reads == "features":
            return self.embed(given)
        for name, value in (("attention_mask", mask), ("token_type_ids", types)):
            if value is not None and value.shape != given.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, input_ids {tuple(given.shape)}")
        return self.embed(given, torch.ones_like(given) if mask is None else mask, types)

    def classify(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None = None,
        adapters: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B labels"]:
        """The logits of a classifier, computed only from what they depend on; padding must be on the right.

        For an encoder this computes the real tokens without the padding, and in the last block only the first tokens,
        which are all that the head reads; decoders and the backend "plain" use forward().

        adapters  for each sequence, the number of its adapter among those that load_adapters put into the model
        """
        if adapters is not None:
            packing = Packing(attention_mask, self.config.heads)
            x = self.states_mixed(input_ids, attention_mask, token_type_ids, packing, adapters, whole=False)
            return self.answer(x, adapters)
        if self.backend == "plain" or not isinstance(self.head, ClassificationHead):
            logits = self(input_ids, attention_mask, token_type_ids).logits
            assert logits is not None
            return logits
        packing = Packing(attention_mask, self.config.heads)
        x = self.first_states(input_ids, attention_mask, token_type_ids, packing)
        logits = self.head(x[:, None], self.token_vectors)
        assert logits is not None
        return logits

    def states_mixed(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None,
        packing: Packing,
        adapters: Int[Tensor, " B"],
        *,
        whole: bool,
    ) -> Float[Tensor, "n C"]:
        """first_states(), each sequence with the biases of its own adapter."""
        loaded = 0 if self.served is None else len(self.served.labels)
        if self.served is None or not all(0 <= number < loaded for number in adapters.tolist()):
            raise ValueError(f"adapters names one that is not loaded; there are {loaded}, numbered from 0")
        rows = Rows(adapters, packing.filled.sum(1).tolist(), [1] * len(adapters))
        with in_sets(self, self.served.tables, rows):
            return self.first_states(input_ids, attention_mask, token_type_ids, packing, whole=whole)

    def answer(self, first: Float[Tensor, "B C"], adapters: Int[Tensor, " B"]) -> Float[Tensor, "B labels"]:
        """The logits of each sequence by the head of its own adapter."""
        assert self.served is not None
        assert isinstance(self.head, ClassificationHead)
        return self.head.through(first, self.served.map("dense", adapters), self.served.map("out", adapters))

    def first_states(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None,
        packing: Packing | Packings,
        *,
        whole: bool = False,
    ) -> Float[Tensor, "n C"]:
        """What a classifier's head reads: the last state of each sequence's first token; `whole`: of every token."""
        assert isinstance(self.head, ClassificationHead)
        real = packing.real if isinstance(packing, Packing) else attention_mask.flatten().nonzero()[:, 0]
        x = self.embed(input_ids, attention_mask, token_type_ids, real)
        x = x.to(self.head.dense.weight.dtype)  # half precision, where it is asked for, starts here
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, Block)
            x = block.packed(x, packing, first=number == len(self.blocks) and not whole)
        return x if self.norm is None else self.norm(x)

    def join(self) -> None:
        """Let classify() compute q, k and v as one matrix product where their weights are frozen, and evaluate frozen
        maps by frozen_linear. Values, names and memory stay what they are."""
        if self.backend == "plain" or not isinstance(self.head, ClassificationHead):
            return
        for module in self.modules():
            if isinstance(module, Attention) and not any(getattr(module, n).weight.requires_grad for n in "qkvo"):
                module.join()
            if isinstance(module, Linear):
                module.frozen = not module.weight.requires_grad
