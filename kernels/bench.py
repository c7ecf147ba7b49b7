"""`minibeft bench kernels`: the fused operators against torch's ways to compute the same, on one machine in one run.

No number is printed for a shape and type whose results are wrong. Shares are relative to the speed of a matrix product
and of a copy, measured in the same run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch_config

from minibeft.errors import BadInput
from minibeft.kernels import chart
from minibeft.kernels.contestants import Inputs, linears
from minibeft.kernels.dispatch import on_kernels
from minibeft.kernels.gate import check
from minibeft.kernels.shapes import SHAPES, SMALL, TYPES, Shape
from minibeft.kernels.timing import copy_ceiling, input_sets, matmul_ceiling, median_seconds
from minibeft.show.console import out
from minibeft.show.files import write, write_json
from minibeft.show.grid import Grid
from minibeft.show.plot import as_png
from minibeft.show.record import provenance

REPEATS = 100
Row = dict[str, Any]
Contest = tuple[str, str, list[Callable[[], Any]]]


def name_of(dtype: torch.dtype) -> str:
    """bfloat16, not torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Bench:
    """Where to measure, against which ceilings (operations and bytes per second, by type; none in a trial)."""

    device: torch.device
    ceilings: dict[str, float]
    repeats: int

    def measure(self, shape: Shape, dtype: torch.dtype) -> list[Row]:
        """One row per contestant: its seconds, their ratio to the fused operator's, and its shares of the ceilings."""
        kind = name_of(dtype)
        cost = {
            "forward": (shape.forward_operations(), shape.forward_bytes(dtype)),
            "backward": (shape.forward_operations(), shape.backward_bytes(dtype)),
            "column sum": (0, shape.sum_bytes(dtype)),
        }
        sets = input_sets(shape.sum_bytes(dtype), self.device)  # the direction that reads least
        several = [Inputs(shape, dtype, self.device, seed) for seed in range(sets)]
        rows: list[Row] = []
        with functorch_config.patch(donated_buffer=False):  # else a compiled backward can run only once
            for direction, name, calls in contests(several, self.device):
                seconds = median_seconds(calls, self.device, self.repeats)
                operations, least = cost[direction]
                row: Row = {"shape": shape.name, "dtype": kind, "direction": direction, "contestant": name}
                row |= {"seconds": seconds, "operations": operations, "bytes": least}
                if self.ceilings:
                    row["matmul_share"] = operations / seconds / self.ceilings[f"matmul {kind}"]
                    row["copy_share"] = least / seconds / self.ceilings["copy"]
                rows.append(row)
        fused = {row["direction"]: row["seconds"] for row in rows if row["contestant"] == "fused"}
        return [row | {"times_fused": row["seconds"] / fused[row["direction"]]} for row in rows]


def contests(several: list[Inputs], device: torch.device) -> Iterator[Contest]:
    """(direction, contestant, one call per input set)."""
    torch.compiler.reset()  # each shape is compiled afresh
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # a trial run need not wait for a C++ compiler
    compiled = torch.compile(linears, backend=backend, fullgraph=True, dynamic=False)
    forwards: dict[str, Callable[[Inputs], Any]] = {
        "fused": Inputs.fused,
        "linears": Inputs.linears,
        "compiled": lambda inputs: inputs.linears(compiled),
    }
    for name, forward in forwards.items():
        without_graph = torch.no_grad()(forward)
        yield "forward", name, [lambda i=i, f=without_graph: f(i) for i in several]
        outputs = [forward(i) for i in several]
        yield "backward", name, [lambda i=i, o=o: i.backward_of(o) for i, o in zip(several, outputs, strict=True)]
        del outputs
    if several[0].rotation is None:
        yield "forward", "addmm", [torch.no_grad()(i.addmm) for i in several]
    yield "column sum", "fused", [i.fused_sum for i in several]
    yield "column sum", "torch.sum", [i.torch_sum for i in several]


def grid(rows: list[Row]) -> Grid:
    """One shape in one type; numbers only where there are ceilings to hold them against."""
    header, cells = ["direction", "contestant"], [[row["direction"], row["contestant"]] for row in rows]
    if all("copy_share" in row for row in rows):
        header += ["× fused", "µs", "TFLOP/s", "of a matmul", "GB/s", "of a copy"]
        for cell, row in zip(cells, rows, strict=True):
            tflops, gbs = row["operations"] / row["seconds"] / 1e12, row["bytes"] / row["seconds"] / 1e9
            cell += [f"{row['times_fused']:.2f}", f"{row['seconds'] * 1e6:.1f}", f"{tflops:.1f}"]
            cell += [f"{row['matmul_share']:.0%}", f"{gbs:.0f}", f"{row['copy_share']:.0%}"]
    return Grid(f"{rows[0]['shape']}, {rows[0]['dtype']}", header, cells)


def run(bench: Bench, shapes: tuple[Shape, ...]) -> Row:
    """Check, measure and print every shape in every type; the record of it."""
    rows: list[Row] = []
    for shape in shapes:
        for dtype in TYPES:
            check(shape, dtype, bench.device)
            measured = bench.measure(shape, dtype)
            out.print(grid(measured))
            rows += measured
    on_gpu = bench.device.type == "cuda"
    return provenance() | {
        "gpu": torch.cuda.get_device_name(bench.device) if on_gpu else None,
        "interpreted": not on_gpu,
        "ceilings": bench.ceilings,
        "repeats": bench.repeats,
        "rows": rows,
    }


def where_to(name: str, small: bool) -> torch.device:
    """The device of this name; BadInput where it cannot be measured."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"--device {name}: must be cuda, or cpu with --small") from error
    trial = "TRITON_INTERPRET=1 minibeft bench kernels --device cpu --small tries the benchmark without a GPU"
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no GPU here; {trial}")
    if device.type != "cuda" and not (small and on_kernels(torch.empty(0, device=device))):
        raise BadInput(f"--device {device}: only a GPU can be measured; {trial}")
    return device


def bench(*, json_path: Path | None, png_path: Path | None, device: str = "cuda", small: bool = False) -> Row:
    """Check, measure, print; write the record as JSON and the ratios as a PNG where asked. Returns the record.

    small: three tiny shapes, to try the benchmark itself. A machine without a GPU can do only this, and only under
    TRITON_INTERPRET=1. Such a record says that it is interpreted and holds no rates.
    """
    where = where_to(device, small)
    shapes = SMALL if small else SHAPES
    if where.type == "cuda":
        with torch.cuda.device(where), torch.cuda.stream(torch.cuda.Stream()):
            ceilings = {
                f"matmul {str(t).removeprefix('torch.')}": matmul_ceiling(t, where, 8192, REPEATS) for t in TYPES
            }
            ceilings["copy"] = copy_ceiling(where, 4 << 30, REPEATS)
            for name, value in ceilings.items():
                out.print(f"ceiling {name}: {value / 1e12:.2f} T{'B' if name == 'copy' else 'FLOP'}/s")
            record = run(Bench(where, ceilings, REPEATS), shapes)
    else:
        out.print("interpreter on the CPU, a trial run: these were right, and ran; their times say nothing about a GPU")
        record = run(Bench(where, {}, 1), shapes)
    if json_path is not None:
        write_json(json_path, record)
    if png_path is not None:
        size = 11, 3.4 * len(chart.directions(record))
        write(png_path, as_png(lambda figure: chart.draw(figure, record), size))
    return record
