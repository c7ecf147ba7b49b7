"""What turns hidden states into logits: of a text's classes, of each token's classes, of the next or a masked token."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.models.config import ModelConfig
from minibeft.models.layers import ACTIVATIONS, make_norm
from minibeft.theory.attention import capped

Map = Callable[[Tensor], Tensor]


class ClassificationHead(nn.Module):
    """logits = out(act(dense(first token))), with BERT's dropout before `out`, RoBERTa's before `dense` as well.

    Without `out` (task "hidden") it is the pooler alone, whose weights the model then only carries along.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(c.width, c.width)
        self.out = nn.Linear(c.width, c.labels) if c.task == "classification" else None
        self.drop = nn.Dropout(c.classifier_dropout)
        self.drops_twice, self.act = c.drops_twice, ACTIVATIONS[c.pooler_activation]

    def forward(self, hidden: Float[Tensor, "B T C"], _: Tensor | None) -> Float[Tensor, "B labels"] | None:
        return None if self.out is None else self.through(hidden[:, 0], self.dense, self.out)

    def through(self, first: Float[Tensor, "B C"], dense: Map, out: Map) -> Float[Tensor, "B labels"]:
        """The same with these maps: the head's own, or those of each row's adapter (packed/sets.py)."""
        return out(self.drop(self.act(dense(self.drop(first) if self.drops_twice else first))))


class LastTokenHead(nn.Module):
    """A decoder's classifier: logits = W h of the text's last token, which alone has seen all of it; no bias.

    As in transformers the last token is the rightmost that is not the padding token.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.out, self.pad = nn.Linear(c.width, c.labels, bias=False), c.pad

    def forward(
        self, hidden: Float[Tensor, "B T C"], ids: Int[Tensor, "B T"], real: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B labels"]:
        counts = real.bool() if self.pad is None else ids != self.pad
        places = torch.arange(ids.shape[1], device=ids.device)
        last = (places * counts).argmax(1)
        return self.out(hidden[torch.arange(len(ids), device=ids.device), last])


class TokenHead(nn.Module):
    """Logits for each token. Without dropout, because nothing here trains it."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.out = nn.Linear(c.width, c.labels)

    def forward(self, hidden: Float[Tensor, "B T C"], _: Tensor) -> Float[Tensor, "B T labels"]:
        return self.out(hidden)


class LinearHead(nn.Module):
    """logits = out(first token), or with `mean` of the first token and the mean of the others beside it."""

    def __init__(self, c: ModelConfig, *, mean: bool):
        super().__init__()
        self.mean = mean
        self.out = nn.Linear(c.width * (1 + mean), c.labels)

    def forward(self, hidden: Float[Tensor, "B T C"], _: Tensor | None) -> Float[Tensor, "B labels"]:
        first = hidden[:, 0]
        return self.out(torch.cat((first, hidden[:, 1:].mean(1)), -1) if self.mean else first)


class MeanHead(nn.Module):
    """logits = out(mean of dense(token) over all tokens), as in Whisper."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        width = c.classifier_width or c.width
        self.dense, self.out = nn.Linear(c.width, width), nn.Linear(width, c.labels)

    def forward(self, hidden: Float[Tensor, "B T C"], _: Tensor | None) -> Float[Tensor, "B labels"]:
        return self.out(self.dense(hidden).mean(1))


class LMHead(nn.Module):
    """Next-token logits: a linear map, tied to the token embedding when the configuration says so."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        width, self.cap = c.embedding_width or c.width, c.logit_cap
        self.weight = None if c.tied else nn.Parameter(nn.init.normal_(torch.empty(c.vocab, width), std=0.02))
        self.bias = nn.Parameter(torch.zeros(c.vocab)) if c.head_bias else None

    def forward(self, hidden: Float[Tensor, "B T E"], embedding: Float[Tensor, "V E"]) -> Float[Tensor, "B T V"]:
        return capped(F.linear(hidden, embedding if self.weight is None else self.weight, self.bias), self.cap)


class MaskedLMHead(nn.Module):
    """BERT's and RoBERTa's masked-token logits: dense, activation, norm, then the tied embedding with its own bias."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        width = c.embedding_width or c.width
        self.dense = nn.Linear(c.width, width)
        self.act = ACTIVATIONS[c.head_activation]
        self.norm = make_norm(c.norm, width, c.eps)
        self.logits = LMHead(c)

    def forward(self, hidden: Float[Tensor, "B T C"], embedding: Float[Tensor, "V E"]) -> Float[Tensor, "B T V"]:
        return self.logits(self.norm(self.act(self.dense(hidden))), embedding)


Head = ClassificationHead | LinearHead | MeanHead | LastTokenHead | TokenHead | LMHead | MaskedLMHead


def make_head(c: ModelConfig) -> Head | None:
    """The head of this task, or None for hidden states alone."""
    if c.task == "classification" and c.decodes:
        return LastTokenHead(c)
    if c.task == "classification" and c.reads == "mean":
        return MeanHead(c)
    if c.task == "classification" and c.reads != "dense":
        return LinearHead(c, mean=c.reads == "first and mean")
    if c.task == "tokens":
        return TokenHead(c)
    if c.task == "classification" or c.pooler:
        return ClassificationHead(c)
    if c.task == "lm":
        return LMHead(c) if c.decodes else MaskedLMHead(c)
    return None
