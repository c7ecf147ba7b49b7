"""A folder's tokenizer, through the `tokenizers` library, and padded batches from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from minibeft.errors import BadInput
from minibeft.find import find


def has_tokenizer(name_or_path: str | Path) -> bool:
    """Whether the folder holds a tokenizer that load_tokenizer reads."""
    return (find(name_or_path) / "tokenizer.json").is_file()


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer of a folder, hub id or "minilm", without the padding and truncation that its file may carry."""
    file = find(name_or_path) / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"{file}: missing; save the tokenizer in the fast format beside the model")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise BadInput(f"{file}: is not a tokenizer ({error}); download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    pad: int | None,
    max_length: int | None = None,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """Texts as one padded batch: input_ids, attention_mask and token_type_ids, each (B, T) with T the longest text.

    pad is the padding token's id (None: 0, where the mask alone hides it); texts are cut to max_length tokens.
    """
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    found = tokenizer.encode_batch(list(texts))
    tokenizer.no_truncation()
    longest = max(len(one.ids) for one in found)

    def column(rows: list[list[int]], fill: int) -> Tensor:
        gaps = [[fill] * (longest - len(row)) for row in rows]
        pairs = zip(rows, gaps, strict=True)
        return torch.tensor([gap + row if side == "left" else row + gap for row, gap in pairs])

    return {
        "input_ids": column([one.ids for one in found], pad or 0),
        "attention_mask": column([[1] * len(one.ids) for one in found], 0),
        "token_type_ids": column([one.type_ids for one in found], 0),
    }
