"""Small checkpoints on disk, in shards: transformers' models with every parameter redrawn, and a tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import CONFIGS, reference
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from minibeft.checkpoints.adapters import make_adapter, save_adapter
from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tensors import open_tensors
from minibeft.checkpoints.tokenizer import encode, load_tokenizer
from minibeft.families.tokenizers import CLASSES, FIXED
from minibeft.models.biases import add_bias, freeze_except, terms_of
from minibeft.models.config import Task
from minibeft.theory.draws import Draws
from minibeft.verification.sentences import SENTENCES

WORDS = sorted({word for line in SENTENCES for word in line.replace(".", " .").replace(",", " ,").split()})
VOCABULARY = {word: i for i, word in enumerate(("[UNK]", "[PAD]", *WORDS))}
PAD = VOCABULARY["[PAD]"]


def write_letters(folder: Path, special: list[str], texts: list[str]) -> None:
    """A tokenizer of the letters of these texts, for classes that take byte pairs alone. special: unknown, padding."""
    letters = sorted({letter for text in texts for letter in text.replace(" ", "Ġ")})
    vocabulary = {letter: i for i, letter in enumerate((*special, *letters))}
    Tokenizer(models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    named = dict(zip(("unk_token", "pad_token"), special, strict=True)) | {"eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def write_tokenizer(folder: Path, family: str = "") -> None:
    """A tokenizer of whole words, those of the built-in sentences; of letters where transformers fixes the class."""
    if FIXED.get(family) in CLASSES:
        write_letters(folder, ["[UNK]", "[PAD]"], list(SENTENCES))
        return
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write_checkpoint(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, shard: str = "20KB", **changes: Any
) -> Path:
    """A random checkpoint of this family with a tokenizer."""
    common = {"model_type": family, "vocab_size": len(VOCABULARY), "pad_token_id": PAD}
    model = reference(common | CONFIGS[family] | changes, seed=0)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder, family)
    return folder


def write_adapter(folder: Path, model: Path, terms: str = "v", *, task: Task | None = None, size: float = 0.5) -> Path:
    """An adapter that moves these biases by normal numbers of this size, and the head of a classifier."""
    tuned = load_model(model, task=task, dtype=torch.float32)
    absent = [term for term in terms.split(",") if term not in terms_of(tuned)]
    if absent:
        add_bias(tuned, absent)
    moving = freeze_except(tuned, terms, head=tuned.config.task == "classification")
    before = {name: value.detach().clone() for name, value in moving.items()}
    generator = Draws(7)
    for value in moving.values():
        value.data += size * generator.normal(*value.shape, dtype=torch.float32)
    save_adapter(make_adapter(tuned, before), folder)
    return folder


def inputs(folder: Path) -> dict[str, Tensor]:
    """The built-in sentences as a padded batch."""
    return encode(load_tokenizer(folder), SENTENCES, pad=PAD)


def in_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The checkpoint in transformers; a tensor that is missing or unknown there fails the test."""
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures is not None
    auto = getattr(transformers, config.architectures[0])
    model, report = auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


@torch.inference_mode()
def logits(model: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> Tensor:
    """The logits of the real tokens of the built-in sentences."""
    batch = inputs(folder)
    batch.pop("token_type_ids")
    found = (model if dtype is None else model.to(dtype))(**batch).logits
    return found[batch["attention_mask"].bool()] if found.ndim == 3 else found


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder and its SHA-256."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by the name in its files."""
    return {name: lazy() for name, lazy in open_tensors(folder).items()}


def leftovers(folder: Path) -> list[str]:
    """What stands beside the model in its parent folder."""
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def as_pickle(folder: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def as_old_pickle(folder: Path, state: dict[str, Tensor]) -> None:
    """torch's format before 1.6, which cannot be memory-mapped."""
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
