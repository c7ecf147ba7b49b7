"""Bias terms by name: select, freeze, add and count exactly the ones asked for, module by module, never by substring.

    q, k, v    b_q, b_k, b_v of every layer
    m1, m2, m3 the biases of the attention's output, the MLP's first (up) and second (down) map
    ln1, ln2   the biases of the block's two LayerNorms, in the order in which they are applied
    all        every bias outside the head (BitFit): the eight terms, and those of a gate, the embeddings, the last norm
    none       no bias: the head alone
    full       every parameter

Source: the terms of BEFT (arXiv 2509.15974), Fig. 2, and BitFit (arXiv 2106.10199).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.transformer import Transformer

# term → the module of a block that carries it
BIAS_TERMS: dict[str, str] = {
    "q": "attention.q",
    "k": "attention.k",
    "v": "attention.v",
    "m1": "attention.o",
    "m2": "mlp.up",
    "m3": "mlp.down",
    "ln1": "norm1",
    "ln2": "norm2",
}
SETS = ("all", "none", "full")


def read_terms(terms: str | Iterable[str]) -> tuple[str, ...]:
    """("q", "v") from "q,v" or from a sequence; BadInput for a name that is no term, or a set beside other names."""
    names = tuple(term.strip() for term in (terms.split(",") if isinstance(terms, str) else terms))
    for name in names:
        if name not in BIAS_TERMS and name not in SETS:
            raise BadInput(f"{name!r} is not a bias term; choose among {', '.join((*BIAS_TERMS, *SETS))}")
    if not names or len(set(names)) < len(names) or (len(names) > 1 and set(names) & set(SETS)):
        raise BadInput(f"bias terms {','.join(names)!r}: give each of {', '.join(BIAS_TERMS)} at most once, or one set")
    return names


def term_of(name: str) -> str | None:
    """The term that a parameter's name belongs to: blocks.3.attention.v.bias → "v"; None for any other parameter."""
    found = re.fullmatch(r"blocks\.\d+\.(.+)\.bias", name)
    return next((term for term, module in BIAS_TERMS.items() if found and found[1] == module), None)


def terms_of(model: Transformer) -> dict[str, dict[str, nn.Parameter]]:
    """The terms that the model has, in the catalogue's order, each with its parameters from first to last layer."""
    named = [(term_of(name), name, value) for name, value in model.named_parameters()]
    by_term = {term: {name: value for t, name, value in named if t == term} for term in BIAS_TERMS}
    return {term: values for term, values in by_term.items() if values}


def select(model: Transformer, terms: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of these terms by name; BadInput for a term that the model lacks in some layer."""
    names, parameters = read_terms(terms), dict(model.named_parameters())
    if names == ("none",):
        return {}
    if names == ("full",):
        return parameters
    if names == ("all",):
        chosen = {n: p for n, p in parameters.items() if n.endswith(".bias") and not n.startswith("head.")}
        if not chosen:
            raise BadInput(f"this {model.config.family} model has no biases; add_bias gives it one")
        return chosen
    present = terms_of(model)
    for name in names:
        if len(present.get(name, ())) != len(model.blocks):
            has = ", ".join(present) or "none"
            raise BadInput(
                f"this {model.config.family} model has no bias term {name} (it has: {has}); add_bias adds it"
            )
    return {name: value for term in names for name, value in present[term].items()}


def head_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """What trains beside the biases in a classifier: the pooler's bias and the family's classifier modules.

    BERT's classifier is one linear map; RoBERTa's has a dense layer of its own, which trains whole, as in BitFit.
    """
    if model.config.task != "classification":
        raise BadInput(f"this {model.config.family} model has no classification head to train; load it with one")
    modules = BODIES[model.config.family].heads["classification"]
    head = {f"head.{name}": value for name, value in model.head.named_parameters()} if model.head is not None else {}
    return {n: p for n, p in head.items() if n == "head.dense.bias" or n.rpartition(".")[0] in modules}


def freeze_except(model: Transformer, terms: str | Iterable[str], *, head: bool) -> dict[str, nn.Parameter]:
    """Let these terms train, with `head` the classification head too, and nothing else; returns exactly what trains.

    11,522 parameters for one of q, k, v at BERT-base. BadInput when nothing would train.
    """
    chosen = select(model, terms) | (head_parameters(model) if head else {})
    if not chosen:
        raise BadInput("nothing would train: the terms are 'none' and the head is frozen")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def add_bias(model: Transformer, terms: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """Give every layer of a bias-free model a zero bias for these terms, in place; it computes what it did before.

    Zero because then training starts from the model itself (BEFT's decoder protocol). The configuration is left as it
    is: the checkpoint's format may have no place for the bias, so it travels as an adapter (adapters.py).
    BadInput for a term that is there already, a set, or a norm without a bias; nothing is changed then.
    """
    names = read_terms(terms)
    for name in names:
        if name in SETS or name in ("ln1", "ln2"):
            raise BadInput(f"add_bias adds to linear maps: {name} is not one of q, k, v, m1, m2, m3")
        if name in terms_of(model):
            raise BadInput(f"this {model.config.family} model has the bias term {name} already; train that one")
    modules = {f"blocks.{i}.{BIAS_TERMS[name]}": None for name in names for i in range(len(model.blocks))}
    for path in modules:
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        linear.bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]))
    return select(model, names)


def add_missing(model: Transformer, terms: str | Iterable[str]) -> None:
    """Give the model the terms among these that it can have and lacks; those it has stay what they are (OPT's)."""
    could = [name for name in read_terms(terms) if name not in SETS and not name.startswith("ln")]
    if missing := [name for name in could if name not in terms_of(model)]:
        add_bias(model, missing)


def count(parameters: Mapping[str, Tensor]) -> int:
    """How many entries they have in all."""
    return sum(value.numel() for value in parameters.values())
