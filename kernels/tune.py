"""`minibeft bench kernels --tune`: every tile and variant on the card at hand, and the table of the quickest.

A result is checked before it is timed, against the same gold and bound as in the benchmark. The kernels then use the
table, tuned.json beside tiles.py, which has one part per kind of chip.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibeft.errors import BadInput
from minibeft.kernels.bench import name_of, where_to
from minibeft.kernels.bias_grad.forward import plan_column_sum
from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.contestants import Inputs
from minibeft.kernels.gate import assert_right, sizes
from minibeft.kernels.lang import Launch, chip_of, triton
from minibeft.kernels.qkv_bias.backward import plan_backward, plan_input_grad
from minibeft.kernels.qkv_bias.descriptors import describable, plan_described
from minibeft.kernels.qkv_bias.forward import Projection, plan_qkv_bias
from minibeft.kernels.rounding import rounding_bound
from minibeft.kernels.shapes import SHAPES, SMALL, Shape
from minibeft.kernels.tiles import BOTH, TUNED, Inside, Tile, Variant, as_row, candidates, family, table, variants
from minibeft.kernels.timing import input_sets, median_seconds
from minibeft.show.console import out
from minibeft.show.files import write_json
from minibeft.show.grid import Grid
from minibeft.show.record import provenance

DTYPE = torch.bfloat16  # float16 moves the same bytes through the same units
REPEATS = 30
SECONDS = 540  # no shape is begun later than this; with the last shape the run takes ten minutes
Row = dict[str, Any]


def projection(inputs: Inputs, outputs: Sequence[Tensor]) -> Projection:
    """The projection of these inputs into Q, K and V, which it fills."""
    q, k, v = outputs
    chip = chip_of(inputs.x.device)
    return Projection(inputs.x.detach(), inputs.weights, inputs.biases, (q, k, v), inputs.rotation, chip)


class Way(NamedTuple):
    """One way to compute Q, K and V ("forward"), dX ("backward"), or dX and the biases' gradients (BOTH)."""

    direction: str
    choice: Tile | Variant | Inside

    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """What it fills; the biases' gradients lie one after the other."""
        if self.direction == "forward":
            return [torch.empty_like(t) for t in inputs.grads]
        x = inputs.x.detach()
        sums = [x.new_empty(inputs.shape.columns, dtype=torch.float32)] if self.direction == BOTH else []
        return [torch.empty_like(x), *sums]

    def plan(self, inputs: Inputs, outputs: list[Tensor]) -> list[Launch]:
        """The launches that fill them."""
        chip, turn = chip_of(inputs.x.device), inputs.rotation
        if self.direction == "forward":
            asked = projection(inputs, outputs)
            if isinstance(self.choice, Variant):
                return [plan_described(asked, self.choice)]
            assert isinstance(self.choice, Tile)
            return [plan_qkv_bias(asked, self.choice)]
        d_q, d_k, d_v = inputs.grads
        grads, weights, (d_x, *d_b) = (d_q, d_k, d_v), inputs.weights, outputs
        if isinstance(self.choice, Inside):
            return [*plan_backward(grads, weights, d_x, d_b[0], turn, chip, self.choice.tile)]
        assert isinstance(self.choice, Tile)
        launches = [plan_input_grad(grads, weights, d_x, turn, chip, self.choice)]
        for own in d_b:
            parts = zip(grads, own.split([len(w) for w in weights]), (turn, turn, None), strict=True)
            launches += [each for grad, part, back in parts for each in plan_column_sum(grad, part, back, 1)]
        return launches


def ways(inputs: Inputs) -> Iterator[Way]:
    """All that there are for this shape on this chip."""
    chip = chip_of(inputs.x.device)
    for tile in candidates(chip):
        yield Way("forward", tile)
        yield Way("backward", tile)
        yield Way(BOTH, tile)
        yield Way(BOTH, Inside(tile))
    for variant in variants(chip):
        if describable(projection(inputs, inputs.grads), variant):
            yield Way("forward", variant)


def check(way: Way, inputs: Inputs, found: list[Tensor], gold: tuple[Tensor, ...], size: tuple[Tensor, ...]) -> None:
    """RuntimeError for a wrong result. gold, size: of Q, K, V, dX and the biases' gradients, each with the sum of its
    terms' sizes."""
    shape = inputs.shape
    forward = way.direction == "forward"
    names = ("q", "k", "v") if forward else ("d_x", "d_b")[: len(found)]
    terms = {"d_x": shape.columns, "d_b": shape.rows}
    own = slice(0, 3) if forward else slice(3, 3 + len(found))
    for name, one, exact, reach in zip(names, found, gold[own], size[own], strict=True):
        turned = name == "d_x" and shape.dims > 0
        allowed = rounding_bound(exact, reach, terms.get(name, shape.width), one.dtype, turned=turned)
        assert_right(f"{shape.name} {name} by {way.choice}", one, exact, allowed)


