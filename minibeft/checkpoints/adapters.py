"""Bias adapters in PEFT's BEFT format, written and read: those trained here run in PEFT, and the other way round.

adapter_config.json says peft_type BEFT and which modules it targets; adapter_model.safetensors holds, by Hugging Face
names, `<module>.beft_bias` of shape (1, out), which is added to what the module computes, and whole modules that
replace the model's own (modules_to_save): a classification head, or a norm whose bias was trained.

PEFT computes (x Wᵀ + b) + Δ; here it is x Wᵀ + (b + Δ), the same up to one rounding. Source: peft 0.21, tuners/beft.
"""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from minibeft.checkpoints.layouts import apart, together, whole_name, with_siblings
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.save import label_keys, label_names, unnamed, with_labels
from minibeft.checkpoints.tensors import Lazy, read_json, read_safetensors
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.config import CLASSIFY, Task
from minibeft.models.transformer import Transformer
from minibeft.show.files import new_folder, write_json

# A config.json here would make transformers look for the whole model here.
CONFIG, WEIGHTS, LABELS = "adapter_config.json", "adapter_model.safetensors", "labels.json"
LEAD, TAIL = "base_model.model.", ".beft_bias"
TASKS: dict[str, Task] = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "tokens",
    "CAUSAL_LM": "lm",
    "FEATURE_EXTRACTION": "hidden",
}
HEADS = ("classifier.", "score.", "projector.")


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a model, by Hugging Face names.

    biases  module → Δ, added to what the module computes
    saved   tensor → the value that replaces the model's own
    config  adapter_config.json
    labels  names of the classes, where the head is the adapter's own
    """

    biases: dict[str, Float[Tensor, " out"]]
    saved: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def task(self) -> Task | None:
        """The task of the model that it was made for; None when the configuration does not say."""
        return TASKS.get(self.config.get("task_type") or "")


def their_names(model: Transformer) -> dict[str, str]:
    """Our parameter name → the Hugging Face name, for every parameter and for every bias that could be added."""
    c = model.config
    body = BODIES[c.family]
    prefix = "" if c.task == "hidden" else body.prefix
    maps = (f"blocks.{i}.{name}" for i, block in enumerate(model.blocks) for name, _ in linears(block))
    names = (*(name for name, _ in model.named_parameters()), *(f"{name}.bias" for name in maps))
    return {name: body.their_name(name, c.task, prefix) for name in names}


def linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear maps of a block, by name."""
    return [(name, each) for name, each in block.named_modules() if isinstance(each, nn.Linear)]


def is_linear(name: str) -> bool:
    """Whether a parameter of ours belongs to a linear map of a block."""
    return name.startswith("blocks.") and not module_of(name).endswith(("norm1", "norm2"))


def make_adapter(model: Transformer, before: Mapping[str, Tensor], *, base: str | None = None) -> Adapter:
    """The adapter that turns a model whose trained parameters had the values `before` into this one.

    before  the value of every parameter that trained, by our names, zero for a bias that was added; what is not named
            is taken as unchanged
    base    the model's name or path, noted for those who load the adapter
    BadInput when a weight inside a block trained, or no bias of a linear map did: that is not a bias adapter.
    """
    names, state, body = their_names(model), dict(model.named_parameters()), BODIES[model.config.family]
    linear = [name for name in before if travels_as_shift(name, names[name], model, before)]
    other = [name for name in before if name not in linear]
    for name in other:
        if not name.startswith("head.") and not name.endswith(".bias"):
            raise BadInput(f"{name} is no bias: a bias adapter cannot hold it; write the whole model with save_model")
    if not any(is_linear(name) for name in linear):
        raise BadInput("no bias of a linear map was trained: PEFT's BEFT format cannot hold a head or norms alone")
    modules = {saved_module(name, names[name], model) for name in other}
    kept = {names[n]: state[n].detach() for n in state if saved_module(n, names[n], model) in modules}
    task = next((name for name, task in TASKS.items() if task == model.config.task), None)
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "init_weights": True,
        "modules_to_save": sorted(modules) or None,
        "peft_type": "BEFT",
        "revision": None,
        "target_modules": targets(linear, {n: whole_name(theirs, body) for n, theirs in names.items()}),
        "task_type": task,
    }
    moved = {n: (state[n].detach().double() - before[n].double()).float() for n in linear}
    moved = {n: torch.zeros_like(weight_of(model, n)[:, 0]).float() for n in with_siblings(moved, model.config)} | moved
    shifts = together({names[n]: value for n, value in moved.items()}, model.config)
    changes = {module_of(name): value for name, value in shifts.items()}
    return Adapter(changes, kept, config, label_names(model.config) if model.config.task in CLASSIFY else ())


