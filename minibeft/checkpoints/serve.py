"""Many models in one: the adapters of one frozen classifier side by side, one for each sequence of a batch.

    model = minibeft.load_model("minilm", task="classification")
    minibeft.load_adapters(model, ["first", "second"])
    model.classify(ids, mask, adapters=torch.tensor([0, 1, 1, 0]))

An adapter is a row in a table of each bias, and a head. Where V2 holds its b_v is kept as W_o b_v, one vector per layer
that is added after attention: a fixed shift of the residual stream.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from minibeft.checkpoints.adapters import Adapter, changed, load_adapter, names_for
from minibeft.errors import BadInput
from minibeft.models.heads import ClassificationHead
from minibeft.models.packed.sets import Served
from minibeft.models.transformer import Attention, Transformer
from minibeft.theory.mechanisms import broken


def load_adapters(model: Transformer, folders: Sequence[str | Path]) -> Transformer:
    """Put these adapters beside each other in the model, in place; number i is that of folders[i].

    BadInput for a model that is no encoder's classifier or on the backend "plain", for an adapter that changes more
    than biases and the head, for one without a classifier where the model has none, and for heads of different numbers
    of classes.
    """
    if model.backend == "plain" or not isinstance(model.head, ClassificationHead) or model.head.out is None:
        raise BadInput("adapters side by side need an encoder's classifier: load_model(…, task='classification')")
    adapters = [load_adapter(folder) for folder in folders]
    found = [read_values(model, adapter, folder) for adapter, folder in zip(adapters, folders, strict=True)]
    for folder, values in zip(folders, found, strict=True):
        if lacking := sorted(name for name in model.fresh - values.keys() if name.startswith("head.out.")):
            raise BadInput(f"{folder}: has no classifier, nor has the model ({lacking[0]}); serve it with one that has")
    fold_values(model, found)
    head = {name: head_tensor(name, value, found) for name, value in model.head.named_parameters()}
    names = dict.fromkeys(name for values in found for name in values if not name.startswith("head."))
    tables = {name: torch.stack([row(model, name, values) for values in found]) for name in names}
    labels = [names_for(adapter, head["out.bias"].shape[-1]) for adapter in adapters]
    model.served = Served(tables, head, labels)
    return model


def read_values(model: Transformer, adapter: Adapter, folder: str | Path) -> dict[str, Tensor]:
    """An adapter's biases and its head, by our names. A norm that it holds whole must be the model's own
    but for the bias."""
    values = changed(model, adapter)
    for name in [name for name in values if not name.startswith("head.") and not name.endswith(".bias")]:
        mine = model.get_parameter(name).detach()
        if not torch.equal(values.pop(name).to(mine), mine):
            raise BadInput(f"{folder}: changes {name}, more than biases and the head; merge it into its model")
    return values


def fold_values(model: Transformer, found: Sequence[dict[str, Tensor]]) -> None:
    """Fold the adapters' changes of b_v into the attention's output bias where V2 holds; in place, in float64."""
    for number in range(len(model.blocks)):
        attention, b_v, b_o = (f"blocks.{number}.attention{part}" for part in ("", ".v.bias", ".o.bias"))
        having = [values for values in found if b_v in values]
        if not having or broken(model.config.attention[number], "v"):
            continue
        module = model.get_submodule(attention)
        assert isinstance(module, Attention)
        shifts = torch.stack([values.pop(b_v).double() for values in having]) - own(module.v)
        spread = shifts.unflatten(1, (module.kv_heads, -1)).repeat_interleave(module.heads // module.kv_heads, 1)
        for values, moved in zip(having, spread.flatten(1) @ whole(module.o.weight).double().T, strict=True):
            values[b_o] = values.get(b_o, own(module.o)).double() + moved


def whole(weight: Tensor) -> Tensor:
    """The whole weight, also where each process holds only a share of it (training/sharded.py)."""
    gather = getattr(weight, "full_tensor", None)
    return weight.detach() if gather is None else gather().detach()


def own(module: nn.Linear | nn.LayerNorm) -> Tensor:
    """The module's bias in float64; zero where it has none."""
    if module.bias is None:
        return torch.zeros(len(module.weight), dtype=torch.float64, device=module.weight.device)
    return module.bias.detach().double()


def row(model: Transformer, name: str, values: dict[str, Tensor]) -> Tensor:
    """An adapter's bias of this name, or the model's own where it leaves that as it is."""
    module = model.get_submodule(name.removesuffix(".bias"))
    assert isinstance(module, nn.Linear | nn.LayerNorm)
    found = values[name] if name in values else own(module)
    return found.to(module.weight.device, torch.promote_types(module.weight.dtype, torch.float32))


def head_tensor(name: str, own: Tensor, found: Sequence[dict[str, Tensor]]) -> Tensor:
    """A tensor of the head: one row per adapter, or the model's own where no adapter replaces it."""
    given = [values.get(f"head.{name}", own.detach()).to(own) for values in found]
    if len({len(value) for value in given}) > 1:
        raise BadInput("the adapters have heads of different numbers of classes; serve those of one number together")
    return torch.stack(given) if any(f"head.{name}" in values for values in found) else own.detach()
