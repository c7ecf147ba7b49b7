"""Random decoders with a tokenizer, as Hugging Face folders, and settings to fine-tune them in a second."""

from pathlib import Path
from typing import Any

import torch
from small_run import WORDS, make_data
from tiny import redraw, typical
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from minibeft.checkpoints.load import build_model
from minibeft.checkpoints.save import save_model
from minibeft.training.settings import Settings

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PROMPT_WORDS = ["It", "was", "terrible", "great"]


def make_tokenizer(vocabulary: list[str]) -> Tokenizer:
    """A token a word, </s> before every text, as OPT has it."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])  # type: ignore[assignment]
    return tokenizer


def make_decoder(folder: Path, family: str, **changes: Any) -> Path:
    """A decoder of width 24 with ALL parameters redrawn."""
    vocabulary = SPECIAL + PROMPT_WORDS + WORDS
    raw = typical(family, "lm", vocab_size=len(vocabulary), **changes)
    model = build_model(raw)
    redraw(model, seed=0)
    save_model(model, folder)
    make_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def decoder_settings(root: Path, family: str, **changes: Any) -> Settings:
    """Settings for a decoder of this family and data in this folder, made on the first call: two epochs of 24."""
    if not (root / family).exists():
        torch.manual_seed(0)
        bias = {"attention_bias": False} if family == "llama" else {}
        make_decoder(root / family, family, **bias, **({"dropout": 0.0} if family == "opt" else {}))
    if not (root / "data").exists():
        make_data(root / "data")
    base: dict[str, Any] = {"model": str(root / family), "task": "sst2", "data": str(root / "data"), "device": "cpu"}
    return Settings(**(base | {"examples": 24, "epochs": 2, "learning_rate": 1e-2} | changes))
