"""From images and spectrograms to the first hidden states: what they have in place of token vectors."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minibeft.models.packed.dropout import make_dropout

MOST_DRAWN = 16  # patches per side of a random image; a random spectrogram has four times as many positions


@dataclass(frozen=True)
class Patches:
    """Images of this many channels, cut into `rows` × `columns` patches of this height and width in pixels.

    masked  the checkpoint has a vector for hidden patches, which only pretraining reads
    """

    channels: int
    rows: int
    columns: int
    size: tuple[int, int]
    masked: bool = False
    plural: ClassVar[str] = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image that the positions were trained for."""
        return self.channels, self.rows * self.size[0], self.columns * self.size[1]

    @property
    def drawn(self) -> tuple[int, int, int]:
        """The shape of a random image: at most MOST_DRAWN patches per side."""
        rows, columns = min(self.rows, MOST_DRAWN), min(self.columns, MOST_DRAWN)
        return self.channels, rows * self.size[0], columns * self.size[1]

    def tokens(self, grid: tuple[int, ...]) -> int | None:
        """How many tokens an image of this height and width becomes; None: it is too small."""
        rows, columns = (pixels // size for pixels, size in zip(grid, self.size, strict=True))
        return rows * columns + 1 if rows and columns else None

    def embeddings(self, width: int, dropout: float, *, same_dropout: bool) -> "ImageEmbeddings":
        return ImageEmbeddings(self, width, dropout, same_dropout=same_dropout)


@dataclass(frozen=True)
class Spectrogram:
    """Speech, as this many frequency bins over up to twice as many frames as there are positions."""

    bins: int
    positions: int
    plural: ClassVar[str] = "spectrograms"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the longest spectrogram."""
        return self.bins, 2 * self.positions

    @property
    def drawn(self) -> tuple[int, int]:
        """The shape of a random one."""
        return self.bins, 2 * min(self.positions, 4 * MOST_DRAWN)

    def tokens(self, grid: tuple[int, ...]) -> int | None:
        """How many tokens a spectrogram of this many frames becomes; None: it is too long."""
        return (grid[0] + 1) // 2 if grid[0] <= self.shape[1] else None

    def embeddings(self, width: int, dropout: float, *, same_dropout: bool) -> "SpeechEmbeddings":
        return SpeechEmbeddings(self, width, dropout, same_dropout=same_dropout)


class ImageEmbeddings(nn.Module):
    """A learned vector for the image as a whole, a linear map of each patch, and learned positions. Those are
    interpolated for an image of another size, as DINOv2 has it."""

    def __init__(self, source: Patches, width: int, dropout: float, *, same_dropout: bool):
        super().__init__()
        self.source = source
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.mask = nn.Parameter(torch.zeros(1, width)) if source.masked else None
        self.patches = nn.Conv2d(source.channels, width, source.size, stride=source.size)
        self.positions = nn.Parameter(torch.zeros(1, 1 + source.rows * source.columns, width))
        self.drop = make_dropout(dropout, same=same_dropout)

    def forward(self, images: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B T C"]:
        height, width = self.source.size
        if images.shape[1] != self.source.channels or images.shape[2] < height or images.shape[3] < width:
            raise ValueError(f"images have shape {tuple(images.shape[1:])}, the model takes {self.source.shape}")
        grid = self.patches(images.to(self.patches.weight.dtype))  # (B, C, rows, columns)
        x = torch.cat((self.first.expand(len(images), 1, -1), grid.flatten(2).mT), 1)
        return self.drop(x + self.placed(grid.shape[2], grid.shape[3]))

    def placed(self, rows: int, columns: int) -> Float[Tensor, "1 T C"]:
        """The positions of a grid of patches, in float32 at least while they are interpolated."""
        s = self.source
        if (rows, columns) == (s.rows, s.columns):
            return self.positions
        table = self.positions[:, 1:].unflatten(1, (s.rows, s.columns)).permute(0, 3, 1, 2)
        wide = table.to(torch.promote_types(table.dtype, torch.float32))
        found = F.interpolate(wide, size=(rows, columns), mode="bicubic", align_corners=False).to(table.dtype)
        return torch.cat((self.positions[:, :1], found.flatten(2).mT), 1)


class SpeechEmbeddings(nn.Module):
    """Two convolutions over time, the second with a stride of 2, and a table of positions."""

    def __init__(self, source: Spectrogram, width: int, dropout: float, *, same_dropout: bool):
        super().__init__()
        self.source = source
        self.near = nn.Conv1d(source.bins, width, 3, padding=1)
        self.far = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Embedding(source.positions, width)
        self.drop = make_dropout(dropout, same=same_dropout)

    def forward(self, spectrograms: Float[Tensor, "B bins frames"]) -> Float[Tensor, "B T C"]:
        if spectrograms.shape[1] != self.source.bins or not 0 < spectrograms.shape[2] <= self.source.shape[1]:
            raise ValueError(f"spectrograms have shape {tuple(spectrograms.shape[1:])}, at most {self.source.shape}")
        x = F.gelu(self.far(F.gelu(self.near(spectrograms.to(self.near.weight.dtype))))).mT  # (B, T, C)
        return self.drop(x + self.positions.weight[: x.shape[1]])
