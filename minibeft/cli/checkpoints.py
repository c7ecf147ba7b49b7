"""The commands that read and write checkpoints: inspect, simplify, merge, unmerge, quantkeys."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from minibeft.cli.console import CHANGE, LOOK, App, Json, Model, Png, Text, place, plot, save, tell

app = App()

Out = Annotated[Path, typer.Argument(metavar="OUT", help="the new folder; it must be empty or not yet exist")]


@app.command(rich_help_panel=LOOK)
def inspect(model: Model, json_file: Json = None) -> None:
    """List every bias of a checkpoint: shape, norm, share, verdict, and what simplify would do with it."""
    from minibeft.surgery.inspect import inspect
    from minibeft.surgery.report import render_inspection

    inspection = inspect(model)
    tell(*render_inspection(inspection))
    save(json_file, inspection.as_json())


@app.command(rich_help_panel=CHANGE)
def simplify(
    model: Model,
    folder: Out,
    text: Text = None,
    json_file: Json = None,
    engine: Annotated[
        Literal["minibeft", "transformers"],
        typer.Option(help="what runs the model; transformers: any model, changed as far as audit's measurement allows"),
    ] = "minibeft",
) -> None:
    """Write the checkpoint without b_k and b_v where the theorems allow it, once the outputs agree."""
    from minibeft.errors import BadInput
    from minibeft.show.progress import progress
    from minibeft.surgery.measured import simplify_measured
    from minibeft.surgery.report import render_simplified
    from minibeft.surgery.simplify import simplify

    if engine == "minibeft":
        done = simplify(model, folder, text=text)
    elif text is not None:
        raise BadInput("--text: goes with --engine minibeft; transformers' model is run on random inputs")
    else:
        with progress() as lines:
            done = simplify_measured(model, folder, progress=lambda layer, n, of: lines.show("audit", n, of, layer))
    tell(*render_simplified(done))
    tell(f"wrote {folder}")
    save(json_file, done.as_json())


@app.command(rich_help_panel=CHANGE)
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="a folder in PEFT's BEFT format")],
    model: Model,
    folder: Out,
    fold: Annotated[bool, typer.Option("--fold", help="put the change of b_v into the bias after W_o")] = False,
    residual: Annotated[bool, typer.Option("--residual", help="keep in float32 what rounding loses")] = False,
    text: Text = None,
    json_file: Json = None,
) -> None:
    """Write the checkpoint with a bias adapter merged into it; unmerge takes it out again."""
    from minibeft.surgery.merge import merge
    from minibeft.surgery.report import render_merged

    done = merge(adapter, model, folder, into_output=fold, residual=residual, text=text)
    tell(*render_merged(done))
    tell(f"wrote {folder}")
    save(json_file, done.as_json())


@app.command(rich_help_panel=CHANGE)
def convert(model: Model, folder: Out) -> None:
    """Write pytorch_model.bin as safetensors, without a wrapper's prefix before the tensors' names; no code is run."""
    from minibeft.checkpoints.convert import convert

    tell(f"{convert(model, folder)} tensors; wrote {folder}")


@app.command(rich_help_panel=CHANGE)
def unmerge(model: Model, folder: Out) -> None:
    """Write a merged checkpoint as it was before, every tensor and config.json to the bit."""
    from minibeft.surgery.merge import unmerge

    unmerge(model, folder)
    tell(f"wrote {folder}")


@app.command(rich_help_panel=LOOK)
def quantkeys(
    model: Model,
    text: Text = None,
    json_file: Json = None,
    png: Png = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the mean shifts as safetensors", callback=place)
    ] = None,
) -> None:
    """Study which shift of all cached keys makes them easiest to quantise, and what it gains."""
    from minibeft.surgery.quantkeys import quantkeys
    from minibeft.surgery.report import draw_study, render_study

    study = quantkeys(model, text=text)
    tell(*render_study(study))
    if export is not None:
        study.export(export)
        tell(f"wrote {export}")
    plot(png, partial(draw_study, study), (9, 4.5))
    save(json_file, study.as_json())
