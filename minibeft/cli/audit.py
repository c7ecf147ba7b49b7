"""The commands that measure transformers' own models: audit and atlas."""

from pathlib import Path
from typing import Annotated

import typer

from minibeft.cli.console import ASK, App, Json, Model, save, tell

app = App()


@app.command(rich_help_panel=ASK)
def audit(
    model: Model,
    json_file: Json = None,
    random: Annotated[bool, typer.Option("--random", help="a small random model, from config.json alone")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of inputs, redrawn biases and random weights")] = 0,
) -> None:
    """Measure on transformers' own model, of any family, what each bias can do in every attention layer."""
    from minibeft.audit.audit import audit
    from minibeft.audit.report import render
    from minibeft.show.progress import progress

    with progress() as lines:
        report = audit(
            model, random=random, seed=seed, progress=lambda layer, done, of: lines.show("audit", done, of, layer)
        )
    tell(*render(report))
    save(json_file, report.as_json())


@app.command(rich_help_panel=ASK)
def atlas(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="for the results; model types in it are not run again")
    ] = Path("runs/atlas"),
    types: Annotated[str | None, typer.Option(metavar="A,B,…", help="these model types; default: all")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of weights, inputs and redrawn biases")] = 0,
    seconds: Annotated[int, typer.Option(min=1, help="of processor time that one type may take")] = 20,
    gigabytes: Annotated[float, typer.Option(min=0.5, help="of memory that one type may take")] = 4.0,
) -> None:
    """Audit every model type of transformers, small and random, and write atlas.json and atlas.html."""
    from minibeft.atlas.atlas import atlas, model_types, summary
    from minibeft.atlas.page import html, render
    from minibeft.show.files import write, write_json
    from minibeft.show.progress import progress
    from minibeft.show.record import provenance

    names = model_types(types)
    with progress() as lines:
        rows = atlas(
            folder, names, seed, seconds, gigabytes, lambda kind, done, of: lines.show("atlas", done, of, kind)
        )
    record = provenance() | {"seed": seed, "summary": summary(rows), "rows": rows}
    tell(*render(record))
    write_json(folder / "atlas.json", record)
    write(folder / "atlas.html", html(record).encode())
    tell(f"wrote {folder / 'atlas.json'} and {folder / 'atlas.html'}")
