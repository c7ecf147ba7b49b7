"""A model family as data: how config.json tells of its attention, and, where models/ can run it, of all the rest."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minibeft.errors import BadInput
from minibeft.families.attention import EXACT, Keys, Site, Switch
from minibeft.families.reading import ATTENTION, BODY, Reader, Unclear
from minibeft.models.config import ModelConfig, Task
from minibeft.models.layers import ACTIVATIONS, Learned
from minibeft.theory.variants import AttentionSpec

# For every family, unless its own `only` says otherwise.
ONLY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
}
# Ends of the class names of other heads, whose backbone's hidden states are computed.
LEFT_OUT = (
    "ForTokenClassification ForQuestionAnswering ForPreTraining ForNextSentencePrediction ForMultipleChoice "
    "ForSequenceClassification ForMaskedImageModeling ForConditionalGeneration ForAudioClassification Model"
).split()
MOST_LABELS = 2**16
# A decoder's classifier, of texts or of tokens.
SCORE = {"head.out": "score"}
# The heads where transformers has no classifier of tokens.
TEXTS: dict[Task, dict[str, str]] = {"classification": SCORE, "lm": {"head": "lm_head"}}
# How a key is read, by the field of ModelConfig that it fills; any other must have the type of its default.
READ: dict[str, Callable[[Reader, str, Any], Any]] = {
    "vocab": Reader.count,
    "inner": Reader.count,
    "token_types": Reader.natural,
    "dropout": Reader.probability,
    "embedding_dropout": Reader.probability,
    "classifier_dropout": Reader.probability,
    "eps": Reader.small,
    "embedding_width": Reader.count,
    "classifier_width": Reader.count,
    "logit_cap": Reader.cap,
    "activation": lambda c, key, default: c.choice(key, default, ACTIVATIONS),
}


@dataclass(frozen=True)
class Vocabulary:
    """How a family's tokenizer is built from its vocabulary.

    made_by  transformers' class, which takes the vocabulary of tokenizer.json and makes the rest itself
    pieces   "words": vocab.txt, BERT's; "bytes": vocab.json and merges.txt, GPT-2's
    tokens   role → the special token, where the files name no other
    frame    what special tokens stand around a text: both ends, its start, or none
    """

    made_by: str
    pieces: Literal["words", "bytes"]
    tokens: Mapping[str, str]
    frame: Literal["ends", "start", "none"] = "ends"


@dataclass(frozen=True)
class Body:
    """One model family as Hugging Face lays it out.

    stem, base, lm, classes  of transformers' class names: BertModel, BertForMaskedLM, BertForSequenceClassification
    prefix         what stands before the backbone's tensor names when the checkpoint also has a head
    inside         what stands there when the backbone is a part of another one
    part           the name of the kind of attention that the backbone has, where the model has others too
    names          our module (or parameter) → theirs, in the backbone; {i} is the layer
    heads          the same for each task's head, without prefix
    keys           their configuration key → our ModelConfig field and the default
    fixed          ModelConfig fields that the family decides
    mlp_bias       whether the MLP has biases, or the switch that says so
    only           their key → the values for which our forward pass is theirs
    rest           the remaining fields, from the configuration and what was read so far
    spare          patterns of tensors that a checkpoint may hold and the forward pass does not read
    copies         a tied tensor's other name → our name of the one that is read
    fused          modules that hold q, k and v in one, by the end of their names → whether head by head
    transposed     modules whose matrices are stored as (in, out), by the end of their names
    vocabulary     None: only tokenizer.json is read
    trains_longer  the paper trains its base size for as many epochs as BERT-large
    """

    stem: str
    prefix: str
    names: Mapping[str, str]
    keys: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    heads: Mapping[Task, Mapping[str, str]] = field(default_factory=lambda: {**TEXTS, "tokens": SCORE})
    base: str = "Model"
    lm: str = "ForCausalLM"
    classes: str = "ForSequenceClassification"
    inside: str | None = None
    part: str | None = None
    mlp_bias: bool | Switch = True
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rest: Callable[[Reader, dict[str, Any]], dict[str, Any]] = lambda _c, _values: {}
    spare: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "embed.tokens.weight"})
    fused: Mapping[str, bool] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    trains_longer: bool = False

    @property
    def architectures(self) -> dict[str, Task]:
        """Class name → task."""
        ends = {
            "hidden": self.base,
            "classification": re.sub("(Model|Encoder)$", "", self.base) + self.classes,
            "tokens": "ForTokenClassification",
            "lm": self.lm,
        }
        return {self.stem + ends[task]: task for task in ("hidden", *self.heads)}

    @property
    def decodes(self) -> bool:
        """Whether it is a decoder."""
        return "lm" in self.heads and self.lm != "ForMaskedLM"

    def lead(self, names: Collection[str]) -> str:
        """What stands before the backbone's names in a checkpoint with these tensors."""
        leads = [lead for lead in (self.prefix, self.inside) if lead is not None]
        return next((lead for lead in leads if any(name.startswith(lead) for name in names)), "")

    def leaves_out(self, names: Any) -> bool:
        """Whether `architectures` names a head that stands on the hidden states and is not computed here."""
        named = names[0] if isinstance(names, list) and names else None
        ours = {self.stem + end for end in LEFT_OUT} - self.architectures.keys()
        return isinstance(named, str) and named in ours

    def their_name(self, ours: str, task: Task, prefix: str) -> str:
        """blocks.3.attention.q.weight → bert.encoder.layer.3.attention.self.query.weight."""
        found = re.match(r"blocks\.(\d+)\.", ours)
        template = f"blocks.{{i}}.{ours[found.end() :]}" if found else ours
        module, _, leaf = template.rpartition(".")
        for table, lead in ((self.heads.get(task, {}), ""), (self.names, prefix)):
            theirs = table.get(template) or (f"{table[module]}.{leaf}" if module in table else None)
            if theirs is not None:
                return lead + (theirs.replace("{i}", found[1]) if found else theirs)
        raise KeyError(f"no name for {ours}")

    def is_spare(self, theirs: str) -> bool:
        """Whether a tensor of the checkpoint may go unread: a buffer, a tied copy, or another task's head."""
        heads = {name for table in self.heads.values() for name in table.values()}
        known = any(theirs == name or theirs.rpartition(".")[0] == name for name in heads)
        return known or theirs in self.copies or any(re.search(pattern, theirs) for pattern in self.spare)


