"""One file a model family: how its config.json and its tensor names map to ours, as data."""

from minibeft.families.bert import BERT
from minibeft.families.family import Family, read_config
from minibeft.families.gptj import GPTJ
from minibeft.families.llama import LLAMA, QWEN2
from minibeft.families.opt import OPT
from minibeft.families.roberta import ROBERTA

FAMILIES: dict[str, Family] = {f.model_type: f for f in (BERT, ROBERTA, OPT, LLAMA, QWEN2, GPTJ)}

__all__ = ["FAMILIES", "Family", "read_config"]
