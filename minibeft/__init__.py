"""What the attention biases b_q, b_k and b_v of a transformer do: proved, tested, accelerated and measured.

    model = minibeft.load_model("minilm")
    tokenizer = minibeft.load_tokenizer("minilm")

Names are loaded when they are first used, so that `import minibeft` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibeft.attention import attend
    from minibeft.checkpoint import build_model, load_model, save_model
    from minibeft.errors import BadInput
    from minibeft.greedy import generate
    from minibeft.tokenizer import encode, load_tokenizer

__all__ = ["BadInput", "attend", "build_model", "encode", "generate", "load_model", "load_tokenizer", "save_model"]

HOMES = {
    "BadInput": "errors",
    "attend": "attention",
    "build_model": "checkpoint",
    "encode": "tokenizer",
    "generate": "greedy",
    "load_model": "checkpoint",
    "load_tokenizer": "tokenizer",
    "save_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'minibeft' has no attribute {name!r}")
    return getattr(import_module(f"minibeft.{HOMES[name]}"), name)
