"""Commands that train: finetune, rank and reproduce."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minibeft.cli.console import TRAIN, App, Json, Model, err, save, tell
from minibeft.errors import BadInput

if TYPE_CHECKING:
    from minibeft.training.settings import Settings

app = App()

# What the options are about, as --help groups them.
DATA, TRAINED, OPTIMISER, RUNNING = "Data", "What trains", "Optimiser", "How it runs"

Data = Annotated[
    str | None,
    typer.Option(
        envvar="MINIBEFT_DATA",
        help="GLUE's folder; your own CSV, TSV, JSON lines, Parquet, or images as train/CLASS/FILE; default: the hub",
        rich_help_panel=DATA,
    ),
]
TextColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="the column of the texts, of your own table", rich_help_panel=DATA)
]
PairColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="the column of second texts, where there are pairs", rich_help_panel=DATA),
]
LabelColumn = Annotated[
    str, typer.Option(metavar="NAME", help="the column of the classes, of your own table", rich_help_panel=DATA)
]
TASKS = "sst2, rte, mrpc, cola, qqp, qnli, mnli, stsb, wnli, cb, wic; a decoder: sst2, rte, cb, boolq"
Task = Annotated[str, typer.Option(help=TASKS, rich_help_panel=DATA)]
Regime = Annotated[str, typer.Option(help="low, medium or high: how many training examples", rich_help_panel=DATA)]
Examples = Annotated[int | None, typer.Option(help="training examples, instead of the regime's", rich_help_panel=DATA)]
Evaluated = Annotated[
    int | None, typer.Option(help="validation examples at most; default: all, for decoders 1000", rich_help_panel=DATA)
]
Epochs = Annotated[int | None, typer.Option(help="default: the protocol's for the task", rich_help_panel=OPTIMISER)]
Batch = Annotated[
    int | None,
    typer.Option(help="examples per update; default: the protocol's, 16, decoders 8", rich_help_panel=OPTIMISER),
]
Pad = Annotated[
    str, typer.Option(help="bucket, longest, or a number of tokens (official: 128)", rich_help_panel=RUNNING)
]
Tokens = Annotated[
    int | None, typer.Option(help="tokens; longer texts are cut; default: 128, decoders 2048", rich_help_panel=DATA)
]
Dtype = Annotated[
    str, typer.Option(help="float32; bfloat16 for autocast; auto: the faster one here", rich_help_panel=RUNNING)
]
Backend = Annotated[str, typer.Option(help="fused, plain or triton", rich_help_panel=RUNNING)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda", rich_help_panel=RUNNING)]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="of a Dask scheduler: each run is a task of its workers", rich_help_panel=RUNNING
    ),
]
# From a quarter of the protocol's rate for SST-2 to 25 times it.
RATES = "1e-4,4e-4,1e-3,4e-3,1e-2"


@app.command(rich_help_panel=TRAIN)
def finetune(
    model: Model = "minilm",
    task: Annotated[
        str | None, typer.Option(help=f"{TASKS}; default: sst2, or your own data's", rich_help_panel=DATA)
    ] = None,
    data: Data = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    terms: Annotated[
        str, typer.Option(help="q, k, v, m1, m2, m3, ln1, ln2 (some: q,v), or all, none, full", rich_help_panel=TRAINED)
    ] = "v",
    form: Annotated[str, typer.Option(help="plain, lora, vera, vera1d or dora", rich_help_panel=TRAINED)] = "plain",
    rank: Annotated[int, typer.Option(help="of the form", rich_help_panel=TRAINED)] = 8,
    scale: Annotated[float, typer.Option(help="of the form: alpha / rank", rich_help_panel=TRAINED)] = 1 / 8,
    regime: Regime = "low",
    examples: Examples = None,
    held_out: Annotated[
        int, typer.Option(help="evaluate on this many other training examples, not on dev", rich_help_panel=DATA)
    ] = 0,
    evaluated: Evaluated = None,
    data_seed: Annotated[int, typer.Option(help="draws the training subset", rich_help_panel=DATA)] = 0,
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="of head, order and dropout: 0, 0-4, 0,3", rich_help_panel=RUNNING)
    ] = "0",
    learning_rate: Annotated[
        float | None, typer.Option(help="default: the protocol's for the task", rich_help_panel=OPTIMISER)
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="several learning rates, each with every seed: 1e-3,4e-3", rich_help_panel=OPTIMISER),
    ] = None,
    epochs: Epochs = None,
    batch: Batch = None,
    beta1: Annotated[float, typer.Option(help="of AdamW", rich_help_panel=OPTIMISER)] = 0.9,
    beta2: Annotated[float, typer.Option(help="of AdamW", rich_help_panel=OPTIMISER)] = 0.999,
    eps: Annotated[float, typer.Option(help="of AdamW", rich_help_panel=OPTIMISER)] = 1e-6,
    weight_decay: Annotated[float, typer.Option(help="of AdamW", rich_help_panel=OPTIMISER)] = 0.0,
    clip: Annotated[float, typer.Option(help="largest norm of the gradient", rich_help_panel=OPTIMISER)] = 1.0,
    dropout: Annotated[
        bool, typer.Option("--dropout/--no-dropout", help="in training", rich_help_panel=OPTIMISER)
    ] = True,
    pad: Pad = "bucket",
    max_length: Tokens = None,
    dtype: Dtype = "float32",
    backend: Backend = "fused",
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="seeds that train at the same time", rich_help_panel=RUNNING)] = 1,
    stack: Annotated[
        bool,
        typer.Option(
            "--stack", help="train all together: they share every matrix product (classifiers)", rich_help_panel=RUNNING
        ),
    ] = False,
    cluster: Cluster = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="run it with no bias term as well, to compare", rich_help_panel=RUNNING)
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="default: runs/MODEL-TASK-TERMS", rich_help_panel=RUNNING)
    ] = None,
) -> None:
    """Train bias terms and the head by the protocol of BEFT; run it again to resume what was interrupted."""
    from contextlib import ExitStack
    from dataclasses import fields, replace

    from minibeft.reproduce.plan import read_rates
    from minibeft.show.progress import progress
    from minibeft.training.precision import settled
    from minibeft.training.seeds import (
        are_complete,
        ending,
        finetune_all,
        gain,
        read_seeds,
        require_cluster,
        save_seeds,
        seeds_in,
        summary,
        trainable,
    )
    from minibeft.training.settings import AUTO, Settings
    from minibeft.training.stack import require_stackable
    from minibeft.training.tasks import OWN, is_folders

    if task is None:
        task = OWN if text_column is not None or is_folders(data) else "sst2"
    given = locals()
    settings = Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name != "seed"})
    what = Path(data or "").stem if task == OWN else task
    name = "-".join([Path(model).name, what, terms] + [form] * (form != "plain"))
    folder = folder or Path("runs") / name
    if learning_rate is not None and rates is not None:
        raise BadInput(f"--rates {rates}: goes with no --learning-rate; give one of the two")
    given_rates, numbers = read_rates(rates or "none"), read_seeds(seeds)
    require_cluster(cluster, jobs=jobs > 1, stack=stack, **{"dtype auto": dtype == AUTO})
    settings = settled(settings, folder)
    by_rate = {folder / f"rate-{rate:g}": replace(settings, learning_rate=rate) for rate in given_rates}
    places = by_rate or {folder: settings}
    compared = places if baseline and terms != "none" else {}
    bare = {place / "none": replace(each, terms="none", form="plain") for place, each in compared.items()}
    every = places | bare
    runs = [
        (" ".join([name, *place.relative_to(folder).parts, "seed", str(s)]), replace(each, seed=s), place / f"seed-{s}")
        for place, each in every.items()
        for s in numbers
    ]
    if stack:
        require_stackable(settings, jobs)
    with ExitStack() as held, progress() as lines:
        for place, each in every.items():
            held.enter_context(seeds_in(place, each))
        complete = are_complete([place for _, _, place in runs])
        announce = lambda run: err.print(trainable(run))  # noqa: E731
        found = iter(finetune_all(runs, lines, jobs=jobs, announce=announce, stack=stack, cluster=cluster))
        records = {place: [next(found) for _ in numbers] for place in every}
        for place, part in records.items():
            save_seeds(place, part)
    for place in places:
        tell(summary(records[place], place.name if by_rate else ""))
    for place in compared:
        tell(gain(records[place], records[place / "none"]))
    for place in places:
        tell(ending(place, model, [path for path in complete if path.parent == place]))


@app.command(rich_help_panel=TRAIN)
def rank(
    model: Model = "minilm",
    task: Task = "sst2",
    data: Data = None,
    regime: Regime = "low",
    examples: Examples = None,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(help="of head, order and dropout")] = 0,
    folder: Annotated[Path | None, typer.Option("--out", help="default: runs/reproduce-MODEL-TASK")] = None,
) -> None:
    """Rank the bias terms by Mag+Angle, Magnitude and Fisher, with heat maps, and show how far b_k drifts in vain:
    `reproduce ranking` with one seed."""
    from minibeft.training.settings import Settings

    base = Settings(model, task, data, regime=regime, examples=examples, epochs=epochs)
    raise typer.Exit(run_table("ranking", base, folder, seeds=[seed]))


@app.command(rich_help_panel=TRAIN)
def gradients(
    model: Model = "minilm",
    task: Task = "sst2",
    data: Data = None,
    examples: Examples = None,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="of head and order")] = "0-4",
    json_file: Json = None,
) -> None:
    """Measure how large the gradients of b_q, b_k and b_v are before the first update, beside what Q8 allows."""
    from minibeft.reproduce.gradients import measure, render
    from minibeft.show.progress import progress
    from minibeft.training.seeds import read_seeds
    from minibeft.training.settings import Settings

    settings, numbers = Settings(model, task, data, examples=examples), read_seeds(seeds)
    with progress() as lines:
        record = measure(settings, numbers, lambda done, of: lines.show("gradients", done, of))
    tell(*render(record))
    save(json_file, record)


@app.command(rich_help_panel=TRAIN)
def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="biases, reparam, bias-free, regimes, rates, ranking")],
    model: Annotated[str, typer.Option(help="a Hugging Face folder, a hub id, or minilm")] = "minilm",
    task: Task = "sst2",
    data: Data = None,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="of head, order and dropout")] = "0-7",
    rates: Annotated[str, typer.Option(help="to search for each row's own; none: the protocol's rate only")] = RATES,
    judges: Annotated[int, typer.Option("--held-out", min=1, help="training examples that judge the search")] = 1000,
    regime: Regime = "low",
    examples: Examples = None,
    epochs: Epochs = None,
    batch: Batch = None,
    pad: Pad = "bucket",
    max_length: Tokens = None,
    dtype: Dtype = "float32",
    backend: Backend = "fused",
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time, each with its share of the threads")] = 1,
    cluster: Cluster = None,
    extend: Annotated[
        Path | None,
        typer.Option(metavar="RECORD", help="a table's .json: add these seeds to it, at the own rates that it found"),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="default: runs/reproduce-MODEL-TASK")] = None,
) -> None:
    """Run a table of the paper over seeds and rates; run it again to resume. Exit status 1 if b_k has an effect where
    theorem K3 says that it has none."""
    from dataclasses import fields

    from minibeft.reproduce.plan import read_rates
    from minibeft.training.seeds import read_seeds, require_cluster
    from minibeft.training.settings import AUTO, Settings

    given = locals()
    require_cluster(cluster, jobs=jobs > 1, **{"dtype auto": dtype == AUTO})
    base = Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})
    search = {"rates": read_rates(rates), "held_out": judges}
    how = {"jobs": jobs, "cluster": cluster, "extend": extend}
    raise typer.Exit(run_table(table, base, folder, seeds=read_seeds(seeds), **search, **how))


def run_table(table: str, base: "Settings", folder: Path | None, **options: Any) -> int:
    """Run a table of the paper and print it; the exit status."""
    from minibeft.reproduce.reproduce import reproduce

    folder = folder or Path("runs") / f"reproduce-{Path(base.model).name}-{base.task}"
    record, tables = reproduce(table, base, folder, **options)
    tell(*tables, f"wrote {folder}/{table}.json, .md and .html")
    return 0 if record["ok"] else 1
