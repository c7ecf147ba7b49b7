"""Examples tokenised once, and the batches of an epoch: of like lengths by default, so that little is padding."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from minibeft.checkpoints.tokenizer import encodings
from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.training.tasks import Split

# Sentences are sorted by length within this many batches at a time: enough to save the padding, few enough that the
# batches of an epoch stay different from those of another.
WINDOW = 32


class Batch(NamedTuple):
    """What an encoder reads, and the labels."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    token_type_ids: Int[Tensor, "B T"]
    labels: Float[Tensor, " B"]

    def scores(self, model: Transformer) -> Float[Tensor, "B K"]:
        """A number for each class: the logits of the classification head."""
        return model.classify(self.input_ids, self.attention_mask, self.token_type_ids)


@runtime_checkable
class Scorable(Protocol):
    """A batch of any kind: it knows how a model scores it. Every tensor in it has B rows."""

    @property
    def labels(self) -> Float[Tensor, " B"]: ...

    def scores(self, model: Transformer) -> Float[Tensor, "B K"]: ...


@runtime_checkable
class Data(Protocol):
    """Examples of any kind: texts for a classification head (Examples), prompts.Prompted or folders.Files."""

    @property
    def lengths(self) -> Int[Tensor, " N"]: ...

    @property
    def labels(self) -> Float[Tensor, " N"]: ...

    def __len__(self) -> int: ...

    def gather(self, indices: Int[Tensor, " B"], width: int | None, device: torch.device) -> Scorable: ...


@dataclass(frozen=True)
class Examples:
    """All examples of a split as token ids, padded once to the longest; N examples, L tokens at most."""

    ids: Int[Tensor, "N L"]
    types: Int[Tensor, "N L"]
    lengths: Int[Tensor, " N"]
    labels: Float[Tensor, " N"]
    pad: int

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Int[Tensor, " B"], width: int | None, device: torch.device) -> Batch:
        """These examples, padded to `width` tokens, or to the longest of them."""
        ids, mask = padded(self.ids[indices], self.lengths[indices], width, self.pad)
        types, _ = padded(self.types[indices], self.lengths[indices], width, 0)
        return Batch(*(part.to(device, non_blocking=True) for part in (ids, mask, types, self.labels[indices])))


def padded(ids: Int[Tensor, "... L"], sizes: Int[Tensor, "..."], width: int | None, fill: int) -> tuple[Tensor, Tensor]:
    """Rows cut to the longest of them, or padded on the right to `width` tokens; and the mask of the real tokens."""
    longest = int(sizes.max())
    ids = ids[..., :longest]
    if width is not None and width > longest:
        ids = torch.nn.functional.pad(ids, (0, width - longest), value=fill)
    return ids, (torch.arange(ids.shape[-1]) < sizes[..., None]).long()


def encode_split(tokenizer: Tokenizer, split: Split, *, max_length: int, pad: int | None) -> Examples:
    """Tokenise a split; pairs are cut to max_length tokens from the longer text, as transformers does."""
    found = encodings(tokenizer, [text if len(text) > 1 else "".join(text) for text in split.texts], max_length)
    lengths = torch.tensor([len(one.ids) for one in found])
    if not lengths[shortest := int(lengths.argmin())]:
        raise BadInput(f"text {shortest + 1}: has no tokens, so there is nothing to classify; leave the row out")
    shape, fill = (len(found), int(lengths.max())), pad or 0
    ids, types = torch.full(shape, fill), torch.zeros(shape, dtype=torch.long)
    for row, one in enumerate(found):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        types[row, : len(one.ids)] = torch.tensor(one.type_ids)
    return Examples(ids, types, lengths, torch.tensor(split.labels, dtype=torch.float32), fill)


def shuffled(lengths: Int[Tensor, " N"], size: int, *, seed: int, epoch: int, bucketed: bool) -> list[Tensor]:
    """The batches of one epoch as indices: every example once, in an order that seed and epoch alone decide.

    bucketed sorts by length within windows of 32 shuffled batches and shuffles the batches again; otherwise batches
    are cut from the permutation as the official sampler does.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    if not bucketed:
        return list(order.split(size))
    windows = order.split(size * WINDOW)
    batches = [b for w in windows for b in w[lengths[w].argsort(stable=True)].split(size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def by_length(lengths: Int[Tensor, " N"], size: int) -> list[Tensor]:
    """Batches for evaluation, where order does not matter: sorted by length."""
    return list(lengths.argsort(stable=True).split(size))