def run_all(launches: list[Launch]) -> None:
    """One after the other."""
    for launch in launches:
        launch.run()


def measure(shape: Shape, device: torch.device) -> list[Row]:
    """One row per way: its seconds, or why it does not run here."""
    count = input_sets(shape.sum_bytes(DTYPE), device)
    several = [Inputs(shape, DTYPE, device, seed) for seed in range(count)]
    outs, grads = several[0].double()
    turn = several[0].rotation and several[0].rotation.double()
    pairs = zip(several[0].grads, (turn, turn, None), strict=True)
    d_b = torch.cat([column_sum_reference(grad.double(), back, 1, torch.float64) for grad, back in pairs])
    gold = (*(out.detach() for out in outs), grads[0], d_b)
    *size, d_q, d_k, d_v = sizes(several[0])
    size = (*size, torch.cat([d_q, d_k, d_v]))
    rows = []
    for way in ways(several[0]):
        row: Row = {"shape": shape.name, "direction": way.direction, "rows": shape.rows, "turned": shape.dims > 0}
        row |= {"columns": shape.columns if way.direction == "forward" else shape.width, **as_row(way.choice)}
        filled = [way.outputs(inputs) for inputs in several]
        launches = [way.plan(inputs, out) for inputs, out in zip(several, filled, strict=True)]
        try:
            run_all(launches[0])
        except (triton.runtime.errors.OutOfResources, triton.CompilationError, RuntimeError) as error:
            rows.append(row | {"failed": str(error).splitlines()[0]})
            continue
        check(way, several[0], filled[0], gold, size)
        calls = [partial(run_all, each) for each in launches]
        rows.append(row | {"seconds": median_seconds(calls, device, REPEATS if device.type == "cuda" else 1)})
    return rows


def measure_all(shapes: tuple[Shape, ...], device: torch.device) -> list[Row]:
    """The rows of as many shapes as there is time for."""
    begun, rows = monotonic(), list[Row]()
    for shape in shapes:
        if monotonic() - begun > SECONDS:
            out.print(f"{shape.name}: not measured, {SECONDS} seconds have passed")
            continue
        found = measure(shape, device)
        out.print(grid(shape, found))
        rows += found
    return rows


def grid(shape: Shape, rows: list[Row]) -> Grid:
    """One shape; times only from a GPU, where rows have them."""
    best = [id(row) for row in quickest(rows)]
    cells = [
        [row["direction"], way_of(row), row.get("failed") or f"{row['seconds'] * 1e6:.1f}", "*" * (id(row) in best)]
        for row in rows
    ]
    return Grid(f"{shape.name}, {name_of(DTYPE)}", ["direction", "tile", "µs", "quickest"], cells)


def way_of(row: Row) -> str:
    """128×128×64 8w 3s, and whether it includes the sums or uses descriptors, with their options."""
    m, n, k, warps, stages = row["tile"]
    by = ["with the sums"] * ("inside" in row)
    by += ["descriptors", *(name for name in ("flatten", "specialize") if row[name])] if "flatten" in row else []
    return " ".join([f"{m}×{n}×{k} {warps}w {stages}s", *by])


def quickest(rows: list[Row]) -> list[Row]:
    """The quickest row of each shape and direction."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["shape"], row["direction"]
        if "seconds" in row and (key not in best or row["seconds"] < best[key]["seconds"]):
            best[key] = row
    return list(best.values())


def tune(*, json_path: Path | None, device: str = "cuda", small: bool = False) -> Row:
    """Measure, print, keep the table; write all that was measured as JSON where asked. Returns that record.

    small: as for bench(), a trial in the interpreter, of which no table is kept.
    """
    where = where_to(device, small)
    on_gpu = where.type == "cuda"
    if on_gpu and not os.access(TUNED.parent, os.W_OK):
        raise BadInput(f"--tune: {TUNED.parent} cannot be written to, where the kernels look for the table")
    if on_gpu:
        with torch.cuda.device(where), torch.cuda.stream(torch.cuda.Stream()):
            rows = measure_all(SHAPES, where)
        chip = chip_of(where)
        assert chip is not None
        write_json(TUNED, table() | {str(family(chip)): quickest(rows)})
        table.cache_clear()
    else:
        out.print("interpreter on the CPU, a trial run: these were right, and ran; their times say nothing about a GPU")
        rows = measure_all(SMALL, where)
    gpu = torch.cuda.get_device_name(where) if on_gpu else None
    record = provenance() | {"gpu": gpu, "interpreted": not on_gpu, "repeats": REPEATS, "rows": rows}
    if json_path is not None:
        write_json(json_path, record)
    return record
