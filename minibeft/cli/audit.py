"""The commands that measure transformers' own models: audit."""

from typing import Annotated

import typer

from minibeft.cli.console import ASK, Json, Model, save, tell

app = typer.Typer()


@app.command(rich_help_panel=ASK)
def audit(
    model: Model,
    json_file: Json = None,
    random: Annotated[bool, typer.Option("--random", help="small and random, from config.json alone")] = False,
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
