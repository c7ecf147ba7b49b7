"""What the attention biases b_q, b_k and b_v of a transformer do: proved, tested, accelerated and measured.

    model = minibeft.load_model("minilm")
    tokenizer = minibeft.load_tokenizer("minilm")

Names are loaded when they are first used, so that `import minibeft` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibeft.certificate.certify import certify
    from minibeft.checkpoints.load import build_model, load_model
    from minibeft.checkpoints.save import save_model
    from minibeft.checkpoints.serve import load_adapters
    from minibeft.checkpoints.tokenizer import encode, load_tokenizer
    from minibeft.errors import BadInput
    from minibeft.models.generate import generate
    from minibeft.proofs.prove import prove
    from minibeft.surgery.merge import merge
    from minibeft.surgery.simplify import simplify
    from minibeft.theory.attention import attend
    from minibeft.training.runs import finetune
    from minibeft.verification.probe import probe
    from minibeft.verification.verify import verify

    __version__: str

# public name → the module it lives in
HOMES = {
    "BadInput": "errors",
    "attend": "theory.attention",
    "build_model": "checkpoints.load",
    "certify": "certificate.certify",
    "encode": "checkpoints.tokenizer",
    "finetune": "training.runs",
    "generate": "models.generate",
    "load_adapters": "checkpoints.serve",
    "load_model": "checkpoints.load",
    "load_tokenizer": "checkpoints.tokenizer",
    "merge": "surgery.merge",
    "probe": "verification.probe",
    "prove": "proofs.prove",
    "save_model": "checkpoints.save",
    "simplify": "surgery.simplify",
    "verify": "verification.verify",
}

__all__ = [
    "BadInput",
    "attend",
    "build_model",
    "certify",
    "encode",
    "finetune",
    "generate",
    "load_adapters",
    "load_model",
    "load_tokenizer",
    "merge",
    "probe",
    "prove",
    "save_model",
    "simplify",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("minibeft")
    if name not in HOMES:
        raise AttributeError(f"module 'minibeft' has no attribute {name!r}")
    return getattr(import_module(f"minibeft.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
