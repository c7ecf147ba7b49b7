"""Commands that measure: bench kernels, train, stack, serve, memory and curves."""

from pathlib import Path
from typing import Annotated

import typer

from minibeft.cli.console import App, Json, Model, picture, plot, save, tell
from minibeft.cli.training import Data
from minibeft.errors import BadInput

app = App(help="Measure against the real peers, in one run.")
Png = Annotated[Path | None, typer.Option(metavar="FILE", help="draw the ratios", callback=picture)]


@app.command()
def kernels(
    json_file: Json = None,
    png: Png = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu with --small and TRITON_INTERPRET=1")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="tiny shapes, to try the benchmark itself")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="time all tiles instead, and keep the quickest ones")] = False,
) -> None:
    """Time the fused projection against transformers' way, cuBLASLt and torch.compile."""
    if tune:
        from minibeft.kernels.tune import tune as measure

        if png is not None:
            raise BadInput("--tune: draws no picture; run without --png")
        measure(json_path=json_file, device=device, small=small)
        return
    from minibeft.kernels.bench import bench

    bench(json_path=json_file, png_path=png, device=device, small=small)


@app.command()
def train(
    model: Model = "minilm",
    data: Data = None,
    examples: Annotated[int, typer.Option(min=16, help="that every contestant trains on in a round")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="in which all take their turn")] = 5,
    dtypes: Annotated[str, typer.Option("--dtype", help="types, or auto: the faster one here")] = "float32,bfloat16",
    json_file: Json = None,
    png: Png = None,
) -> None:
    """Time fine-tuning b_v for SST-2, evaluation and loading against transformers + PEFT and the official way; measure
    peak memory. Nothing is reported when the contestants' losses differ by more than rounding."""
    from minibeft.benchmarks.report import chart, render
    from minibeft.benchmarks.train import bench, plan, steps_of
    from minibeft.show.progress import steps

    asked = plan(model, data, examples=examples, rounds=rounds, dtypes=dtypes.split(","))
    with steps("bench train", steps_of(asked)) as begin:
        record = bench(asked, begin)
    tell(*render(record))
    plot(png, lambda figure: chart(figure, record), (13, 4))
    save(json_file, record)


@app.command()
def stack(
    model: Model = "minilm",
    data: Data = None,
    examples: Annotated[int, typer.Option(min=64, help="of each run in a round; a multiple of 64")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="in which both take their turn")] = 5,
    json_file: Json = None,
) -> None:
    """Time runs of b_v for SST-2 trained as one packed batch (finetune --stack) against one after the other."""
    from minibeft.benchmarks.stack import SHAPES, bench, render
    from minibeft.show.progress import steps
    from minibeft.training.settings import Settings

    settings = Settings(model, "sst2", data=data, examples=examples, evaluated=16, device="cpu")
    with steps("bench stack", len(SHAPES) + 1) as begin:
        record = bench(settings, rounds, begin)
    tell(*render(record))
    save(json_file, record)


@app.command()
def serve(
    model: Model = "minilm",
    data: Data = None,
    requests: Annotated[int, typer.Option(min=16, help="in a round")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="in which all take their turn")] = 5,
    json_file: Json = None,
) -> None:
    """Time requests for 1 to 1,000 adapters, mixed in one stream, against the model without adapters, merged copies of
    it, PEFT's set_adapter and PEFT's mixed batches of LoRA."""
    from minibeft.benchmarks.serve import bench, render, steps_of
    from minibeft.show.progress import steps
    from minibeft.training.settings import Settings

    settings = Settings(model, "sst2", data=data, examples=16, evaluated=requests, device="cpu")
    with steps("bench serve", steps_of()) as begin:
        record = bench(settings, rounds, begin)
    tell(*render(record))
    save(json_file, record)


@app.command()
def memory(
    model: Model = "minilm",
    batch: Annotated[int, typer.Option(min=1, help="sequences")] = 16,
    length: Annotated[int, typer.Option(min=1, help="tokens of each")] = 32,
    json_file: Json = None,
) -> None:
    """List what a training step keeps for its backward pass: bias-only against LoRA and all parameters."""
    from minibeft.benchmarks.memory import measure
    from minibeft.benchmarks.report import memory_grid

    record = measure(model, batch, length)
    tell(memory_grid(record))
    save(json_file, record)


@app.command()
def curves(
    model: Model = "minilm",
    rounds: Annotated[int, typer.Option(min=1, help="in which all points take their turn")] = 5,
    json_file: Json = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="write one page with a plot for each", callback=picture),
    ] = None,
) -> None:
    """Measure how the time and memory of an update grow with runs, adapters, layers, width, tokens and threads, beside
    the time of its matrix products alone."""
    from minibeft.benchmarks.curves import bench, html, render, steps_of
    from minibeft.show.files import write
    from minibeft.show.progress import steps
    from minibeft.show.record import provenance

    with steps("bench curves", steps_of(model)) as begin:
        record = bench(model, rounds, begin)
    tell(render(record))
    save(json_file, record)
    if html_file is not None:
        write(html_file, html(provenance() | record).encode())
        tell(f"wrote {html_file}")
