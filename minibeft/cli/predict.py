"""Commands that use what was trained: predict and evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from minibeft.cli.console import TRAIN, App, Json, place, save, tell
from minibeft.cli.training import Backend, Device, PairColumn, TextColumn, Tokens
from minibeft.errors import BadInput

app = App()

Trained = Annotated[
    str, typer.Argument(metavar="MODEL", help="a folder of finetune, an adapter, or a checkpoint that classifies")
]
KINDS = "a CSV, TSV, JSON lines or Parquet file"
Table = Annotated[Path, typer.Argument(metavar="FILE", help=KINDS)]
CSV = typer.Option("--csv", metavar="FILE", help="write a row for each input, with probabilities", callback=place)


@app.command(rich_help_panel=TRAIN)
def predict(
    model: Trained,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help=KINDS)] = None,
    *,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="the table, instead of FILE")] = None,
    out: Annotated[Path, CSV],
    adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder of adapters of MODEL; each row names its own")
    ] = None,
    adapter_column: Annotated[str, typer.Option(metavar="NAME", help="the column of their names")] = "adapter",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    max_length: Tokens = None,
    backend: Backend = "fused",
    device: Device = "auto",
) -> None:
    """Say for each row of a table which class its text has, and how likely each class is; with --adapters each row by
    its own adapter, many in one batch."""
    from minibeft.show.files import write
    from minibeft.training.mixed import open_mixed, predict_mixed
    from minibeft.training.predict import as_csv, open_classifier, read_texts, settings_for

    if file is None or data is not None:
        if file is not None or data is None:
            raise BadInput("predict: give the table once, as FILE or with --data FILE")
        file = data
    settings = settings_for(model, text_column, pair_column, None, max_length, backend, device)
    if adapters is None:
        classifier = open_classifier(model, settings)
        split = read_texts(classifier.task, file)
        write(out, as_csv(classifier.task, split, classifier.probabilities(split)))
        said = f"{len(split):,} rows"
    else:
        classifier, requests = open_mixed(settings, adapters, file, adapter_column)
        write(out, predict_mixed(classifier, requests))
        said = f"{len(requests.split):,} rows by {len(requests.names):,} adapters"
    tell(f"{said}; wrote {out}")


@app.command(rich_help_panel=TRAIN)
def evaluate(
    model: Trained,
    file: Table,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: Annotated[str | None, typer.Option(metavar="NAME", help="the column of the classes")] = None,
    max_length: Tokens = None,
    backend: Backend = "fused",
    device: Device = "auto",
    out: Annotated[Path | None, CSV] = None,
    json_file: Json = None,
) -> None:
    """Measure predictions against a table's labels, beside what the most frequent class, or no training, would give."""
    from minibeft.show.files import write
    from minibeft.show.grid import Grid
    from minibeft.training.predict import as_csv, evaluate, open_classifier, settings_for

    settings = settings_for(model, text_column, pair_column, label_column, max_length, backend, device)
    classifier = open_classifier(model, settings)
    split, found, rows = evaluate(classifier, file)
    metrics = classifier.task.metrics
    tell(
        Grid(
            f"{len(split):,} rows",
            ("", *metrics),
            [(n, *(f"{row[m]:.4f}" for m in metrics)) for n, row in rows.items()],
        )
    )
    save(json_file, {"model": model, "rows": len(split), "metrics": rows})  # first: a table may not be overwritten
    if out is not None:
        write(out, as_csv(classifier.task, split, found))
        tell(f"wrote {out}")