@dataclass(frozen=True)
class Family:
    """One model_type. body None: certify judges its attention, and load_model does not run it."""

    model_type: str
    attention: Keys
    body: Body | None = None

    def sites(self, raw: Mapping[str, Any], where: str) -> list[Site]:
        """The kinds of attention of a configuration; Unclear when it is not understood."""
        c = Reader(raw, where)
        found = self.attention.read(c)
        c.finish(ATTENTION)
        return found

    def config(self, raw: Mapping[str, Any], task: Task | None, where: str) -> ModelConfig:
        """config.json as ModelConfig, or BadInput that names the file and the key; certify reads the same attention."""
        c, body = Reader(raw, where), self.body
        assert body is not None
        c.only({**ONLY, **body.only})
        sites = [site for site in self.attention.read(c) if body.part in (None, site.name)]
        layers, mlp = computable(c, sites), body.mlp_bias
        values = dict(body.fixed) | {"attention": layers, "width": layers[0].width}
        values |= {
            ours: READ.get(ours, Reader.get)(c, theirs, default) for theirs, (ours, default) in body.keys.items()
        }
        values |= body.rest(c, values)
        if values.get("pad") is not None and not 0 <= values["pad"] < values["vocab"]:
            raise c.refuse("pad_token_id", f"must be null or one of the {values['vocab']} tokens")
        values["tied"] = c.get("tie_word_embeddings", body.fixed["tied"])
        values["labels"] = c.count("num_labels", len(c.get("id2label", {})) or 2, MOST_LABELS)
        values["biases"] = layers[0].biases | (mlp.read(c) if isinstance(mlp, Switch) else {"mlp"} if mlp else set())
        del values["width"]
        c.finish(ATTENTION, BODY)
        task = task or named_task(body, raw, where)
        if task != "hidden" and task not in body.heads:
            raise BadInput(
                f"{where}: {self.model_type} has no {task} head here, only {', '.join(body.heads)} and hidden"
            )
        return ModelConfig(
            family=self.model_type,
            task=task,
            decodes=body.decodes,
            source=dict(raw),
            **values,
        )


def named_task(body: Body, raw: Mapping[str, Any], where: str) -> Task:
    """The task that `architectures` names; hidden states when it names none."""
    names = raw.get("architectures")
    if names is None or names == []:
        return "hidden"
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise BadInput(f"{where}: architectures = {names!r} must be a list of class names")
    named = names[0]
    if body.leaves_out(names):
        return "hidden"
    if named not in body.architectures:
        raise BadInput(f"{where}: architectures names {named}, a head unknown here; task='hidden' leaves it out")
    return body.architectures[named]


# The fields of AttentionSpec that models/ computes.
COMPUTED = ("window", "scale", "rotary", "position_bias", "qk_norm", "softcap")


def computable(c: Reader, sites: list[Site]) -> tuple[AttentionSpec, ...]:
    """The attention of each layer; refused where models/ does not compute it."""
    for site in sites:
        spec = site.spec
        plain = AttentionSpec(
            *(spec.heads, spec.kv_heads, spec.head_size, spec.width),
            biases=spec.biases,
            causal=spec.causal,
            dropout=spec.dropout,
            **{name: getattr(spec, name) for name in COMPUTED},
        )
        if not site.exact:
            raise c.refuse(
                "rope_parameters|rope_scaling", f"is not handled: only the rope types {', '.join(EXACT)} are"
            )
        if spec != plain or spec.qk_norm == "layer" or spec.position_bias == "learned":
            raise Unclear(c.where, f"asks for an attention that only certify knows: {spec}")
    layers = sorted((i, site.spec) for site in sites for i in site.layers)
    return tuple(spec for _, spec in layers)


def learned(c: Reader, rows: int, start: int = 0, counted: str = "all") -> Learned:
    """Learned positions; at least one must be left for a token."""
    if not 0 <= start < rows:
        raise Unclear(
            c.where,
            f"max_position_embeddings and pad_token_id leave no position: the first token would read row {start} of "
            f"{rows}",
        )
    return Learned(rows, start, counted)
