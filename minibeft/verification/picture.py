"""One sentence through one head, in float64: what a b_q, and a b_k of the same length, do to the attention weights."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tokenizer import encode_for, load_tokenizer
from minibeft.errors import BadInput
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.verification.probe import probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Views:
    """The weights of one head over the tokens of a sentence, by the biases that they are computed with.

    moved  bias → its largest effect: for b_q and b_k the total variation of a row of P, for b_v how far the shift of
           the output is from b_v
    """

    tokens: list[str]
    length: float
    weights: dict[str, Float[Tensor, "T T"]]
    moved: dict[str, float]

    @property
    def finding(self) -> str:
        """What is seen, in one sentence."""
        return (
            f"b_q moves a row of P by up to {self.moved['q']:.2g} in total variation; a b_k of the same length, "
            f"{self.length:.3g}, by {self.moved['k']:.2g}; a b_v comes out of every row as it went in, to "
            f"{self.moved['v']:.2g}."
        )

    def draw(self, figure: "Figure") -> None:
        """A heat map for each, queries downwards, keys across."""
        panels = figure.subplots(1, len(self.weights))
        for at, (axes, (title, weights)) in enumerate(zip(panels, self.weights.items(), strict=True)):
            axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title, fontsize=9)
            axes.set_xticks(range(len(self.tokens)), self.tokens, rotation=90, fontsize=7)
            axes.set_yticks(range(len(self.tokens)), self.tokens if at == 0 else [], fontsize=7)


def one_layer(model: str, text: str, layer: int, head: int) -> tuple[list[str], Instance]:
    """The tokens of a text, and the layer as it meets them in float64; BadInput for a layer or head that is missing."""
    network = load_model(model, task="hidden", dtype=torch.float64)
    tokenizer = load_tokenizer(model)
    layers = probe(network, batch := encode_for(network.config, tokenizer, [text]))
    for option, given, count in (("--layer", layer, len(layers)), ("--head", head, network.config.heads)):
        if not 0 <= given < count:
            raise BadInput(f"{option} {given}: must be from 0 to {count - 1}")
    return [tokenizer.id_to_token(number) or "?" for number in batch["input_ids"][0].tolist()], layers[layer]


def views(model: str, text: str, *, layer: int = 0, head: int = 0) -> Views:
    """P without b_q and b_k, with the model's b_q, and with a drawn b_k of that length. Where the model has no b_q, or
    one of zeros, it is drawn as well."""
    tokens, p = one_layer(model, text, layer, head)
    draws = Draws(0)
    b_q, b_k, b_v = (draws.normal(len(weight)) for weight in (p.w_q, p.w_k, p.w_v))
    if p.b_q is not None and p.b_q.any():
        b_q = p.b_q
    b_k *= b_q.norm() / b_k.norm()
    bare = replace(p, b_q=None, b_k=None, b_v=None)
    weights = {
        "no b_q, no b_k": bare.weights()[0, head],
        "with b_q": bare.weights(b_q=b_q)[0, head],
        "with a b_k as long": bare.weights(b_k=b_k)[0, head],
    }
    first, *others = weights.values()
    moved = {name: ((other - first).abs().sum(-1).max() / 2).item() for name, other in zip("qk", others, strict=True)}
    shift = bare.outputs(b_v=b_v)[0, head] - bare.outputs()[0, head] - bare.per_head(b_v)[head]
    return Views(tokens, b_q.norm().item(), weights, moved | {"v": shift.abs().max().item()})
