"""An attention layer with an input: the object that every statement is measured on.

verify makes one from each attention module of a model (probe), the tests draw them with Hypothesis; a test plants a bug
by replacing its `function`.
Results are read in float64 whatever type the layer computes in, so that measuring adds no rounding of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minibeft.theory.attention import Attended, HeadNorm, Mask, attend, capped, project
from minibeft.theory.bounds import Arithmetic, unit_roundoff
from minibeft.theory.rotary import Rotation


@dataclass(frozen=True)
class Instance:
    """The arguments of attend(), and the function that is called with them: attend() or one of its signature."""

    x: Float[Tensor, "B T C"]
    w_q: Float[Tensor, "HD C"]
    w_k: Float[Tensor, "GD Cy"]
    w_v: Float[Tensor, "GD Cy"]
    w_o: Float[Tensor, "C HD"] | None
    b_q: Float[Tensor, " HD"] | None
    b_k: Float[Tensor, " GD"] | None
    b_v: Float[Tensor, " GD"] | None
    b_o: Float[Tensor, " C"] | None
    heads: int
    kv_heads: int
    y: Float[Tensor, "B S Cy"] | None = None
    mask: Mask | None = None
    rotate: Rotation | None = None
    q_norm: HeadNorm | None = None
    k_norm: HeadNorm | None = None
    scale: float | None = None
    softcap: float | None = None
    fused: bool = True
    function: Callable[..., Attended] = attend

    def run(self, **changes: Any) -> Attended:
        """What the function gives with some arguments changed. W_o is left out unless it is named: run(w_o=p.w_o)."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        given |= {"w_o": None, "b_o": None} | changes
        function: Callable[..., Attended] = given.pop("function")
        first = [given.pop(name) for name in ("x", "w_q", "w_k", "w_v", "w_o")]
        return function(*first, **given)

    def outputs(self, **changes: Any) -> Float[Tensor, "B H T D"]:
        """O = P V of each head."""
        return self.run(**changes).output.double().unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def weights(self, **changes: Any) -> Float[Tensor, "B H T S"]:
        """P of each head."""
        weights = self.run(weights=True, **changes).weights
        assert weights is not None
        return weights.double()

    def exact(self) -> "Instance":
        """The same numbers in float64."""
        return replace(self, **{k: v.double() for k, v in vars(self).items() if isinstance(v, Tensor)})

    def filled(self) -> "Instance":
        """With a zero bias wherever b_q, b_k or b_v is absent."""
        absent = {f"b_{n}": getattr(self, f"w_{n}") for n in "qkv" if getattr(self, f"b_{n}") is None}
        return replace(self, **{name: weight.new_zeros(len(weight)) for name, weight in absent.items()})

    @property
    def source(self) -> Float[Tensor, "B S Cy"]:
        """What keys and values are made from."""
        return self.x if self.y is None else self.y

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def factor(self) -> float:
        """The scale of the logits."""
        return (self.w_q.shape[0] // self.heads) ** -0.5 if self.scale is None else self.scale

    @property
    def arithmetic(self) -> Arithmetic:
        """In the layer's own type. A projection is C products, C − 1 sums and the bias; a rotation three more, a norm
        D + 6, a cap 6 (two products, and tanh to two units in the last place)."""
        roundings = self.x.shape[-1] + 1 + 3 * (self.rotate is not None) + 6 * (self.softcap is not None)
        if self.q_norm is not None:
            roundings += self.w_q.shape[0] // self.heads + 6
        mask = None if self.mask is None else self.mask.double()
        return Arithmetic(mask, self.factor, unit_roundoff(self.x.dtype), roundings)

    @property
    def sees(self) -> Bool[Tensor, "B H T"]:
        """The rows that see at least one key."""
        shape = (self.x.shape[0], self.heads, self.x.shape[1], self.source.shape[1])
        visible = torch.ones(shape[-2:], dtype=torch.bool) if self.mask is None else ~self.mask.isneginf()
        return visible.expand(shape).any(-1)

    def q(self, bias: Tensor | None) -> Float[Tensor, "B H T D"]:
        """Queries with this bias, normalised and turned where the layer does so."""
        return self._turned(project(self.x, self.w_q, bias, self.heads), self.q_norm).double()

    def k(self, bias: Tensor | None) -> Float[Tensor, "B H S D"]:
        """Keys with this bias, normalised and turned where the layer does so, as each query head meets them."""
        return self._grouped(self._turned(project(self.source, self.w_k, bias, self.kv_heads), self.k_norm)).double()

    def v(self, bias: Tensor | None) -> Float[Tensor, "B H S D"]:
        """Values with this bias, as each query head meets them."""
        return self._grouped(project(self.source, self.w_v, bias, self.kv_heads)).double()

    def sizes(self, name: str, bias: Tensor | None = None) -> Float[Tensor, "B H t D"]:
        """|y||W|ᵀ + |b| of "q", "k" or "v", after norm and rotation: a bound on the projection, and the scale of its
        rounding errors."""
        tokens, heads = (self.x, self.heads) if name == "q" else (self.source, self.kv_heads)
        weight = getattr(self, f"w_{name}")
        size = project(tokens.abs(), weight.abs(), None if bias is None else bias.abs(), heads).double()
        norm = {"q": self.q_norm, "k": self.k_norm, "v": None}[name]
        if norm is not None:
            size = norm.reach(project(tokens, weight, bias, heads).double(), size)
        if self.rotate is not None and name != "v":
            size = self.rotate.reach(size)
        return size if name == "q" else self._grouped(size)

    def per_head(self, bias: Float[Tensor, " hD"]) -> Float[Tensor, "H 1 D"]:
        """A bias as each query head meets it."""
        by_head = bias.double().view(-1, 1, self.w_v.shape[0] // self.kv_heads)
        return by_head.repeat_interleave(self.heads // by_head.shape[0], 0)

    def over_group(self, by_head: Float[Tensor, "H D"]) -> Float[Tensor, " GD"]:
        """Summed over the query heads that share a key-value head."""
        return by_head.unflatten(0, (self.kv_heads, -1)).sum(1).flatten()

    def shift(self, b_q: Float[Tensor, " HD"]) -> Float[Tensor, "B H T S"]:
        """β_ij = s k_j·R_{i−j} b_q in float64: what b_q adds to the logits, the same for every query without R. With a
        norm or a cap it is not this product, but the difference of the logits with and without b_q."""
        exact = self.exact()
        if self.q_norm is not None or self.softcap is not None:
            with_it, without = (self.factor * exact.q(b) @ exact.k(exact.b_k).mT for b in (b_q.double(), None))
            return capped(with_it, self.softcap) - capped(without, self.softcap)
        added = exact.per_head(b_q)[None].expand(self.x.shape[0], -1, self.x.shape[1], -1)  # (B, H, T, D)
        return self.factor * exact._turned(added) @ exact.k(exact.b_k).mT

    def _turned(self, x: Float[Tensor, "B h t D"], norm: HeadNorm | None = None) -> Float[Tensor, "B h t D"]:
        x = x if norm is None else norm(x)
        return x if self.rotate is None else self.rotate(x)

    def _grouped(self, x: Float[Tensor, "B G S D"]) -> Float[Tensor, "B H S D"]:
        return x.repeat_interleave(self.group, 1)
