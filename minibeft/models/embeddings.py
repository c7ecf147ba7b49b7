"""From token ids to the first hidden states: token vectors, learned positions and token types, a norm, dropout."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.models.config import ModelConfig
from minibeft.models.features import ImageEmbeddings, SpeechEmbeddings
from minibeft.models.layers import Linear, make_norm
from minibeft.models.packed.dropout import make_dropout


def look_up(table: nn.Embedding, ids: Int[Tensor, "*T"], what: str) -> Float[Tensor, "*T C"]:
    """Rows of a table. Ids are not checked beforehand: on a GPU that would wait until they are computed."""
    try:
        return table(ids)
    except IndexError as error:
        raise ValueError(
            f"{what} run from {int(ids.min())} to {int(ids.max())}, the model knows 0 to {table.num_embeddings - 1}"
        ) from error


def make_embeddings(c: ModelConfig, *, same_dropout: bool) -> "Embeddings | ImageEmbeddings | SpeechEmbeddings":
    """Of tokens, or of the features that the model reads in their place."""
    if c.features is None:
        return Embeddings(c, same_dropout=same_dropout)
    return c.features.embeddings(c.width, c.embedding_dropout, same_dropout=same_dropout)


class Embeddings(nn.Module):
    """Token vectors, scaled where the family does so, plus its learned positions and token types."""

    def __init__(self, c: ModelConfig, *, same_dropout: bool):
        super().__init__()
        self.learned = c.positions
        self.pad = c.pad
        width, self.scale = c.embedding_width or c.width, c.embedding_scale
        self.tokens = nn.Embedding(c.vocab, width)
        self.positions = nn.Embedding(self.learned.rows, width) if self.learned else None
        self.types = nn.Embedding(c.token_types, width) if c.token_types else None
        self.norm = make_norm(c.norm, width, c.eps) if c.embedding_norm else None
        self.project = Linear(width, c.width) if width != c.width else None
        self.drop = make_dropout(c.embedding_dropout, same=same_dropout)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        mask: Int[Tensor, "B T"],
        types: Int[Tensor, "B T"] | None,
        real: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "B T C"] | Float[Tensor, "N C"]:
        """The embeddings of all tokens, or only of those at the positions `real` (b·T + t)."""

        def pick(values: Int[Tensor, "B T"]) -> Int[Tensor, "B T"] | Int[Tensor, " N"]:
            return values if real is None else values.flatten()[real]

        x = look_up(self.tokens, pick(ids), "input_ids")
        x = x if self.scale == 1 else x * x.new_tensor(self.scale)
        if self.types is not None:
            x = x + look_up(self.types, pick(torch.zeros_like(ids) if types is None else types), "token_type_ids")
        if self.positions is not None:
            assert self.learned is not None
            longest = self.learned.rows - self.learned.start
            if ids.shape[1] > longest:
                raise ValueError(f"input has {ids.shape[1]} tokens, the model has positions for {longest}")
            x = x + self.positions(pick(self.learned.indices(ids, mask, self.pad)))
        x = self.drop(x if self.norm is None else self.norm(x))
        return x if self.project is None else self.project(x)
