"""Bias terms: the set that trains is the one asked for, by exact module, at sizes that can be counted by hand."""

import pytest
import torch

from minibeft.checkpoints.load import build_model
from minibeft.errors import BadInput
from minibeft.models.biases import (
    BIAS_TERMS,
    add_bias,
    add_missing,
    count,
    freeze_except,
    read_terms,
    select,
    term_of,
    terms_of,
)
from minibeft.models.config import Task
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws

SMALL = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "roberta": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "opt": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 16},
    "llama": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
    },
    "gptj": {"n_embd": 8, "n_layer": 2, "n_head": 2, "rotary_dim": 2},
}


def small(family: str, task: Task = "hidden", **changes) -> Transformer:
    raw = {"model_type": family, "vocab_size": 11, **SMALL[family], **changes}
    return build_model(raw, task=task)


def bert_base() -> Transformer:
    with torch.device("meta"):
        return build_model({"model_type": "bert", "vocab_size": 28996}, task="classification")


@pytest.mark.parametrize("term", ["q", "k", "v"])
def test_bert_base_trains_11522_parameters(term):
    model = bert_base()
    trained = freeze_except(model, term, head=True)
    assert count(trained) == 12 * 768 + 768 + (768 * 2 + 2) == 11_522
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    biases = {f"blocks.{i}.attention.{term}.bias" for i in range(12)}
    assert set(trained) == biases | {"head.dense.bias", "head.out.weight", "head.out.bias"}


def test_bitfit_at_bert_base_has_its_published_size():
    # 12 · (7 · 768 + 3072) in the layers, 768 after the embeddings; 768 + 1538 in the head
    assert count(freeze_except(bert_base(), "all", head=True)) == 101_376 + 768 + 768 + 1_538


def test_sets():
    model = small("bert", "classification")
    assert select(model, "none") == {}
    assert set(freeze_except(model, "none", head=True)) == {"head.dense.bias", "head.out.weight", "head.out.bias"}
    assert set(freeze_except(model, "full", head=True)) == {n for n, _ in model.named_parameters()}
    assert all(p.requires_grad for p in model.parameters())
    names = set(select(model, "all"))
    assert "embed.norm.bias" in names
    assert not any(name.startswith("head.") or not name.endswith(".bias") for name in names)


def test_roberta_trains_its_whole_classifier():
    trained = set(freeze_except(small("roberta", "classification"), "v", head=True))
    assert {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"} < trained


def test_terms_are_matched_by_module_and_cover_every_bias_of_a_block():
    model = small("bert")
    by_term = terms_of(model)
    assert list(by_term) == list(BIAS_TERMS)
    inside = {n for n, _ in model.named_parameters() if n.startswith("blocks.") and n.endswith(".bias")}
    assert {name for values in by_term.values() for name in values} == inside
    assert term_of("blocks.10.attention.q.bias") == "q"
    # names that a substring or a suffix would have taken
    for name in ("head.attention.q.bias", "blocks.0.cross.attention.q.bias", "blocks.0.attention.q.weight", "q.bias"):
        assert term_of(name) is None


def test_several_terms_keep_the_order_asked_for():
    assert list(select(small("opt"), ("v", "q"))) == [f"blocks.{i}.attention.{t}.bias" for t in "vq" for i in (0, 1)]


@pytest.mark.parametrize("terms", ["", "w", "q,q", "q,all", ["none", "full"], "query", "Q"])
def test_names_that_are_no_terms_are_refused(terms):
    with pytest.raises(BadInput, match="bias term"):
        read_terms(terms)


def test_a_term_that_the_model_lacks_is_refused_by_name():
    model = small("llama", "lm")
    with pytest.raises(BadInput, match=r"llama model has no bias term v \(it has: none\)"):
        select(model, "v")
    with pytest.raises(BadInput, match="has no biases"):
        select(model, "all")
    with pytest.raises(BadInput, match="no bias term ln2"):
        select(small("gptj", "lm"), "ln2")  # one norm feeds both branches
    model.blocks[0].attention.v.bias = torch.nn.Parameter(torch.zeros(4))  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="no bias term v"):
        select(model, "v")  # in one layer only


def test_nothing_to_train_is_refused():
    with pytest.raises(BadInput, match="nothing would train"):
        freeze_except(small("opt", "lm"), "none", head=False)
    with pytest.raises(BadInput, match="no classification head"):
        freeze_except(small("opt", "lm"), "v", head=True)


@pytest.mark.parametrize(("family", "terms"), [("llama", "q,k,v,m1,m2,m3"), ("gptj", "v"), ("gptj", "q,k,v,m1")])
def test_an_added_bias_is_zero_changes_nothing_and_learns(family, terms):
    torch.manual_seed(0)
    model = small(family, "lm")
    ids = Draws(0).integers(0, 11, 2, 5)
    before = model(ids).logits
    added = add_bias(model, terms)
    assert set(added) == set(select(model, terms))
    assert all(not value.any() and value.requires_grad for value in added.values())
    assert torch.equal(model(ids).logits, before)
    freeze_except(model, terms, head=False)
    model(ids).logits.square().sum().backward()
    for name, value in added.items():
        assert value.grad is not None, name
        # Rotary positions leave b_k a gradient (K4); in GPT-J's two rotated dims, too.
        assert value.grad.abs().max() > 0, name


def test_added_sizes_follow_grouped_queries():
    model = small("llama", "lm")
    assert count(add_bias(model, "q")) == 2 * 8
    assert count(add_bias(model, "v")) == 2 * 4


def test_adding_what_cannot_be_added_is_refused_and_changes_nothing():
    model = small("opt", "lm")
    before = set(model.state_dict())
    for terms, why in (("v", "already"), ("all", "linear maps"), ("ln1", "linear maps")):
        with pytest.raises(BadInput, match=why):
            add_bias(model, terms)
    llama = small("llama", "lm")
    add_bias(llama, "v")
    with pytest.raises(BadInput, match="already"):
        add_bias(llama, "q,v")
    assert set(model.state_dict()) == before
    assert "blocks.0.attention.q.bias" not in llama.state_dict()


@pytest.mark.parametrize(
    ("family", "terms", "has"),
    [
        ("llama", "v,ln1", ["v"]),
        ("llama", "all", []),
        ("llama", "none", []),
        ("gptj", "v,m2", ["v", "m2", "m3", "ln1"]),
        ("opt", "v,q", list(BIAS_TERMS)),
    ],
)
def test_what_is_missing_is_added_and_what_is_there_stays(family, terms, has):
    model = small(family, "lm")
    there = dict(model.named_parameters())
    add_missing(model, terms)
    assert list(terms_of(model)) == has
    now = dict(model.named_parameters())
    assert all(now[name] is value for name, value in there.items())
