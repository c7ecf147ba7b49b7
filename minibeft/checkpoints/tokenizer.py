"""A checkpoint's tokenizer: tokenizer.json, or the older vocabulary files turned into the same thing; and batches."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from minibeft.checkpoints.find import find
from minibeft.checkpoints.vocabulary import convert, parse


def has_tokenizer(name_or_path: str | Path) -> bool:
    """Whether load_tokenizer has files to read."""
    folder = find(name_or_path)
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json"))


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The checkpoint's tokenizer, from the `tokenizers` library.

    name_or_path is what load_model takes. Truncation and padding that a tokenizer.json carries are switched off:
    `encode` pads a batch to its longest text. Raises BadInput where the files are missing or damaged.
    """
    folder = find(name_or_path)
    file = folder / "tokenizer.json"
    tokenizer = parse(file, lambda: Tokenizer.from_file(str(file))) if file.is_file() else convert(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    pad: int | None = None,
    max_length: int | None = None,
    side: str = "right",
) -> dict[str, Tensor]:
    """A padded batch: input_ids, attention_mask and token_type_ids, each (B, T); model(**batch) takes it.

    texts       sentences, or pairs of sentences
    pad         the padding token's id, model.config.pad; None: 0, which the attention mask hides from every real token
    max_length  longer texts are cut on the right, special tokens kept (of a pair, the longer text first)
    side        where padding goes, "right" or "left"
    """
    before = tokenizer.truncation
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    try:
        rows = tokenizer.encode_batch(list(texts))
    finally:
        tokenizer.enable_truncation(**before) if before else tokenizer.no_truncation()
    for row in rows:
        row.pad(max(map(len, rows)), direction=side, pad_id=pad or 0)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: torch.tensor([getattr(row, column) for row in rows]) for name, column in columns.items()}
