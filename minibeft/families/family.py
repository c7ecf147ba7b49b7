"""What a family is: a table of configuration keys and a table of tensor names, both data; and how they are read.

The configuration is an allowlist. A key is read (`keys`), accepted with certain values only (`only`), or without
influence on the forward pass (`INERT` and `inert`); any other key with a value is refused, because a value that nobody
looked at may change what the model computes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minibeft.errors import BadInput
from minibeft.models.config import ModelConfig, Task
from minibeft.models.layers import ACTIVATIONS, Learned
from minibeft.theory.rotary import Rotary

# Keys of every family that do not change what the model computes in one forward pass.
INERT = frozenset(
    """architectures model_type transformers_version torch_dtype dtype use_cache return_dict return_dict_in_generate
    output_hidden_states output_attentions output_scores torchscript use_bfloat16 tf_legacy_loss problem_type
    finetuning_task task_specific_params tokenizer_class prefix gradient_checkpointing initializer_range
    chunk_size_feed_forward bos_token_id eos_token_id sep_token_id cls_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    remove_invalid_values exponential_decay_length_penalty label2id directionality pretraining_tp
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type""".split()
)
ONLY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "position_embedding_type": ("absolute",),
}


@dataclass(frozen=True)
class Family:
    """One model family as Hugging Face lays it out.

    architectures  class name → task
    prefix         what stands before the backbone's tensor names when the checkpoint also has a head
    names          our module (or parameter) → theirs, in the backbone; {i} is the layer
    heads          the same for each task's head, without prefix
    keys           their configuration key → our ModelConfig field and the default
    only           their key → the values for which our forward pass is theirs
    fixed          ModelConfig fields that the family decides
    derive         the remaining fields, computed from the configuration
    spare          patterns of tensors that a checkpoint may hold and the forward pass does not read
    copies         a tied tensor's other name → our name of the one that is read
    """

    model_type: str
    architectures: Mapping[str, Task]
    prefix: str
    names: Mapping[str, str]
    heads: Mapping[Task, Mapping[str, str]]
    keys: Mapping[str, tuple[str, Any]]
    derive: Callable[["Reader"], dict[str, Any]]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    spare: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    def their_name(self, ours: str, task: Task, prefix: str) -> str:
        """blocks.3.attention.q.weight → bert.encoder.layer.3.attention.self.query.weight."""
        found = re.match(r"blocks\.(\d+)\.", ours)
        template = f"blocks.{{i}}.{ours[found.end() :]}" if found else ours
        module, _, leaf = template.rpartition(".")
        for table, lead in ((self.heads.get(task, {}), ""), (self.names, prefix)):
            theirs = table.get(template) or (f"{table[module]}.{leaf}" if module in table else None)
            if theirs is not None:
                return lead + (theirs.replace("{i}", found[1]) if found else theirs)
        raise KeyError(f"{self.model_type} has no name for {ours}")

    def is_spare(self, theirs: str) -> bool:
        """Whether a tensor of the checkpoint may go unread: a buffer, a tied copy, or another task's head."""
        heads = {name for table in self.heads.values() for name in table.values()}
        known = any(theirs == name or theirs.rpartition(".")[0] == name for name in heads)
        return known or theirs in self.copies or any(re.search(pattern, theirs) for pattern in self.spare)


class Reader:
    """config.json with defaults and types checked; it remembers which keys were read, and so which were not."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where, self.read = raw, where, set[str]()

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, of the default's type; null counts as absent. None is the default of an optional int."""
        self.read.add(key)
        value = self.raw.get(key)
        if value is None:
            return default
        kind = int if default is None else type(default)
        if (kind is float and type(value) is int) or type(value) is kind:
            return value
        raise self.refuse(key, f"must be of type {kind.__name__}")

    def refuse(self, key: str, why: str) -> BadInput:
        """The error for a key whose value cannot be used."""
        return BadInput(f"{self.where}: {key} = {self.raw.get(key)!r} {why}")

    def rope(self, dims: int) -> Rotary:
        """Half-split rotary positions from either spelling: rope_parameters, or rope_theta beside rope_scaling."""
        scaling, parameters = self.get("rope_scaling", {}), self.get("rope_parameters", {})
        key = "rope_parameters" if parameters else "rope_scaling"
        rope = {"rope_theta": self.get("rope_theta", 10_000.0), **scaling, **parameters}
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        base, factor = rope.pop("rope_theta"), rope.pop("factor", None if kind == "linear" else 1.0)
        if kind not in ("default", "linear") or rope.keys() - {"type"}:
            raise self.refuse(key, "is not handled: only the rope types default and linear are")
        for name, value in (("rope_theta", base), ("factor", factor)):
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise self.refuse(key, f"has {name} = {value!r}, which must be a positive number")
        if dims % 2:
            raise BadInput(f"{self.where}: a head of size {dims} cannot be rotated; it must be even")
        return Rotary(dims, float(base), scale=float(factor) if kind == "linear" else 1.0)

    def head_size(self, width: int, heads: int) -> int:
        """C / H, refused when it does not divide."""
        if heads < 1 or width % heads:
            raise BadInput(f"{self.where}: hidden size {width} is not a multiple of {heads} attention heads")
        return width // heads


