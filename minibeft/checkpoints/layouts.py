"""Tensors as files lay them out and as models/ has them: q, k and v in one, matrices stored the other way round.

Within minibeft a part goes by the name of the whole with the part after it, h.0.attn.c_attn.q.weight; `apart` and
`together` are each other's inverse to the bit.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minibeft.checkpoints.tensors import Lazy
from minibeft.errors import BadInput
from minibeft.families import BODIES, Body
from minibeft.models.config import ModelConfig

PART = re.compile(r"(.*)\.([qkv])\.(weight|bias)$")


def whole_name(name: str, body: Body) -> str:
    """The name in the file: h.0.attn.c_attn.weight for h.0.attn.c_attn.q.weight."""
    found = PART.match(name)
    return f"{found[1]}.{found[3]}" if found and found[1].endswith(tuple(body.fused)) else name


def is_turned(name: str, body: Body) -> bool:
    """Whether a file has this matrix as (in, out)."""
    return name.endswith(tuple(f"{module}.weight" for module in body.transposed))


class Shared:
    """A fused tensor, read once for all of its parts."""

    def __init__(self, lazy: Lazy, name: str, config: ModelConfig, folder: Path):
        self.lazy, self.name, self.config, self.folder = lazy, name, config, folder
        self.parts: dict[str, Tensor] = {}

    def __call__(self, part: str) -> Tensor:
        if part not in self.parts:
            self.parts = self.split(self.lazy())
        return self.parts.pop(part)

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """q, k and v of a matrix as (out, in), or of a bias."""
        c, body = self.config, BODIES[self.config.family]
        value = value.T if is_turned(self.name, body) and value.ndim == 2 else value
        sizes = [c.heads * c.head_size, c.kv_heads * c.head_size, c.kv_heads * c.head_size]
        if not value.ndim or len(value) != sum(sizes):
            raise BadInput(
                f"{self.folder}: {self.name} has shape {tuple(value.shape)}, q, k and v are {sum(sizes)} rows"
            )
        if not by_head(self.name, body):
            return dict(zip("qkv", value.split(sizes), strict=True))
        heads = value.unflatten(0, (c.heads, 3, c.head_size))
        return {part: heads[:, i].flatten(0, 1) for i, part in enumerate("qkv")}


def by_head(name: str, body: Body) -> bool:
    """Whether a fused tensor holds q, k and v head by head; if not, it holds all of q, then of k, then of v."""
    return next(each for module, each in body.fused.items() if name.rpartition(".")[0].endswith(module))


def apart(tensors: Mapping[str, Lazy], config: ModelConfig, folder: Path) -> dict[str, Lazy]:
    """The tensors of a folder as models/ has them."""
    body, found = BODIES[config.family], dict[str, Lazy]()
    for name, lazy in tensors.items():
        module, _, leaf = name.rpartition(".")
        if body.fused and module.endswith(tuple(body.fused)):
            shared = Shared(lazy, name, config, folder)
            found |= {f"{module}.{part}.{leaf}": lambda s=shared, p=part: s(p) for part in "qkv"}
        elif is_turned(name, body):
            found[name] = lambda lazy=lazy: value.T if (value := lazy()).ndim == 2 else value
        else:
            found[name] = lazy
    return found


def together(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors as files have them; all three parts of a fused one must be there."""
    body, found, parts = BODIES[config.family], dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    for name, value in state.items():
        if (whole := whole_name(name, body)) == name:
            found[name] = value.T if is_turned(name, body) else value
        else:
            parts.setdefault(whole, {})[name.rsplit(".", 2)[1]] = value
    for name, each in parts.items():
        values = [each[part] for part in "qkv"]
        if by_head(name, body):
            heads = [value.unflatten(0, (config.heads, config.head_size)) for value in values]
            value = torch.stack(heads, 1).flatten(0, 2)
        else:
            value = torch.cat(values)
        found[name] = value.T if is_turned(name, body) else value
    return found


def with_siblings(names: Mapping[str, Tensor], config: ModelConfig) -> set[str]:
    """Our names of these tensors, and of all others that the file stores in one tensor with them."""
    fused = bool(BODIES[config.family].fused)
    pattern = re.compile(r"(blocks\.\d+\.attention\.)[qkv](\.\w+)$")
    return {
        f"{found[1]}{part}{found[2]}" if fused and found else name
        for name in names
        for found in [pattern.match(name)]
        for part in "qkv"
    }
