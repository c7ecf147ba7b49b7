"""Launch configurations as data: tile sizes, warps and pipeline stages by chip and element size.

kernels/README.md says why each was chosen. tests/kernels/test_kernel_aot.py compiles exactly these.
"""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """A program computes (rows × columns) of the result in steps of `depth` along the summed axis."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """wide does most arithmetic per byte; narrow fills the chip when wide would make too few programs, and leaves
    registers for the angles when the kernel turns pairs, where wide would spill."""

    wide: Tile
    narrow: Tile


MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}

INTERPRETER = Tile(64, 32, 32, 4, 1)  # small, so that small tests still cross tile borders

MATMUL: dict[tuple[int, int], Tiles] = {  # (chip, bytes an element)
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

GROUP = 8
"""Row tiles that run together, so that they find each other's weights in the L2."""

SUM_ELEMENTS = 4096
"""Elements that a program of a column sum holds at once: 32 float32 registers in each of 128 threads."""

SUM_SPLITS = 64
"""Most partial sums for one column: what the second stage of a column sum loads in one go."""


def family(chip: int) -> int:
    """The entry for a chip: its own architecture's where there is one (sm_90, sm_100), else the plain one of sm_80."""
    return {9: 90, 10: 100}.get(chip // 10, 80)


def matmul_tile(chip: int | None, dtype: torch.dtype, rows: int, columns: int, turning: bool) -> Tile:
    """The wide tile when it gives every multiprocessor two programs or more and nothing turns, else the narrow one."""
    if chip is None:
        return INTERPRETER
    wide, narrow = MATMUL[family(chip), dtype.itemsize]
    programs = -(-rows // wide.rows) * -(-columns // wide.columns)
    return narrow if turning or programs < 2 * MULTIPROCESSORS[family(chip)] else wide
