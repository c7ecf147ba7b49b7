"""The files beside an adapter that others need to serve it: its tokenizer or image reader, and a model card."""

import json
from pathlib import Path
from typing import Any

from minibeft.checkpoints.door import checked
from minibeft.checkpoints.find import is_hub_id
from minibeft.errors import one_line
from minibeft.training.tasks import OWN

READERS = (
    "preprocessor_config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt "
    "vocab.json merges.txt"
).split()


def beside_adapter(
    source: Path, base: str, task: str, classes: tuple[str, ...], record: dict[str, Any]
) -> dict[str, bytes]:
    """File → content.

    source  the base model's folder; base: the name by which others load it
    record  the run's record, with its epochs
    """
    found = {name: checked(source / name).read_bytes() for name in READERS if (source / name).is_file()}
    return found | {"README.md": card(base, task, classes, record).encode()}


def card(base: str, task: str, classes: tuple[str, ...], record: dict[str, Any]) -> str:
    """README.md, as the hub reads it. Names come from files and stand in code, where they are no markup."""
    settings, last = record["settings"], record["epochs"][-1]
    scores = [
        f"| {split} | {metric} | {value:.4f} |"
        for split, metrics in last.items()
        if isinstance(metrics, dict)
        for metric, value in metrics.items()
    ]
    named = f"base_model: {json.dumps(base)}\n" if is_hub_id(base) else ""
    model_class = "AutoPeftModelForSequenceClassification" if classes else "AutoPeftModelForCausalLM"
    texts = settings["task"] != OWN or settings["text_column"] is not None
    more = f", num_labels={len(classes)}, ignore_mismatched_sizes=True" if classes else ""
    lines = [
        f"---\n{named}library_name: peft\ntags: [beft, bias-only]\n---\n",
        f"# Bias adapter of {code(base)} for {code(task)}\n",
        f"Trained: the bias terms {code(settings['terms'])}{' and the classification head' * bool(classes)}, "
        f"{record['trained']['count']:,} parameters in all, on {settings['examples']:,} examples, "
        f"seed {settings['seed']}.\n",
        "| split | metric | last epoch |\n|---|---|---|\n" + "\n".join(scores) + "\n",
        *([f"Classes, in the order of their logits: {', '.join(map(code, classes))}.\n"] if classes else []),
        "## Use\n",
        *(
            [
                f"```python\nfrom peft import {model_class}\n\n"
                f'model = {model_class}.from_pretrained("this folder"{more})\n```\n'
            ]
            * texts
        ),
        "`minibeft merge ADAPTER MODEL OUT` writes a whole checkpoint that needs no PEFT. "
        f"Made with minibeft {record['versions']['minibeft']}.\n",
    ]
    return "\n".join(lines)


def code(text: str) -> str:
    """The text on one line as Markdown code."""
    return f"`{one_line(text).replace('`', ' ')}`"
