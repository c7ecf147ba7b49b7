"""Commands that use what was trained: predict and evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from minibeft.cli.console import TRAIN, App, Json, place, save, tell
from minibeft.cli.training import Backend, Device, PairColumn, TextColumn, Tokens

app = App()

Trained = Annotated[
    str, typer.Argument(metavar="MODEL", help="a folder of finetune, an adapter, or a checkpoint that classifies")
]
Table = Annotated[Path, typer.Argument(metavar="FILE", help="a CSV, TSV, JSON lines or Parquet file")]
CSV = typer.Option("--csv", metavar="FILE", help="write a row for each input, with probabilities", callback=place)


@app.command(rich_help_panel=TRAIN)
def predict(
    model: Trained,
    file: Table,
    out: Annotated[Path, CSV],
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    max_length: Tokens = None,
    backend: Backend = "fused",
    device: Device = "auto",
) -> None:
    """Say for each row of a table which class its text has, and how likely each class is."""
    from minibeft.show.files import write
    from minibeft.training.predict import as_csv, open_classifier, read_texts, settings_for

    settings = settings_for(model, text_column, pair_column, None, max_length, backend, device)
    classifier = open_classifier(model, settings)
    split = read_texts(classifier.task, file)
    write(out, as_csv(classifier.task, split, classifier.probabilities(split)))
    tell(f"{len(split):,} rows; wrote {out}")


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
    if out is not None:
        write(out, as_csv(classifier.task, split, found))
        tell(f"wrote {out}")
    save(json_file, {"model": model, "rows": len(split), "metrics": rows})
