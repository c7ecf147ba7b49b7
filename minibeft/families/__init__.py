"""The one table of model families, as data: certify reads their attention, load_model their bodies as well."""

from collections.abc import Mapping
from typing import Any

from minibeft.errors import BadInput
from minibeft.families import bert, certified, decoders, encoder_decoder, gpt, images, llama
from minibeft.families.family import Body, Family
from minibeft.models.config import ModelConfig, Task

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(*certified.FAMILIES, *decoders.FAMILIES),
        *(*bert.FAMILIES, *gpt.FAMILIES, *llama.FAMILIES, *images.FAMILIES, *encoder_decoder.FAMILIES),
    )
}
# Of those that models/ can run.
BODIES: dict[str, Body] = {name: family.body for name, family in FAMILIES.items() if family.body is not None}


def named_family(raw: Mapping[str, Any], where: str) -> str:
    """The model_type, of a family that can be run."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in BODIES:
        raise BadInput(f"{where}: model_type = {kind!r} is not one of {', '.join(BODIES)}")
    return kind


def read_config(raw: Mapping[str, Any], task: Task | None, where: str) -> ModelConfig:
    """config.json as ModelConfig, or BadInput that names the file and the key. task None: what `architectures` says."""
    return FAMILIES[named_family(raw, where)].config(raw, task, where)


__all__ = ["BODIES", "FAMILIES", "Body", "Family", "named_family", "read_config"]
