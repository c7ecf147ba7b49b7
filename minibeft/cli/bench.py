"""Commands that measure: bench kernels, train and memory."""

from pathlib import Path
from typing import Annotated

import typer

from minibeft.cli.console import Json, Model, err, out, write_json
from minibeft.cli.training import Data

app = typer.Typer(help="Measure against the real peers, in one run.", no_args_is_help=True)
Png = Annotated[Path | None, typer.Option(metavar="FILE", help="draw the ratios")]


@app.command()
def kernels(
    json_file: Json = None,
    png: Png = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu with --small and TRITON_INTERPRET=1")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="tiny shapes, to try the benchmark itself")] = False,
) -> None:
    """Time the fused projection against transformers' way, cuBLASLt and torch.compile."""
    from minibeft.kernels.bench import bench

    bench(json_path=json_file, png_path=png, device=device, small=small)


@app.command()
def train(
    model: Model = "minilm",
    data: Data = None,
    examples: Annotated[int, typer.Option(min=16, help="that every contestant trains on in a round")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="in which all take their turn")] = 5,
    dtypes: Annotated[str, typer.Option("--dtype", help="types to measure in")] = "float32,bfloat16",
    json_file: Json = None,
    png: Png = None,
) -> None:
    """Time fine-tuning b_v for SST-2, evaluation and loading against transformers + PEFT and the official way; measure
    peak memory. Nothing is reported when the contestants' losses differ by more than rounding."""
    from minibeft.benchmarks.chart import draw
    from minibeft.benchmarks.report import tables
    from minibeft.benchmarks.train import bench, plan

    asked = plan(model, data, examples=examples, rounds=rounds, dtypes=dtypes.split(","), files=(json_file, png))
    record = bench(asked, say=lambda line: err.print(f"{line} …", highlight=False))
    for part in tables(record):
        out.print(part)
    if png is not None:
        draw(record, png)
        out.print(f"wrote {png}")
    write_json(json_file, record)


@app.command()
def memory(
    model: Model = "minilm",
    batch: Annotated[int, typer.Option(min=1, help="sequences")] = 16,
    length: Annotated[int, typer.Option(min=1, help="tokens of each")] = 32,
    json_file: Json = None,
) -> None:
    """List what a training step keeps for its backward pass: bias-only against LoRA and all parameters."""
    from minibeft.benchmarks.memory import measure, render

    record = measure(model, batch, length)
    out.print(render(record))
    write_json(json_file, record)