def travels_as_shift(ours: str, theirs: str, model: Transformer, before: Mapping[str, Tensor]) -> bool:
    """Whether a parameter's change is a beft_bias: it is the bias of a linear map of the backbone, BERT's pooler
    included where its weight is the checkpoint's and did not train."""
    weight = f"{module_of(ours)}.weight"
    pooler = ours.startswith("head.") and theirs.startswith(BODIES[model.config.family].prefix)
    return ours.endswith(".bias") and (is_linear(ours) or (pooler and weight not in {*before, *model.fresh}))


def module_of(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition(".")[0]


def saved_module(ours: str, theirs: str, model: Transformer) -> str:
    """The module that PEFT saves whole for this parameter: a head outside the backbone from its first name on
    (classifier), else the parameter's own module (bert.pooler.dense)."""
    outside = ours.startswith("head.") and not theirs.startswith(BODIES[model.config.family].prefix)
    return theirs.partition(".")[0] if outside else module_of(theirs)


def targets(linear: list[str], names: Mapping[str, str]) -> list[str]:
    """target_modules for these biases. PEFT matches the end of a name, so the part after the layer's number stands for
    every layer; where it would match other modules too, or not every layer has it, the full names are listed."""
    suffixes: dict[str, list[str]] = {}
    for name in linear:
        if not is_linear(name):
            suffixes[module_of(names[name])] = [module_of(names[name])]
            continue
        index = name.split(".")[1]
        suffixes.setdefault(module_of(names[name]).partition(f".{index}.")[2], []).append(module_of(names[name]))
    found = []
    for suffix, modules in suffixes.items():
        matched = {module_of(theirs) for theirs in names.values() if module_of(theirs).endswith(f".{suffix}")}
        found += [suffix] if matched == set(modules) else modules
    return sorted(set(found))


def save_adapter(adapter: Adapter, folder: str | Path, extras: Mapping[str, bytes] | None = None) -> None:
    """Write the adapter for PeftModel.from_pretrained and load_adapter, and further files beside it. The folder must
    not exist or be empty."""
    tensors = {f"{LEAD}{module}{TAIL}": delta[None] for module, delta in adapter.biases.items()}
    tensors |= {f"{LEAD}{name}": value for name, value in adapter.saved.items()}
    with new_folder(Path(folder)) as ready:
        write_json(ready / CONFIG, adapter.config)
        for name, content in (extras or {}).items():
            (ready / name).write_bytes(content)
        if adapter.labels:
            write_json(ready / LABELS, label_keys(adapter.labels))
        save_file({name: value.contiguous() for name, value in tensors.items()}, ready / WEIGHTS, {"format": "pt"})
        shutil.copymode(ready / CONFIG, ready / WEIGHTS)  # safetensors writes for the owner alone


def find_adapter(folder: str | Path) -> Path:
    """The folder of the adapter: this one, or in the folder of a run or of finetune the only adapter that it has."""
    folder = Path(folder).expanduser()
    found = sorted(path for pattern in ("adapter", "seed-*/adapter") for path in folder.glob(pattern))
    if (folder / CONFIG).is_file() or not found:
        return folder
    if len(found) > 1:
        raise BadInput(f"{folder}: holds {len(found)} adapters; give one of them, such as {found[0]}")
    return found[0]


def load_adapter(folder: str | Path) -> Adapter:
    """Read a BEFT adapter's folder; BadInput for another method's adapter, or for a tensor that has no meaning here."""
    folder = find_adapter(folder)
    if not (folder / CONFIG).is_file():
        raise BadInput(f"{folder}: holds no {CONFIG}; give the folder of a BEFT adapter")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "BEFT":
        raise BadInput(f"{folder / CONFIG}: peft_type = {config.get('peft_type')!r}; only BEFT adapters are biases")
    for key in ("base_model_name_or_path", "task_type"):
        if not isinstance(config.get(key), str | None):
            raise BadInput(f"{folder / CONFIG}: {key} = {config[key]!r} must be text or null")
    for key in ("target_modules", "modules_to_save"):
        names = config.get(key) or []
        if not isinstance(names, str) and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise BadInput(f"{folder / CONFIG}: {key} = {names!r} must list the names of modules")
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder / WEIGHTS}: missing; only safetensors is read, save the adapter in that format")
    biases, saved = {}, {}
    for name, lazy in read_safetensors(folder / WEIGHTS).items():
        value = read_value(lazy, name, folder)
        if not name.startswith(LEAD):
            raise BadInput(f"{folder / WEIGHTS}: {name} does not begin with {LEAD}; save it from a PeftModel")
        if not name.endswith(TAIL):
            saved[name.removeprefix(LEAD)] = value
        elif value.ndim == 2 and len(value) == 1:
            biases[name.removeprefix(LEAD).removesuffix(TAIL)] = value[0]
        else:
            raise BadInput(f"{folder / WEIGHTS}: {name} has shape {tuple(value.shape)}, must be (1, out)")
    modules = config.get("modules_to_save") or []
    for name in saved:
        if not any(f".{module}." in f".{name}" for module in modules):
            raise BadInput(f"{folder / WEIGHTS}: {name} is neither a bias nor part of modules_to_save {modules}")
    return Adapter(biases, saved, config, read_labels(folder))