def read_config(family: Family, raw: Mapping[str, Any], task: Task | None, where: str) -> ModelConfig:
    """config.json as ModelConfig, or BadInput that names the file and the key."""
    reader = Reader(raw, where)
    allowed = {**ONLY, **family.only}
    for key in allowed.keys() & raw.keys():
        if raw[key] is not None and raw[key] not in allowed[key]:
            raise reader.refuse(key, f"is not handled: only {' or '.join(map(repr, allowed[key]))} is")
    values = {ours: reader.get(theirs, default) for theirs, (ours, default) in family.keys.items()}
    values |= {**family.fixed, **family.derive(reader)}
    values["tied"] = reader.get("tie_word_embeddings", family.fixed["tied"])
    values["labels"] = reader.get("num_labels", len(reader.get("id2label", {})) or 2)
    for key in raw.keys() - allowed.keys() - reader.read - INERT - family.inert:
        if raw[key] is not None and not key.startswith("_"):
            raise reader.refuse(key, "is a key that minibeft does not know; remove it if it changes nothing")
    task = task or named_task(family, raw, where)
    if task != "hidden" and task not in family.heads:
        raise BadInput(
            f"{where}: {family.model_type} has no {task} head here, only {', '.join(family.heads)} and hidden"
        )
    c = ModelConfig(family=family.model_type, task=task, source=dict(raw), **values)
    check_values(c, where, {ours: theirs for theirs, (ours, _) in family.keys.items()})
    return c


def named_task(family: Family, raw: Mapping[str, Any], where: str) -> Task:
    """The task that `architectures` names; hidden states when it names none."""
    names = raw.get("architectures")
    if names is None or names == []:
        return "hidden"
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise BadInput(f"{where}: architectures = {names!r} must be a list of class names")
    named = names[0]
    if named not in family.architectures:
        raise BadInput(f"{where}: architectures names {named}, a head unknown here; task='hidden' leaves it out")
    return family.architectures[named]


def check_values(c: ModelConfig, where: str, theirs: Mapping[str, str]) -> None:
    """What no type says: sizes, probabilities, and what only two keys together can violate."""
    for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_size", "inner", "labels"):
        if not 1 <= getattr(c, name) < 2**31:
            raise BadInput(f"{where}: {theirs.get(name, name)} = {getattr(c, name)} must be at least 1")
    for name in ("dropout", "embedding_dropout", "attention_dropout", "classifier_dropout"):
        if not 0 <= getattr(c, name) < 1:
            raise BadInput(f"{where}: {theirs.get(name, name)} = {getattr(c, name)} must be at least 0 and less than 1")
    if not 0 < c.eps < 1:
        raise BadInput(f"{where}: {theirs.get('eps', 'eps')} = {c.eps} must be between 0 and 1")
    if c.heads % c.kv_heads:
        raise BadInput(f"{where}: {c.heads} heads are not a multiple of {c.kv_heads} key-value heads")
    if c.activation not in ACTIVATIONS:
        raise BadInput(f"{where}: activation {c.activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if c.token_types < 0:
        raise BadInput(f"{where}: {theirs.get('token_types')} = {c.token_types} must not be negative")
    if isinstance(c.positions, Learned) and not 0 <= c.positions.start < c.positions.rows:
        raise BadInput(
            f"{where}: max_position_embeddings and pad_token_id leave no position: the first token would read row "
            f"{c.positions.start} of {c.positions.rows}"
        )
