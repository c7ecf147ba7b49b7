"""`minibeft bench memory`: the tensors that a training step keeps for its backward pass, for several ways to fine-tune.

Counted where autograd keeps them, each storage once, by the kind of module that keeps it; parameters are no
activations and are left out. All sequences are equally long, so that no difference comes from padding.

An input of a linear map is kept only where its weight trains. So bias-only training keeps, per token and whole layer,
what attention (Q, K and V), the activation and the norms need: 3C + I + 2C numbers, and the masks of dropout.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.benchmarks.peers import from_pretrained, require_peers, with_adapter
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.tensors import read_json
from minibeft.checkpoints.tokenizer import require_rows, room
from minibeft.errors import BadInput
from minibeft.families import read_config
from minibeft.models.biases import freeze_except
from minibeft.models.transformer import Transformer
from minibeft.training.train import fresh_head

KINDS = ("attention", "linear", "norm", "MLP", "dropout", "other")
RANK = 8
MOST_TOKENS = 1 << 12
Logits = Callable[[Int[Tensor, "B T"], Int[Tensor, "B T"]], Float[Tensor, "B K"]]


@dataclass(frozen=True)
class Kept:
    """One tensor of a backward pass, and the kind of the innermost module in whose forward it was kept."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def minibeft(model: str, terms: str) -> tuple[Transformer, Logits]:
    """Packed tokens, these terms and the head."""
    with head_to_come():
        ours = load_model(model, task="classification", dtype=torch.float32)
    fresh_head(ours, 2, 0)
    freeze_except(ours, terms, head=True)
    ours.join()
    return ours, ours.classify


def beft(model: str) -> tuple[nn.Module, Logits]:
    """PEFT's BEFT of b_v, and the classifier."""
    import peft

    return adapted(model, peft.BeftConfig(task_type="SEQ_CLS", target_modules=["value"]))


def lora(model: str) -> tuple[nn.Module, Logits]:
    """PEFT's LoRA beside W_q and W_v, and the classifier (arXiv 2106.09685)."""
    import peft

    return adapted(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=RANK))


def adapted(model: str, config: Any) -> tuple[nn.Module, Logits]:
    """transformers' model with this adapter."""
    theirs = with_adapter(from_pretrained(model, "sdpa"), config)
    return theirs, lambda ids, mask: theirs(ids, attention_mask=mask).logits


def full(model: str) -> tuple[nn.Module, Logits]:
    """Every parameter of transformers' model."""
    theirs = from_pretrained(model, "sdpa")
    return theirs, lambda ids, mask: theirs(ids, attention_mask=mask).logits


WAYS: dict[str, Callable[[str], tuple[nn.Module, Logits]]] = {
    "b_v, minibeft": lambda model: minibeft(model, "v"),
    "b_v, peft": beft,
    f"LoRA {RANK}, peft": lora,
    "full, minibeft": lambda model: minibeft(model, "full"),
    "full, transformers": full,
}


def kind_of(module: nn.Module) -> str:
    """One of KINDS. MLP: its activation, which in minibeft is a function that the MLP calls."""
    name = type(module).__name__
    parts = {"attention": "Attention", "linear": "Linear", "norm": "Norm", "dropout": "Dropout"}
    found = next((kind for kind, part in parts.items() if part in name), None)
    return found or ("MLP" if name == "MLP" or "GELU" in name else "other")


@contextmanager
def modules_entered(model: nn.Module) -> Iterator[list[str]]:
    """The kinds of the modules whose forward is under way, the innermost last. The first entry is for what is kept
    outside of every module's forward: minibeft's packed attention."""
    stack = ["attention"]
    hooks = []
    for module in model.modules():
        kind = kind_of(module)
        hooks.append(module.register_forward_pre_hook(lambda *_, kind=kind: stack.append(kind)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def keeps(model: nn.Module, forward: Callable[[], Tensor]) -> list[Kept]:
    """What autograd keeps of this forward pass."""
    seen = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    found: list[Kept] = []
    alive: list[Tensor] = []  # else a later tensor may get the memory of an earlier one, and be taken for it

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)
            kind = str(tensor.dtype).removeprefix("torch.")
            found.append(Kept(stack[-1], tuple(tensor.shape), kind, storage.nbytes()))
        return tensor

    with (
        modules_entered(model) as stack,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        alive.append(forward())
    return found


def measure(model: str, batch: int, length: int) -> dict[str, Any]:
    """The record: for each way the trainable parameters, and bytes kept by kind and by shape."""
    require_peers()
    if batch * length > MOST_TOKENS:
        raise BadInput(f"--batch {batch} --length {length}: are more than {MOST_TOKENS} tokens, which may not fit here")
    ids = torch.arange(batch * length).view(batch, length) % 1000 + 1
    file = find(model) / "config.json"
    config = read_config(read_json(file), None, str(file))
    require_rows(config, ids)
    if length > (room(config) or length):
        raise BadInput(f"--length {length}: this model has positions for {room(config)} tokens")
    rows = []
    for name, make in WAYS.items():
        module, logits = make(model)
        module.train()
        found = keeps(module, lambda logits=logits: logits(ids, torch.ones_like(ids)))
        kinds: dict[str, int] = dict.fromkeys(KINDS, 0)
        tensors = defaultdict(int)
        for one in found:
            kinds[one.kind] += one.bytes
            tensors[one.kind, one.shape, one.dtype, one.bytes] += 1
        fields = ("kind", "shape", "dtype", "bytes")
        rows.append(
            {
                "way": name,
                "trainable": sum(value.numel() for value in module.parameters() if value.requires_grad),
                "bytes": sum(kinds.values()),
                "by_kind": kinds,
                "tensors": [dict(zip(fields, key, strict=True)) | {"number": n} for key, n in tensors.items()],
            }
        )
    return {"model": model, "batch": batch, "tokens": length, "rows": rows}
