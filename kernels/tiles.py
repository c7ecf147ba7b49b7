"""Launch configurations as data: tile sizes, warps and pipeline stages by chip and element size.

kernels/README.md says why each was chosen. tests/kernels/test_kernel_aot.py compiles exactly these. Where a card was
measured (tune.py), its table comes first.
"""

import json
from functools import cache
from importlib.metadata import version
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """A program computes (rows × columns) of the result in steps of `depth` along the summed axis."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """wide does the most arithmetic per byte; narrow fills the chip when wide would give too few programs, and leaves
    registers for the angles when the kernel turns pairs, where wide would spill."""

    wide: Tile
    narrow: Tile


class Variant(NamedTuple):
    """The projection by tensor descriptors.

    flatten     the loop over tiles and the sum become one, so that loads of the next tile begin before this one's end
    specialize  some warps load, others multiply (Blackwell)
    general     there are enough registers even where pairs turn, or rows belong to sets of biases
    """

    tile: Tile
    flatten: bool
    specialize: bool = False
    general: bool = False


class Inside(NamedTuple):
    """dX and the biases' gradients in one kernel, whose first column of tiles sums what all of them read."""

    tile: Tile


MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}

INTERPRETER = Tile(64, 32, 32, 4, 1)  # small, so that small tests still cross tile borders

MATMUL: dict[tuple[int, int], Tiles] = {  # (chip, bytes per element)
    (80, 2): Tiles(Tile(128, 128, 32, 8, 4), Tile(64, 128, 32, 4, 4)),
    (80, 4): Tiles(Tile(64, 64, 16, 8, 3), Tile(32, 64, 16, 4, 3)),
    (80, 8): Tiles(Tile(32, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
    (90, 2): Tiles(Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3)),
    (90, 4): Tiles(Tile(64, 64, 16, 8, 3), Tile(32, 64, 16, 4, 3)),
    (90, 8): Tiles(Tile(32, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
    (100, 2): Tiles(Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3)),
    (100, 4): Tiles(Tile(64, 64, 16, 8, 3), Tile(32, 64, 16, 4, 3)),
    (100, 8): Tiles(Tile(32, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
}

INTERPRETED_VARIANT = Variant(Tile(32, 32, 16, 4, 1), flatten=True, general=True)

VARIANTS: dict[int, tuple[Variant, ...]] = {  # by chip, for half precision
    90: (
        Variant(Tile(128, 128, 64, 8, 3), flatten=False, general=True),
        Variant(Tile(128, 128, 64, 8, 3), flatten=True, general=True),
        Variant(Tile(128, 256, 64, 8, 3), flatten=False),
        Variant(Tile(128, 256, 64, 8, 3), flatten=True),
    ),
    100: (
        Variant(Tile(128, 128, 64, 8, 3), flatten=False, general=True),
        Variant(Tile(128, 128, 64, 8, 3), flatten=True),
        Variant(Tile(128, 128, 64, 4, 3), flatten=True, specialize=True),
        Variant(Tile(128, 256, 64, 8, 3), flatten=False),
        Variant(Tile(128, 256, 64, 8, 3), flatten=True),
    ),
}

GROUP = 8
"""Row tiles that run together, so that they find each other's weights in the L2."""

SUM_ELEMENTS = 4096
"""Elements that a program of a column sum holds at once: 32 float32 registers in each of 128 threads."""

SUM_SPLITS = 64
"""Partial sums of one column that the second stage of a column sum loads in one go; the first makes no more."""


def family(chip: int) -> int:
    """The entry for a chip: its own architecture's where there is one (sm_90, sm_100), else the plain one of sm_80."""
    return {9: 90, 10: 100}.get(chip // 10, 80)


BOTH = "backward with sums"
"""The direction of dX and the biases' gradients together; beside "forward", and "backward", which is dX alone."""

TUNED = Path(__file__).with_name("tuned.json")


@cache
def table() -> dict[str, list[dict[str, Any]]]:
    """The quickest choices on the cards that were measured, one list per kind of chip; empty before the first run."""
    return json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}


def candidates(chip: int | None) -> tuple[Tile, ...]:
    """The tiles that tuning tries, in half precision."""
    if chip is None:
        return (INTERPRETER,)
    more = (Tile(64, 128, 32, 4, 4), Tile(128, 64, 32, 4, 4)) if family(chip) == 80 else ()
    more = more or (Tile(128, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4), Tile(128, 64, 64, 4, 4), Tile(64, 256, 64, 4, 3))
    return tuple(dict.fromkeys((*MATMUL[family(chip), 2], *more)))


@cache
def variants(chip: int | None) -> tuple[Variant, ...]:
    """The projections by descriptors that tuning tries, in half precision. None with a Triton older than 3.9: 3.6 does
    not compile flattened loops, and spills where pairs turn."""
    if chip is None:
        return (INTERPRETED_VARIANT,)
    known = tuple(map(int, version("triton").split(".")[:2])) >= (3, 9)
    return VARIANTS.get(family(chip), ()) if known else ()


def as_row(choice: Tile | Variant | Inside) -> dict[str, Any]:
    """For a record; from_row() reads it."""
    if isinstance(choice, Tile):
        return {"tile": list(choice)}
    return choice._asdict() | {"tile": list(choice.tile)} | ({"inside": True} if isinstance(choice, Inside) else {})


def from_row(row: dict[str, Any]) -> Tile | Variant | Inside:
    """What as_row() wrote."""
    tile = Tile(*row["tile"])
    if "inside" in row:
        return Inside(tile)
    return Variant(tile, row["flatten"], row["specialize"], row["general"]) if "flatten" in row else tile


def tuned(chip: int | None, dtype: torch.dtype, direction: str, rows: int, columns: int, turning: bool) -> Any:
    """The Tile, Variant or Inside that was quickest for the measured shape nearest to this one, or None."""
    if chip is None or dtype.itemsize != 2:
        return None
    alike = [
        row
        for row in table().get(str(family(chip)), [])
        if (row["direction"], row["turned"]) == (direction, turning) and rows and columns
    ]

    def far(row: dict[str, Any]) -> float:
        return abs(log(row["rows"] / rows)) + abs(log(row["columns"] / columns))

    return from_row(min(alike, key=far)) if alike else None


def matmul_tile(chip: int | None, dtype: torch.dtype, direction: str, rows: int, columns: int, turning: bool) -> Tile:
    """The tuned one; else the wide tile when it gives every multiprocessor two programs or more and nothing turns, else
    the narrow one. direction: "forward" or "backward"."""
    if chip is None:
        return INTERPRETER
    if isinstance(found := tuned(chip, dtype, direction, rows, columns, turning), Tile):
        return found
    wide, narrow = MATMUL[family(chip), dtype.itemsize]
    programs = -(-rows // wide.rows) * -(-columns // wide.columns)
    return narrow if turning or programs < 2 * MULTIPROCESSORS[family(chip)] else wide


def key_tile(chip: int | None, dtype: torch.dtype, columns: int) -> Tile:
    """The tile for the keys of a quantised cache: one whole head wide, with enough warps that no registers spill."""
    if chip is None:
        return Tile(16, columns, 32, 4, 1)
    warps = 4 if columns < 128 else 16 if columns > 128 and family(chip) == 90 else 8
    return Tile(64, columns, 64 if family(chip) > 80 and dtype.itemsize == 2 else 32, warps, 3)
