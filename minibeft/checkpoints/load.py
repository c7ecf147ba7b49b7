"""Load a checkpoint strictly. What is on disk is data, never code."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibeft.checkpoints.find import find
from minibeft.checkpoints.layouts import apart
from minibeft.checkpoints.rewrite import RESIDUAL
from minibeft.checkpoints.tensors import Lazy, is_buffer, open_tensors, read_json, read_safetensors, wrapper
from minibeft.errors import BadInput
from minibeft.families import BODIES, Body, read_config
from minibeft.models.config import Backend, ModelConfig, Task
from minibeft.models.layers import RMSNorm
from minibeft.models.transformer import Transformer

log = logging.getLogger("minibeft")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def build_model(raw: Mapping[str, Any], *, task: Task | None = None, backend: Backend = "fused") -> Transformer:
    """A freshly initialised model from a config.json's contents: std 0.02, biases zero, norms one."""
    model = Transformer(read_config(raw, task, "configuration"), backend)
    initialise(model)
    return model


class Shapes(TorchFunctionMode):
    """Within it, initialisation does nothing. On the meta device it would first load torch's compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def describe(config: ModelConfig, backend: Backend = "fused") -> Transformer:
    """The model without values: modules and shapes on the meta device."""
    try:
        with torch.device("meta"), Shapes():
            return Transformer(config, backend)
    except (RuntimeError, OverflowError) as error:
        raise BadInput(f"the sizes of this {config.family} configuration are more than a tensor can have") from error


def initialise(module: torch.nn.Module) -> None:
    """BERT's initialisation, in place: matrices normal with std 0.02, biases zero, norm weights one."""
    for name, value in module.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.02)
        else:
            torch.nn.init.constant_(value, 1.0 if name.endswith("weight") else 0.0)
    for norm in module.modules():
        if isinstance(norm, RMSNorm):
            torch.nn.init.constant_(norm.weight, 1.0 - norm.offset)


def load_model(
    name_or_path: str | Path,
    *,
    task: Task | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "fused",
) -> Transformer:
    """The checkpoint's model, in evaluation mode.

    name_or_path  a Hugging Face folder, a hub id, or "minilm"
    task          "hidden", "classification", "lm", or None for what the checkpoint's `architectures` names. A head that
                  was asked for by name and is not in the checkpoint is initialised, and a warning is logged.
    dtype         None keeps the type of the file
    Raises BadInput for anything that is missing, unexpected, of the wrong shape, or not finite.
    """
    folder = find(name_or_path)
    file = folder / "config.json"
    raw = read_json(file)
    config = read_config(raw, task, str(file))
    body = BODIES[config.family]
    keep = dtype is None and (device is None or torch.device(device).type == "cpu")
    tensors = apart(rename_old(unwrapped(open_tensors(folder, keep=keep), folder)), config, folder)
    left_out = task is not None or body.leaves_out(raw.get("architectures"))
    if left_out and task is None:
        log.warning("%s: the head of %s is left out; hidden states are computed", folder, raw["architectures"][0])
    prefix = body.lead(tensors)
    if config.task == "hidden" and not config.causal:
        config = replace(config, pooler=f"{prefix}pooler.dense.weight" in tensors)
    for i in range(config.layers):  # before so many are built
        if (name := body.their_name(f"blocks.{i}.attention.o.weight", config.task, prefix)) not in tensors:
            raise BadInput(f"{folder}: lacks {name} of the {config.layers} layers; the checkpoint is incomplete")
    model = describe(config, backend)
    shapes = {ours: tuple(like.shape) for ours, like in model.named_parameters()}
    names = {ours: body.their_name(ours, config.task, prefix) for ours in shapes}
    fresh = {ours for ours, theirs in names.items() if theirs not in tensors}
    refuse_unexpected(config.family, tensors.keys() - names.values(), prefix, folder, headless=left_out)
    for ours in sorted(fresh):
        if task is None or not ours.startswith("head."):
            raise BadInput(f"{folder}: lacks the tensor {names[ours]}; the checkpoint is incomplete")
    state = {
        ours: read_tensor(tensors[names[ours]], names[ours], shape, folder, dtype, device)
        for ours, shape in shapes.items()
        if ours not in fresh
    }
    refuse_other_copies(body, config, tensors, state, folder)
    if len(types := sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})) > 1:
        wide = reduce(torch.promote_types, (value.dtype for value in state.values()))
        log.warning("%s: holds tensors of %s; all are computed in %s", folder, " and ".join(types), wide)
        state = {ours: value.to(wide) for ours, value in state.items()}
    if fresh and model.head is not None:
        some = next(iter(state.values()))
        initialise(model.head.to_empty(device=some.device).to(some.dtype))
        state |= {ours: value.data for ours, value in model.named_parameters() if ours in fresh}
        log.warning("%s: newly initialised: %s", folder, ", ".join(sorted(fresh)))
    add_residual(state, names, folder)
    fill(model, state)
    model.fresh = frozenset(fresh)
    return model.eval()


