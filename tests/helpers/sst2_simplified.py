"""A real classifier, simplified: all-MiniLM-L6-v2 fine-tuned on SST-2, merged, simplified, run in transformers.

MINIBEFT_DATA=DIR python tests/sst2_simplified.py records/simplify.json
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from minibeft.show.record import provenance
from minibeft.surgery.merge import merge
from minibeft.surgery.simplify import simplify
from minibeft.training.runs import finetune
from minibeft.training.settings import Settings
from minibeft.training.tasks import find_data, find_task, read_split


def make_classifier(data: str, folder: Path, **settings: Any) -> Path:
    """minilm with b_v and head trained on SST-2, written as a transformers checkpoint."""
    run = Settings("minilm", "sst2", data, terms="v", device="cpu", **settings)
    finetune(run, folder / "run", progress=lambda _: None)
    merge(folder / "run" / "adapter", "minilm", folder / "classifier")
    return folder / "classifier"


@torch.inference_mode()
def logits_in_transformers(folder: Path, sentences: list[str]) -> torch.Tensor:
    """The classifier's logits by transformers' own model and tokenizer, in batches of 64 of about one length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    logits = torch.empty(len(sentences), 2)
    for places in (order[i : i + 64] for i in range(0, len(order), 64)):
        batch = tokenizer([sentences[i] for i in places], padding=True, truncation=True, return_tensors="pt")
        logits[places] = model(**batch).logits
    return logits


def measure(data: str, folder: Path, most: int | None = None, **settings: Any) -> dict[str, Any]:
    """Train, merge, simplify, and classify the SST-2 dev set before and after, or so many of it."""
    before = make_classifier(data, folder, **settings)
    done = simplify(before, folder / "simplified")
    task = find_task("sst2")
    dev = read_split(task, find_data(task, data), "validation")
    sentences, labels = [text for (text,) in dev.texts[:most]], torch.tensor(dev.labels[:most])
    old, new = (logits_in_transformers(f, sentences) for f in (before, folder / "simplified"))
    margin = (old[:, 0] - old[:, 1]).abs()
    return {
        "what": "all-MiniLM-L6-v2, b_v and head trained on SST-2, merged into a BertForSequenceClassification; dev set "
        "classified in transformers before and after simplify",
        "training": settings,
        "sentences": len(sentences),
        "same_predictions": int((old.argmax(1) == new.argmax(1)).sum()),
        "accuracy_before": (old.argmax(1) == labels).double().mean().item(),
        "accuracy_after": (new.argmax(1) == labels).double().mean().item(),
        "largest_logit_difference": (old - new).abs().max().item(),
        "smallest_margin_before": margin.min().item(),
        "simplify": done.as_json(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(os.environ["MINIBEFT_DATA"], Path(temporary), seed=0, learning_rate=4e-3, epochs=10)
    record = json.dumps(provenance() | found, indent=2, ensure_ascii=False) + "\n"
    Path(sys.argv[1]).write_text(record, encoding="utf-8")
    print(record)
