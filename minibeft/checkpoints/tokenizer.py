"""A checkpoint's tokenizer: tokenizer.json, or the older vocabulary files turned into the same thing; and batches."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from minibeft.checkpoints.find import find
from minibeft.checkpoints.vocabulary import agreed, convert, refusing
from minibeft.errors import LONGEST_WORD, BadInput, cut
from minibeft.models.config import ModelConfig

# Attention weights of one head on all texts: 12 heads then take half a GB.
MOST_WEIGHTS = 1 << 22
MOST_GROWTH = 256
REPEATS = re.compile(r"[*+]|\{\d*,?\d*\}")
UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")
MOST_RUNS = 3


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
    tokenizer = agreed(folder, file) if file.exists() else convert(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    require_modest(folder, tokenizer)
    return tokenizer


def require_modest(folder: Path, tokenizer: Tokenizer) -> None:
    """BadInput where a tokenizer would make texts far longer, or take exponential time on them.

    A few dozen replacements that each double a text fill the memory, and so does a template that repeats the text or
    names a token a million times.
    """
    grows, pieces = 1, 0
    for part in (*parts_of(tokenizer.normalizer), *parts_of(tokenizer.pre_tokenizer)):
        expression = part["pattern"].get("Regex") if isinstance(part.get("pattern"), dict) else None
        if expression is not None and backtracks(expression):
            what = f"{folder}: its tokenizer's expression {cut(expression, LONGEST_WORD)!r}"
            why = f"repeats what repeats or chooses, or has {MOST_RUNS} repeats in a row"
            raise BadInput(f"{what} {why}, which can take for ever; write it without")
    for part in parts_of(tokenizer.normalizer):
        if part["type"] == "Replace":
            grows *= max(1, len(part["content"]))
    for part in parts_of(tokenizer.post_processor):
        if part["type"] == "TemplateProcessing":
            tokens = {name: len(token["ids"]) for name, token in part["special_tokens"].items()}
            for frame in (part["single"], part["pair"]):
                named = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else "" for piece in frame]
                pieces = max(pieces, sum(tokens.get(name, 1) for name in named))
    if grows > MOST_GROWTH or pieces > MOST_GROWTH:
        raise BadInput(f"{folder}: its tokenizer makes texts more than {MOST_GROWTH} times as long; it is damaged")


def backtracks(expression: str) -> bool:
    """Whether a text that almost matches a regular expression can take too long.

    It can take exponential time where a repeated group has a repeat or alternatives inside, as in (a+)+ or (a|a)*, and
    more than its length squared per position with MOST_RUNS unbounded repeats in one alternative, as in a*a*a*b.
    """
    # Here a character class or an escape counts as one letter, and a lazy or possessive repeat as a plain one.
    bare = re.sub(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|\[:\w+:\]|[^\]\\])+\]", "x", expression, flags=re.DOTALL)
    bare = re.sub(r"([*+?}])[+?]", r"\1", bare)
    groups = [Group()]
    for at, letter in enumerate(bare):
        if letter == "(":
            groups.append(Group())
        elif letter == ")" and len(groups) > 1:
            inside = groups.pop()
            if inside.loose and REPEATS.match(bare, at + 1):
                return True
            groups[-1].loose |= inside.loose
            groups[-1].runs += max(inside.runs, inside.most)
        elif letter == "|":
            groups[-1] = Group(loose=True, most=max(groups[-1].runs, groups[-1].most))
        elif letter in "*+{":
            groups[-1].loose = True
            groups[-1].runs += bool(UNBOUNDED.match(bare, at))
        if groups[-1].runs >= MOST_RUNS:
            return True
    return False


@dataclass
class Group:
    """What is known so far of a group of a regular expression.

    loose  it has a repeat or alternatives inside
    runs   unbounded repeats in its current alternative; most: the most in an earlier alternative
    """

    loose: bool = False
    runs: int = 0
    most: int = 0


def parts_of(component: Any) -> list[dict[str, Any]]:
    """The parts of a tokenizer's component as its file has them, with nested sequences flattened."""
    todo, found = [] if component is None else [json.loads(component.__getstate__())], []
    while todo:
        part = todo.pop()
        found.append(part)
        todo += part.get("normalizers") or part.get("processors") or part.get("pretokenizers") or []
    return found


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
    rows = encodings(tokenizer, texts, max_length)
    for row in rows:
        row.pad(max(map(len, rows)), direction=side, pad_id=pad or 0)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: torch.tensor([getattr(row, column) for row in rows]) for name, column in columns.items()}


def encodings(tokenizer: Tokenizer, texts: Sequence[Any], max_length: int | None = None) -> list[Encoding]:
    """The texts as tokens, cut to this length; BadInput where the tokenizer fails on them."""
    before = tokenizer.truncation
    with refusing("the tokenizer fails on these texts"):
        if max_length is not None:
            tokenizer.enable_truncation(max_length)
        try:
            return tokenizer.encode_batch(list(texts))
        finally:
            tokenizer.enable_truncation(**before) if before else tokenizer.no_truncation()


def encode_for(config: ModelConfig, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Tensor]:
    """The batch that a model of this configuration is given: cut to its positions, held against its tables."""
    require_texts(config)
    batch = encode(tokenizer, texts, pad=config.pad, max_length=room(config))
    rows, longest = batch["input_ids"].shape
    if rows * longest**2 > MOST_WEIGHTS:
        raise BadInput(f"{rows} texts of up to {longest} tokens may not fit in memory; give fewer, or shorter lines")
    require_rows(config, batch["input_ids"], batch["token_type_ids"])
    return batch


def require_texts(config: ModelConfig) -> None:
    """BadInput for a model of images or speech."""
    if config.features is not None:
        raise BadInput(
            f"this {config.family} model reads no texts; verify, inspect, simplify, merge and finetune take it"
        )


def room(config: ModelConfig) -> int | None:
    """How many tokens the model has positions for; None: any number."""
    positions = config.positions
    return None if positions is None else positions.rows - positions.start


def require_rows(config: ModelConfig, ids: Tensor, types: Tensor | None = None) -> None:
    """BadInput for tokens that the model's tables have no row for: the tokenizer is another model's."""
    if not ids.numel() or not ids.shape[-1]:
        raise BadInput("tokenizer.json: makes no token of these texts; it is another model's, or damaged")
    if (number := int(ids.max())) >= config.vocab:
        raise BadInput(f"tokenizer.json: gives the token {number}, and config.json says vocab_size = {config.vocab}")
    if types is not None and config.token_types and (kind := int(types.max())) >= config.token_types:
        raise BadInput(
            f"tokenizer.json: gives the type {kind}, config.json says type_vocab_size = {config.token_types}"
        )
