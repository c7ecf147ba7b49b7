"""A random BERT with a tokenizer and a task's files in a folder: enough to fine-tune in a second."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from minibeft.checkpoints.adapters import make_adapter, save_adapter
from minibeft.checkpoints.load import build_model, load_model
from minibeft.checkpoints.save import save_model
from minibeft.models.biases import freeze_except
from minibeft.reproduce import plan
from minibeft.theory.draws import Draws
from minibeft.training.settings import Settings

WORDS = [f"w{i}" for i in range(30)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ROWS = {row.name: row for row in plan.TABLES["regimes"].rows}
# The table of regimes, with fewer of everything.
FEW_REGIMES = replace(
    plan.TABLES["regimes"],
    rows=tuple(ROWS[name] for name in ("v", "k", "none", "all")),
    regimes=("low", "high"),
    tuned=(ROWS["v"],),
    ordered=(("v", "k"),),
    ranked=(ROWS["v"], ROWS["k"]),
)


def make_model(folder: Path, *, std: float = 0.5) -> Path:
    """A BERT of width 16 with ALL parameters redrawn, as a Hugging Face folder with a word-level tokenizer."""
    draws = Draws(0)
    raw: dict[str, Any] = {"model_type": "bert", "vocab_size": 34, "hidden_size": 16, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40}
    model = build_model(raw, task="classification")
    for name, value in model.named_parameters():
        mean = float("norm" in name and name.endswith("weight"))
        value.data.copy_(draws.normal(*value.shape, mean=mean, std=std))
    save_model(model, folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    how = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(how))
    return folder


def make_adapters(base: Path, folder: Path, each: tuple[str, ...] = ("v", "q", "all")) -> list[Path]:
    """Adapters of these terms of this classifier, each with a head, in folders of their names; drawn by number."""
    found = []
    for number, terms in enumerate(each):
        model, draws = load_model(base, task="classification", dtype=torch.float32), Draws(number)
        trained = freeze_except(model, terms, head=True)
        before = {name: value.detach().clone() for name, value in trained.items()}
        for value in trained.values():
            value.data.copy_(draws.normal(*value.shape, std=0.5))
        found.append(folder / terms)
        save_adapter(make_adapter(model, before, base=str(base)), found[-1])
    return found


def make_data(folder: Path, *, train: int = 90, dev: int = 30) -> Path:
    """sst2 and stsb with random words; the label is whether w0 to w14 prevail, so there is something to learn."""
    draw = random.Random(0)
    for task, header in (("sst2", "sentence\tlabel"), ("stsb", "sentence1\tsentence2\tlabel")):
        (folder / task).mkdir(parents=True)
        for split, size in (("train", train), ("dev", dev)):
            rows = [header]
            for _ in range(size):
                texts = [draw.choices(WORDS, k=draw.randint(1, 12)) for _ in header.split("\t")[1:]]
                low = sum(int(w[1:]) < 15 for w in texts[0]) / len(texts[0])
                label = f"{5 * low:.2f}" if task == "stsb" else str(int(low > 0.5))
                rows.append("\t".join([*map(" ".join, texts), label]))
            (folder / task / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def small_settings(root: Path, **changes: Any) -> Settings:
    """Settings for the model and data in this folder, made on the first call: two epochs of 48 examples."""
    if not (root / "model").exists():
        make_model(root / "model")
        make_data(root / "data")
    base: dict[str, Any] = {"model": str(root / "model"), "task": "sst2", "data": str(root / "data"), "device": "cpu"}
    base |= {"examples": 48, "epochs": 2, "batch": 8, "learning_rate": 1e-2, "max_length": 24}
    return Settings(**(base | changes))


def outcome(record: dict[str, Any]) -> str:
    """What two runs of the same settings must share to the last digit: everything but times."""
    epochs = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]]
    return json.dumps([record["settings"], record["digests"], record["trained"], epochs])
