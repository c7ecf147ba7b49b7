"""All that needs a CUDA card, one after the other in at most 25 minutes: make gpu-record, with MINIBEFT_DATA set.

Each step ends in a record that names the card. A step whose record is there is not run again, and a table that ran out
of time keeps the runs that it has finished: the same command goes on.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import build_model
from minibeft.checkpoints.save import save_model

MINUTES = 25.0
ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/gpu")
# BERT-base's shapes, drawn at random, with the demo model's vocabulary and tokenizer.
BASE = {"model_type": "bert", "vocab_size": 30522}
PYTHON = [sys.executable, "-P", "-m"]
TABLES = {"biases": 6.0, "regimes": 15.0}


class Step(NamedTuple):
    """A command, for at most so many minutes; what it leaves, and the record that this becomes."""

    words: Sequence[str]
    minutes: float
    made: Path
    record: Path


def steps(card: str) -> list[Step]:
    """The kernels' tests, tiles and bench, fine-tuning against its peers, and the paper's tables over twenty seeds."""
    tiles, kernels, training = (RUNS / f"{name}.json" for name in ("tiles", "kernels", "training"))
    found = [
        Step([*PYTHON, "pytest", "-q", "-n0", "tests/kernels", f"--junitxml={RUNS}/tests.xml"], 5, RUNS / "tests.xml",
             RUNS / "tests-passed.xml"),
        Step([*PYTHON, "minibeft", "bench", "kernels", "--tune", "--json", str(tiles)], 10, tiles,
             Path(f"records/tiles-{card}.json")),
        Step([*PYTHON, "minibeft", "bench", "kernels", "--json", str(kernels)], 10, kernels,
             Path(f"records/bench-kernels-{card}.json")),
        Step([*PYTHON, "minibeft", "bench", "train", str(RUNS / "base"), "--json", str(training)], 5, training,
             Path(f"records/bench-train-{card}.json")),
    ]  # fmt: skip
    for table, minutes in TABLES.items():
        words = f"minibeft reproduce {table} --seeds 0-19 --rates none --device cuda --out {RUNS}/tables"
        made = RUNS / "tables" / f"{table}.json"
        found.append(Step([*PYTHON, *words.split()], minutes, made, Path(f"records/reproduce-{table}-{card}.json")))
    return found


def run(todo: Sequence[Step], root: Path, minutes: float) -> list[Path]:
    """Run what has no record yet, while there is time; the records that are still missing."""
    until = time.monotonic() + 60 * minutes
    for step in todo:
        left = min(60 * step.minutes, until - time.monotonic())
        if (root / step.record).exists() or left <= 0:
            continue
        print(f"== {' '.join(step.words[2:])}", flush=True)
        try:
            done = subprocess.run(step.words, cwd=root, timeout=left, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            done = False
        if done:
            shutil.copyfile(root / step.made, root / step.record)
    return [step.record for step in todo if not (root / step.record).exists()]


def main() -> int:
    """Exit status 1 while a record is missing."""
    if not torch.cuda.is_available():
        print("gpu-record: there is no CUDA device here; nothing was run")
        return 0
    if not os.environ.get("MINIBEFT_DATA"):
        print("gpu-record: set MINIBEFT_DATA to the folder that holds sst2/train.tsv and dev.tsv; nothing was run")
        return 2
    base = ROOT / RUNS / "base"
    if not base.exists():
        save_model(build_model(BASE, task="classification"), base)
        for file in find("minilm").glob("tokenizer*"):
            shutil.copyfile(file, base / file.name)
    card = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    missing = run(steps(card), ROOT, MINUTES)
    for record in missing:
        print(f"still missing: {record}; run the same command again")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