def fill(model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Make these tensors the parameters of a model without values, in less than half the time of load_state_dict."""
    modules = dict(model.named_modules())
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        modules[module].register_parameter(leaf, torch.nn.Parameter(value))


@contextmanager
def head_to_come() -> Iterator[None]:
    """Within it, load_model does not warn of a fresh head: one that is about to be replaced or trained."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def add_residual(state: dict[str, Tensor], names: Mapping[str, str], folder: Path) -> None:
    """Add what merge kept of the biases that rounding cut; such a bias is then held in float32 or wider."""
    file, ours = folder / RESIDUAL, {theirs: name for name, theirs in names.items()}
    for theirs, lazy in (read_safetensors(file) if file.is_file() else {}).items():
        value, rest = state.get(ours.get(theirs, "")), lazy()
        if value is None or value.shape != rest.shape or not rest.isfinite().all():
            raise BadInput(f"{file}: {theirs} does not fit the model; delete the file to do without what rounding lost")
        wide = torch.promote_types(value.dtype, torch.float32)
        state[ours[theirs]] = value.to(wide) + rest.to(value.device, wide)


def unwrapped(tensors: dict[str, Lazy], folder: Path) -> dict[str, Lazy]:
    """The tensors without what a wrapper put before their names."""
    if lead := wrapper(tensors):
        log.warning("%s: the names of the tensors begin with %s, which is taken off", folder, lead)
    return {name.removeprefix(lead): lazy for name, lazy in tensors.items()}


def rename_old(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """The first BERT checkpoints call a LayerNorm's weight and bias gamma and beta."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return {next((n.replace(a, b) for a, b in old.items() if n.endswith(a)), n): t for n, t in tensors.items()}


def refuse_unexpected(family: str, left: set[str], prefix: str, folder: Path, *, headless: bool) -> None:
    """Refuse tensors that nothing reads: they may mean that the model computes something else.

    headless  tensors outside the backbone's prefix, such as another task's head, may stay unread
    """
    body = BODIES[family]
    for name in sorted(left):
        outside = bool(prefix) and not name.startswith(prefix)
        spare = is_buffer(name) or body.is_spare(name.removeprefix(prefix)) or body.is_spare(name)
        if not spare and not (headless and outside):
            raise BadInput(f"{folder}: holds the tensor {name}, which a {family} model here does not have")


def refuse_other_copies(
    body: Body, config: ModelConfig, tensors: Mapping[str, Lazy], state: Mapping[str, Tensor], folder: Path
) -> None:
    """A tied tensor may be in the file under both names; if they differ, one of the file and config.json is wrong."""
    for theirs, ours in body.copies.items() if config.task == "lm" and config.tied else ():
        if theirs in tensors and ours in state and not torch.equal(tensors[theirs]().to(state[ours]), state[ours]):
            raise BadInput(f"{folder}: {theirs} is not what config.json ties it to; set tie_word_embeddings to false")


def read_tensor(
    lazy: Lazy,
    name: str,
    shape: tuple[int, ...],
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """One tensor, checked; a memory map stays one unless the type or the device changes."""
    value = lazy()
    if tuple(value.shape) != shape:
        raise BadInput(f"{folder}: {name} has shape {tuple(value.shape)}, config.json asks for {shape}")
    require_type(value, name, folder)
    converted = dtype not in (None, value.dtype)
    # NaN and infinity show in the sum, which takes half the time of minimum and maximum but may overflow.
    if converted or not math.isfinite(value.sum().item()):
        ends = torch.stack(value.aminmax())
        most = ends.abs().max().item()
        if not math.isfinite(most):
            raise BadInput(f"{folder}: {name} holds NaN or infinite values; the file is damaged, download it again")
        if not ends.to(dtype=dtype).isfinite().all():
            raise BadInput(f"{folder}: {name} reaches {most:.3g}, more than {dtype} holds; load it as bfloat16")
    return value.to(device=device, dtype=dtype)


def require_type(value: Tensor, name: str, folder: Path) -> Tensor:
    """The tensor, if it has a type in which minibeft computes."""
    if value.dtype not in DTYPES:
        known = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise BadInput(f"{folder}: {name} has type {str(value.dtype).removeprefix('torch.')}; weights must be {known}")
    return value
