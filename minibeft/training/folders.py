"""Images or spectrograms of one's own, a folder for each class: train/CLASS/FILE, and validation/CLASS/FILE or test/.

Files are read batch by batch, so that memory holds one batch at a time; each file is checked before the run begins.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minibeft.checkpoints.door import checked
from minibeft.errors import BadInput
from minibeft.models.config import ModelConfig
from minibeft.models.transformer import Transformer
from minibeft.training.tasks import Split
from minibeft.verification.inputs import features_batch, read_features

VALID = ("validation", "val", "dev", "test")


class FeatureBatch(NamedTuple):
    """What a model of images or speech reads, and the labels."""

    features: Float[Tensor, "B channels *grid"]
    labels: Float[Tensor, " B"]

    def scores(self, model: Transformer) -> Float[Tensor, "B K"]:
        """A number for each class: the logits of the classification head."""
        logits = model(features=self.features).logits
        assert logits is not None
        return logits


@dataclass(frozen=True)
class Files:
    """All examples of a split, one per file; `source` is the folder of the model that reads them."""

    files: list[Path]
    labels: Float[Tensor, " N"]
    source: Path
    config: ModelConfig

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """All are equally long."""
        return torch.ones(len(self), dtype=torch.long)

    def read(self, file: Path) -> Float[Tensor, "one channels *grid"]:
        """The one example in a file."""
        found = features_batch(self.config, read_features(file, self.config, self.source), str(file))["features"]
        if len(found) != 1:
            raise BadInput(f"{file}: holds {len(found)} examples; give each a file of its own")
        return found

    def gather(self, indices: Int[Tensor, " B"], width: int | None, device: torch.device) -> FeatureBatch:
        """These examples; there is no padding."""
        features = torch.cat([self.read(self.files[i]) for i in indices.tolist()])
        return FeatureBatch(features.to(device), self.labels[indices].to(device))


def open_files(source: Path, config: ModelConfig, split: Split) -> Files:
    """The split's files, after a check that each can be read and has the same shape as the first."""
    files = [Path(file) for (file,) in split.texts]
    found = Files(files, torch.tensor(split.labels, dtype=torch.float32), source, config)
    first = tuple(found.read(files[0]).shape[1:])
    for file, shape in ((file, tuple(found.read(file).shape[1:])) for file in files[1:]):
        if shape != first:
            raise BadInput(f"{file}: has shape {shape}, {files[0].name} has {first}; bring all to one shape")
    return found


def classes_of(folder: Path) -> tuple[str, ...]:
    """The classes: the names of the folders in train, in alphabetical order."""
    return tuple(sorted(each.name for each in (folder / "train").iterdir() if each.is_dir() and is_shown(each)))


def read_classes(folder: Path, classes: tuple[str, ...], *, valid: bool) -> dict[str, Split]:
    """The training files, and with `valid` those of the first validation folder that is there."""
    own = next((folder / name for name in VALID if (folder / name).is_dir()), None) if valid else None
    return {"train": read_class_folders(folder / "train", classes)} | (
        {} if own is None else {"validation": read_class_folders(own, classes)}
    )


def read_class_folders(place: Path, classes: tuple[str, ...]) -> Split:
    """The files of one split."""
    for each in place.iterdir():
        if each.is_dir() and is_shown(each) and each.name not in classes:
            raise BadInput(f"{each}: is no class of the training files ({', '.join(classes)}); rename or remove it")
    found = [
        (checked(file, links=True), number)
        for number, name in enumerate(classes)
        for file in sorted((place / name).glob("*"))
        if is_shown(file)
    ]
    if not found:
        raise BadInput(f"{place}: holds no files; it needs a folder for each class, with its images or spectrograms")
    return Split([(str(file),) for file, _ in found], [float(number) for _, number in found])


def is_shown(path: Path) -> bool:
    """Whether it is no hidden file, such as .DS_Store."""
    return not path.name.startswith(".")
