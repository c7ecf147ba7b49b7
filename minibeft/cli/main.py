"""The command line: one thin function per command. Each imports what it needs, so `minibeft --help` stays quick."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import minibeft
from minibeft.cli.audit import app as auditing
from minibeft.cli.bench import app as bench
from minibeft.cli.checkpoints import app as checkpoints
from minibeft.cli.console import ASK, LOOK, App, Json, Model, Png, Text, execute, picture, place, plot, run, save, tell
from minibeft.cli.predict import app as prediction
from minibeft.cli.training import app as training
from minibeft.errors import BadInput
from minibeft.show.console import OTHER_PROCESS, out
from minibeft.training.caches import cap_caches

app = App(
    help="What the attention biases b_q, b_k and b_v of a transformer do: proofs, measurements and tools.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of a defect")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print only errors; files are still written")] = False,
) -> None:
    """Without a command: the version where it is asked for, else the help."""
    out.quiet = quiet or OTHER_PROCESS
    if version:
        tell(minibeft.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        return
    raise typer.Exit


@app.command(rich_help_panel=LOOK)
def verify(
    model: Model = "minilm",
    json_file: Json = None,
    png: Png = None,
    task: Annotated[
        str | None, typer.Option(help="hidden, classification, tokens or lm; default: what the file names")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the redrawn biases")] = 0,
    text: Text = None,
) -> None:
    """Measure the theorems on a checkpoint, layer by layer; exit status 1 if one that must hold does not."""
    from minibeft.show.progress import steps
    from minibeft.verification.report import draw, render
    from minibeft.verification.verify import STEPS, verify

    with steps(f"verify {model}", STEPS) as begin:
        report = verify(model, task=as_task(task), seed=seed, inputs=text, progress=begin)
    tell(*render(report))
    save(json_file, report.as_json())
    plot(png, partial(draw, report), (9, 1.2 + 0.21 * len(report.checks)))
    raise typer.Exit(0 if report.ok else 1)


@app.command(rich_help_panel=LOOK)
def show(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="a sentence")],
    png: Annotated[
        Path, typer.Option("--png", metavar="FILE", help="write the picture to this file", callback=picture)
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="a Hugging Face folder, a hub id, or minilm")] = "minilm",
    layer: Annotated[int, typer.Option(help="counted from 0")] = 0,
    head: Annotated[int, typer.Option(help="counted from 0")] = 0,
) -> None:
    """Draw the attention weights of one head without biases, with b_q, and with a b_k of the same length."""
    from minibeft.verification.picture import views

    seen = views(model, text, layer=layer, head=head)
    tell(seen.finding)
    plot(png, seen.draw, (9, 3.4))


@app.command(rich_help_panel=LOOK)
def explore(
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="write the page to this file", callback=place)],
    model: Model = "minilm",
    text: Annotated[str | None, typer.Option(help="a sentence; default: one is built in")] = None,
    layer: Annotated[int, typer.Option(help="counted from 0")] = 0,
    head: Annotated[int, typer.Option(help="the one shown first, counted from 0")] = 0,
) -> None:
    """Write a page on which sliders move the biases of a real layer, to be opened in a browser."""
    from minibeft.explore.explore import TEXT, explore
    from minibeft.show.files import write

    write(html, explore(model, text=TEXT if text is None else text, layer=layer, head=head).encode())
    tell(f"wrote {html}; open it in a browser")


@app.command(rich_help_panel=LOOK)
def certify(
    model: Model,
    json_file: Json = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="the model is run with prefix tuning")] = False,
) -> None:
    """Say from config.json alone what each bias can do: null, foldable, limited, active or unknown."""
    from minibeft.audit.report import render as render_audit
    from minibeft.audit.stand_in import measured_instead
    from minibeft.certificate.certify import certify
    from minibeft.certificate.report import render

    certificate = certify(model, prefix=prefix)
    tell(*render(certificate))
    found = None if prefix else measured_instead(model, certificate)
    if found is not None:
        tell("What follows is no certificate but a measurement, as by minibeft audit --random.", *render_audit(found))
    save(json_file, certificate.as_json() | ({} if found is None else {"measured": found.as_json()}))


@app.command(rich_help_panel=ASK)
def prove(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="K1, Q3, …; none: all of them")] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write all derivations as LaTeX", callback=place)
    ] = None,
    json_file: Json = None,
    without: Annotated[str | None, typer.Option(metavar="KEY", help="drop this hypothesis, show what fails")] = None,
    explain: Annotated[str | None, typer.Option(metavar="KEY", help="say what a hypothesis is for")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="statements that are proved at the same time")] = 1,
    levels: Annotated[bool, typer.Option("--list", help="list the statements, and how far each is assured")] = False,
) -> None:
    """Prove the statements of the theory step by step; exit status 1 if a step fails."""
    from minibeft.proofs import prove as proofs

    if levels:
        tell(proofs.catalogue([name.upper() for name in names or []]))
    elif explain is not None:
        proofs.explain(explain)
    else:
        proofs.prove(names or [], latex=latex, json=json_file, without=without, jobs=jobs)


app.add_typer(auditing)
app.add_typer(training)
app.add_typer(prediction)
app.add_typer(checkpoints)
app.add_typer(bench, name="bench", rich_help_panel=LOOK)


def as_task(name: str | None) -> Any:
    """The --task option, checked."""
    if name not in (None, "hidden", "classification", "tokens", "lm"):
        raise BadInput(f"--task {name}: must be hidden, classification, tokens or lm")
    return name


def main() -> None:
    """The console script; when a shell asks for completions, typer answers it."""
    if "_MINIBEFT_COMPLETE" in os.environ:
        app(prog_name="minibeft")
    cap_caches()
    run(lambda: execute(app))
