"""Prompted classification: the official templates, the score of each label word, one row or one for each class."""

import pytest
import torch
from small_decoder import decoder_settings
from tiny import redraw, typical
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tolerance import assert_agrees, samples
from torch import Tensor

from minibeft.checkpoints.load import build_model, load_model
from minibeft.checkpoints.tokenizer import load_tokenizer
from minibeft.errors import BadInput
from minibeft.training.prompts import PROMPTS, Prompted, encode_prompts, find_prompt, is_prompted
from minibeft.training.tasks import OWN, TASKS, Split, find_task

CPU = torch.device("cpu")
SST2 = find_task("sst2")
SENTENCES = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]


def bytes_tokenizer() -> Tokenizer:
    """A token a byte, <s> first: every label word has several tokens, of different number."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    return tokenizer


def split_of(*sentences: str) -> Split:
    return Split([(sentence,) for sentence in sentences], [float(i % 2) for i in range(len(sentences))])


def everything(data: Prompted):
    return data.gather(torch.arange(len(data)), None, CPU)


def by_hand(model, tokenizer: Tokenizer, texts: list[str], words: tuple[str, ...]) -> Tensor:
    """One sequence at a time, as the official code evaluates: the mean log-probability of the word's tokens."""
    rows = []
    for text in texts:
        alone = len(tokenizer.encode(text).ids)
        for word in words:
            ids = torch.tensor([tokenizer.encode(text + word).ids])
            found = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            rows.append(found[alone - 1 :].mean())
    return torch.stack(rows).view(len(texts), len(words))


def test_templates_are_the_official_ones():
    """Written out from MeZO's templates.py."""
    texts = {
        "sst2": ("a fine film ",),
        "rte": ("It rains.", "It is wet."),
        "cb": ("it rained.", "it was wet"),
        "boolq": ("is it wet", "It rained."),
    }
    asked = {name: prompt.ask(texts[name]) for name, prompt in PROMPTS.items()}
    assert asked == {
        "sst2": "a fine film It was",
        "rte": 'It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n',
        "cb": 'Suppose it rained. Can we infer that "it was wet"? Yes, No, or Maybe?\n',
        "boolq": "It rained. Is it wet?\n",
    }
    assert PROMPTS["boolq"].ask(("is it wet?", "It rained.")) == asked["boolq"]


def test_words_stand_in_the_order_of_the_labels():
    words = {
        "negative": " terrible",
        "positive": " great",
        "entailment": "Yes",
        "not_entailment": "No",
        "contradiction": "No",
        "neutral": "Maybe",
        "False": "No",
        "True": "Yes",
    }
    for name, prompt in PROMPTS.items():
        expected = tuple(words[label] for label in TASKS[name].labels)
        # CB's labels are entailment, contradiction, neutral: Yes, No, Maybe.
        assert prompt.words == expected
        assert len(TASKS[name].columns) == (1 if name == "sst2" else 2)


def test_who_is_prompted():
    families = ("bert", "roberta", "opt", "llama", "qwen2", "gptj")
    assert [family for family in families if is_prompted("sst2", family)] == ["opt", "llama", "qwen2", "gptj"]
    assert not any(is_prompted(OWN, family) for family in families)


@pytest.mark.parametrize("family", ["opt", "llama", "gptj"])
def test_words_of_one_token_are_read_off_one_row(tmp_path, family):
    settings = decoder_settings(tmp_path, family)
    tokenizer = load_tokenizer(settings.model)
    data = encode_prompts(tokenizer, SST2, split_of(*SENTENCES), max_length=32)
    assert data.ids.shape[:2] == (3, 1)
    assert data.targets.shape == (3, 2, 1)
    texts = [f"{sentence} It was" for sentence in SENTENCES]
    compare(lambda dtype: load_model(settings.model, dtype=dtype), tokenizer, data, texts)


@pytest.mark.parametrize("family", ["opt", "llama", "gptj"])
def test_words_of_several_tokens_count_by_their_mean(family):
    tokenizer = bytes_tokenizer()
    data = encode_prompts(tokenizer, SST2, split_of("ab", "c", "déf"), max_length=40)
    assert data.ids.shape[:2] == (3, 2)
    assert data.real.sum(-1).tolist() == [[len(" terrible"), len(" great")]] * 3

    def model(dtype: torch.dtype):
        made = build_model(typical(family, "lm", vocab_size=257)).to(dtype)
        redraw(made, seed=1)
        return made.eval()

    compare(model, tokenizer, data, ["ab It was", "c It was", "déf It was"])


def compare(model, tokenizer: Tokenizer, data: Prompted, texts: list[str]) -> None:
    """The batch's scores err from those of single sequences in float64 as rounding does; a sum instead of the mean, or
    the words exchanged, would err more."""
    words = PROMPTS["sst2"].words
    with torch.no_grad():
        rounding = samples(lambda m: by_hand(m, tokenizer, texts, words), model(torch.float32))
        gold = by_hand(model(torch.float32).double(), tokenizer, texts, words)
        found = everything(data).scores(model(torch.float32))
        wider = data.gather(torch.arange(len(data)), 45, CPU)
        assert wider.input_ids.shape[-1] == 45 or data.ids.shape[-1] > 38
        if model(torch.float32).config.family != "opt":  # whose positions end at 40
            assert_agrees(wider.scores(model(torch.float32)), rounding, gold, what="padded scores")
    assert_agrees(found, rounding, gold, what="scores")
    with pytest.raises(AssertionError, match="scores"):
        assert_agrees(found.flip(1), rounding, gold, what="scores")


def test_long_prompts_lose_their_beginning_after_the_first_token():
    tokenizer = bytes_tokenizer()
    whole = encode_prompts(tokenizer, SST2, split_of("abcdefghij"), max_length=100)
    short = encode_prompts(tokenizer, SST2, split_of("abcdefghij"), max_length=22)
    text = [tokenizer.decode(row.tolist()).replace(" ", "").replace("Ġ", " ") for row in short.ids[0]]
    assert text == ["fghij It was terribl", "cdefghij It was grea"]
    assert short.ids[0, :, 0].tolist() == [0, 0]
    assert short.sizes.tolist() == [[21, 21]]
    assert torch.equal(short.targets, whole.targets)


def test_a_length_without_room_for_the_prompt_is_refused():
    with pytest.raises(BadInput, match="--max-length 10: leaves no room for a prompt before ' terrible'"):
        encode_prompts(bytes_tokenizer(), SST2, split_of("abc"), max_length=10)


def test_a_tokenizer_without_tokens_for_the_word_is_refused():
    tokenizer = bytes_tokenizer()
    tokenizer.normalizer = normalizers.Replace(" terrible", "")  # type: ignore[assignment]
    with pytest.raises(BadInput, match="has no token of its own for ' terrible' after the prompt"):
        encode_prompts(tokenizer, SST2, split_of("w1"), max_length=40)


def test_a_special_token_at_the_end_is_left_out():
    plain, ending = bytes_tokenizer(), bytes_tokenizer()
    ending.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    first, second = (encode_prompts(t, SST2, split_of("ab"), max_length=40) for t in (plain, ending))
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("task", ["stsb", "mrpc", "cola", "wic"])
def test_a_task_without_a_prompt_is_refused(task):
    with pytest.raises(BadInput, match=f"--task {task}: has no prompt.*choose among sst2, rte, cb, boolq"):
        find_prompt(find_task(task))
