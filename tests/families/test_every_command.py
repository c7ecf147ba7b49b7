"""verify and inspect on a tiny random model of every family that can be loaded."""

from pathlib import Path

import pytest
from families import drawn
from small_decoder import PROMPT_WORDS, SPECIAL, make_tokenizer
from small_run import WORDS
from tiny import reference

from minibeft.checkpoints.load import load_model
from minibeft.families import BODIES, read_config
from minibeft.models.config import Task
from minibeft.surgery.inspect import inspect
from minibeft.verification.verify import verify

VOCABULARY = SPECIAL + PROMPT_WORDS + WORDS
READS = {name: read_config(drawn(name, "hidden", 0), "hidden", "").features for name in BODIES}
TEXTS = [name for name, features in READS.items() if features is None]


def task_of(family: str) -> Task:
    """The head that finetune trains, or hidden states where there is none."""
    heads = BODIES[family].heads
    return "classification" if "classification" in heads else "lm" if "lm" in heads else "hidden"


@pytest.fixture(scope="module", params=BODIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every parameter redrawn, with biases where its format can have them, and a tokenizer."""
    folder = tmp_path_factory.mktemp("every") / request.param
    raw = drawn(request.param, task_of(request.param), 3)
    raw |= {key: True for key in ("attention_bias", "use_bias", "enable_bias", "qkv_bias") if key in raw}
    raw |= {"vocab_size": len(VOCABULARY)} if "vocab_size" in raw else {}
    raw |= {"max_position_embeddings": 40} if "max_position_embeddings" in raw else {}
    reference(raw, 3).save_pretrained(folder)
    make_tokenizer(VOCABULARY).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "texts.txt").write_text("w0 w3 w5\nIt was w4 w3 w9\n")
    return folder


def given(folder: Path) -> Path | None:
    """Two short sentences, or nothing for models that read none."""
    return folder / "texts.txt" if folder.name in TEXTS else None


def test_verify(folder: Path):
    report = verify(folder, inputs=given(folder))
    assert report.ok, [check for check in report.checks if check.verdict == "VIOLATED"]
    assert {"V1", "V3", "Q3"} <= {check.theorem for check in report.checks}


def test_inspect(folder: Path):
    """A row for each of q, k, v that has a bias, fused or not."""
    config = load_model(folder).config
    rows = inspect(folder).biases
    assert {row.term for row in rows} & {*"qkv"} == config.biases & {*"qkv"}
    assert all(len(row.norms) == config.layers and min(row.norms) > 0 for row in rows if row.term in ("q", "k", "v"))
