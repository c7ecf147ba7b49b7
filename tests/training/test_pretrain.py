"""A small decoder from scratch: what it reads, what it is told, and that a seed decides its bits."""

import json
from pathlib import Path

import pytest
import torch
from small_run import make_data

from minibeft.checkpoints.load import load_model
from minibeft.checkpoints.tokenizer import load_tokenizer
from minibeft.training.pretrain import WAYS, WORDS, Kind, losses_of, pretrain, stream_of, told, train_tokenizer
from minibeft.training.prompts import PROMPTS
from minibeft.training.tasks import find_data, find_task, read_split


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_data(tmp_path_factory.mktemp("pretrain") / "data"))


def texts_of(data: str) -> tuple[list[float], list[tuple[str, str]]]:
    """The labels of SST-2's sentences there, and what follows of each."""
    task = find_task("sst2")
    split = read_split(task, find_data(task, data), "train")
    return split.labels, told(split, seed=0)


def test_the_last_word_says_the_label_and_never_in_the_words_of_the_prompt(data):
    labels, texts = texts_of(data)
    prompt = PROMPTS["sst2"].ask(("",)).strip()
    assert all(word in [words[int(label)] for words in WORDS] for label, (_, word) in zip(labels, texts, strict=True))
    assert not any(start.endswith(prompt) for start, _ in texts)
    assert all(prompt != way for way in WAYS)
    assert len({word for _, word in texts}) == 2 * len(WORDS)


@pytest.mark.parametrize("kind", Kind)
def test_the_stream_marks_what_is_told(data, kind):
    """The marked tokens, put together, are the last words and nothing else."""
    _, texts = texts_of(data)
    tokenizer = train_tokenizer(kind, ["".join(parts) for parts in texts])
    stream = stream_of(tokenizer, kind, texts)
    assert tokenizer.decode(stream.tokens[stream.told].tolist()) == "".join(word for _, word in texts)
    assert tokenizer.decode(stream.tokens[~stream.told].tolist()) == "".join(start for start, _ in texts)


def test_the_two_losses_are_each_of_its_own_tokens(data, tmp_path):
    """Beside a plain loop over the tokens."""
    pretrain(Kind.opt, tmp_path / "opt", data, steps=2, seed=0)
    model = load_model(tmp_path / "opt", task="lm", dtype=torch.float64)
    stream = stream_of(load_tokenizer(tmp_path / "opt"), Kind.opt, texts_of(data)[1])
    places = torch.arange(40).view(2, 20)
    logits = model(stream.tokens[places[:, :-1]]).logits.log_softmax(-1)
    sums = {True: [], False: []}
    for row, following in zip(logits, places[:, 1:], strict=True):
        for scores, place in zip(row, following, strict=True):
            sums[bool(stream.told[place])].append(-scores[stream.tokens[place]])
    expected = [torch.stack(sums[told]).mean() for told in (True, False)]
    assert torch.allclose(
        torch.stack(losses_of(model, stream, places)), torch.stack(expected), rtol=38 * 2**-52, atol=0
    )  # 38 terms


def test_a_seed_decides_the_bits(data, tmp_path):
    def made(name: str, seed: int) -> bytes:
        pretrain(Kind.llama, tmp_path / name, data, steps=2, seed=seed)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert made("a", 0) == made("b", 0) != made("c", 1)
    record = json.loads(Path(tmp_path / "a" / "pretraining.json").read_text())
    assert 0 <= record["zero_shot_accuracy"] <= 1
    assert record["steps"] == 2