def read_labels(folder: Path) -> tuple[str, ...]:
    """The names of the classes; none where there is no file."""
    if not (folder / LABELS).is_file():
        return ()
    named = read_json(folder / LABELS).get("id2label")
    names = [named.get(str(i)) for i in range(len(named))] if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{folder / LABELS}: id2label must give each class a name, from 0 on; or delete the file")
    return tuple(map(str, names))


def read_value(lazy: Lazy, name: str, folder: Path) -> Tensor:
    """A tensor of floating point, finite."""
    value = lazy()
    if not value.is_floating_point() or not value.isfinite().all():
        raise BadInput(f"{folder / WEIGHTS}: {name} must hold finite floating-point numbers; the adapter is damaged")
    return value


def changed(model: Transformer, adapter: Adapter) -> dict[str, Tensor]:
    """Our parameter name → its value with the adapter, biases summed in float64; the model is left as it is.

    BadInput for a module that the model does not have, or another size.
    """
    ours, state = {theirs: name for name, theirs in their_names(model).items()}, dict(model.named_parameters())
    shifts = {f"{module}.bias": partial(Tensor.clone, delta) for module, delta in adapter.biases.items()}
    biases = {name: part() for name, part in apart(shifts, model.config, Path("the adapter")).items()}
    values: dict[str, Tensor] = {}
    for theirs, value in (biases | adapter.saved).items():
        name = ours.get(theirs)
        if name is None:
            raise BadInput(f"the adapter changes {theirs}, which this {model.config.family} model does not have")
        old = state[name].detach() if name in state else torch.zeros_like(weight_of(model, name)[:, 0])
        labels = name in ("head.out.weight", "head.out.bias")  # their number may differ
        if value.shape[labels:] != old.shape[labels:]:
            raise BadInput(f"the adapter's {theirs} has shape {tuple(value.shape)}, the model's has {tuple(old.shape)}")
        values[name] = old.double() + value.to(old.device).double() if theirs in biases else value
    return values


def weight_of(model: Transformer, name: str) -> Tensor:
    """The weight beside a bias."""
    weight = model.get_submodule(module_of(name)).weight
    assert isinstance(weight, Tensor)
    return weight


def apply_adapter(model: Transformer, adapter: Adapter) -> Transformer:
    """Add the adapter to the model, in place; a bias is kept in float32 at least, so that none of Δ is lost."""
    values = changed(model, adapter)
    for name, value in values.items():
        weight = weight_of(model, name)
        dtype = torch.promote_types(weight.dtype, torch.float32) if is_linear(name) else weight.dtype
        setattr(
            model.get_submodule(module_of(name)), name.rpartition(".")[2], nn.Parameter(value.to(weight.device, dtype))
        )
    if "head.out.weight" in values:
        model.config = with_labels(model.config, names_for(adapter, len(values["head.out.weight"])))
    return model


def names_for(adapter: Adapter, labels: int) -> tuple[str, ...]:
    """The names of as many classes as the adapter's head has."""
    return adapter.labels if len(adapter.labels) == labels else unnamed(labels)


def load_adapted(
    base: str | Path,
    adapter: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Transformer:
    """The checkpoint `base` with the adapter of this folder added, with the head that the adapter was trained for."""
    loaded = load_adapter(adapter)
    return apply_adapter(load_base(base, loaded, dtype=dtype, device=device), loaded)


def load_base(
    base: str | Path,
    adapter: Adapter,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Transformer:
    """The checkpoint with the head that the adapter was trained for.

    Where the adapter brings its own head, a newly initialised one is no reason to warn: it will be replaced.
    """
    brings_head = any(name.startswith(HEADS) for name in adapter.saved)
    with head_to_come() if brings_head else nullcontext():
        return load_model(base, task=adapter.task, dtype=dtype, device=device)
