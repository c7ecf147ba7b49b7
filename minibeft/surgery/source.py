"""What simplify and merge share: a checkpoint by our names, the fold of V2, and writing only what was verified."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from minibeft.checkpoints.layouts import apart, together, whole_name
from minibeft.checkpoints.load import describe, load_model, require_type
from minibeft.checkpoints.rewrite import RESIDUAL, Edit, rewrite_folder
from minibeft.checkpoints.tensors import Lazy, open_tensors, read_json, wrapper
from minibeft.errors import BadInput
from minibeft.families import BODIES, FAMILIES, Body, named_family, read_config
from minibeft.families.attention import Switch
from minibeft.models.config import ModelConfig, Task
from minibeft.models.transformer import Transformer
from minibeft.surgery.equivalence import Agreement, compare
from minibeft.verification.inputs import read_inputs


@dataclass(frozen=True)
class Source:
    """A checkpoint folder that minibeft can run: its configuration, and its tensors by our names, read on demand."""

    folder: Path
    config: ModelConfig
    body: Body
    tensors: dict[str, Lazy]

    @staticmethod
    def open(folder: Path, task: Task | None = None) -> "Source":
        """BadInput when the folder cannot be run, or was merged with a residual that an edit would forget.

        task  None: the one that the checkpoint names, or hidden states where its head is not known here
        """
        file = folder / "config.json"
        raw = read_json(file)
        body = BODIES[named_family(raw, str(file))]
        if task is None:
            named = raw.get("architectures")
            first = named[0] if isinstance(named, list) and named else None
            task = body.architectures.get(first, "hidden") if isinstance(first, str) else "hidden"
        tensors = open_tensors(folder)
        lead = wrapper(tensors)  # which convert takes off before anything is written
        tensors = {name.removeprefix(lead): lazy for name, lazy in tensors.items()}
        if (folder / RESIDUAL).exists():
            raise BadInput(f"{folder}: carries the residual of a merge, which would be lost; unmerge it first")
        config = read_config(raw, task, str(file))
        return Source(folder, config, body, apart(tensors, config, folder))

    @cached_property
    def prefix(self) -> str:
        """What stands before the backbone's names in the files."""
        return self.body.lead(self.tensors)

    def name(self, ours: str) -> str:
        """The name in the files."""
        return self.body.their_name(ours, self.config.task, self.prefix)

    def get(self, ours: str) -> Tensor | None:
        """A tensor, None when it is not there."""
        lazy = self.tensors.get(self.name(ours))
        return None if lazy is None else require_type(lazy(), self.name(ours), self.folder)

    def __getitem__(self, ours: str) -> Tensor:
        """A tensor that must be there."""
        value = self.get(ours)
        if value is None:
            raise BadInput(f"{self.folder}: lacks the tensor {self.name(ours)}; the checkpoint is incomplete")
        return value

    def switched(self, on: bool, *, mlp: bool = False) -> tuple[ModelConfig, dict[str, bool]]:
        """The configuration with the family's switch for biases of attention, or of the MLP, on or off; and its key.

        Unchanged where the format has no such switch.
        """
        switch = self.body.mlp_bias if mlp else FAMILIES[self.config.family].attention.biases
        return self.with_keys({switch.key: on} if isinstance(switch, Switch) else {})

    def with_keys(self, keys: dict[str, bool]) -> tuple[ModelConfig, dict[str, bool]]:
        """The configuration with these keys, and the keys."""
        config = read_config(self.config.source | keys, self.config.task, str(self.folder / "config.json"))
        return replace(config, labels=self.config.labels), keys


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our names of the parameters that a model of this configuration has, and their shapes."""
    return {name: tuple(value.shape) for name, value in describe(config).state_dict().items()}


def fold(
    b_o: Float[Tensor, " C"], w_o: Float[Tensor, "C HD"], b_v: Float[Tensor, " GD"], config: ModelConfig
) -> Float[Tensor, " C"]:
    """b_o' = b_o + W_o b_v in float64, b_v repeated over the query heads that share it (theorem V2)."""
    group = config.heads // config.kv_heads
    repeated = b_v.double().view(config.kv_heads, -1).repeat_interleave(group, 0).flatten()
    return b_o.double() + w_o.double() @ repeated


def in_file(source: Source, edit: Edit) -> Edit:
    """The same edit by the tensors of the file, of which one may hold q, k and v."""
    name = lambda theirs: whole_name(theirs, source.body)  # noqa: E731
    beside = {name(new): name(old) for new, old in edit.beside.items()}
    tensors = together(edit.tensors, source.config)
    return replace(edit, tensors=tensors, drop={name(theirs) for theirs in edit.drop}, beside=beside)


def write_verified(
    source: Source,
    ready: Path,
    edit: Edit,
    intended: Transformer,
    exact: Mapping[str, Tensor],
    *,
    text: Path | None,
    extras: Mapping[str, bytes] | None = None,
) -> Agreement:
    """Write the edited folder to `ready`; BadInput unless it computes what `intended` does on sentences.

    exact   by our names, the changed parameters before they were rounded to the file's type
    extras  further files of the new folder
    """
    batch = read_inputs(source.folder, text, source.config)
    rewrite_folder(source.folder, ready, in_file(source, edit))
    for name, content in (extras or {}).items():
        (ready / name).parent.mkdir(exist_ok=True)
        (ready / name).write_bytes(content)
    written = load_model(ready, task=intended.config.task)
    types = {tensor().dtype for tensor in open_tensors(ready).values()}
    agreement = compare(intended, written, exact, batch, {kind for kind in types if kind.is_floating_point})
    agreement.require(source.folder)
    return agreement
