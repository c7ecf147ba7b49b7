"""A certificate as tables for the terminal: one for each kind of attention, then the reasons and the measurements."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from minibeft.certificate.certify import Certificate, Finding, Verdict

COLOURS = {"null": "dim", "foldable": "cyan", "limited": "yellow", "active": "bold green", "unknown": "bold red"}


def render(certificate: Certificate) -> Iterator[RenderableType]:
    """The verdicts, or why there are none."""
    yield Text(f"{certificate.model}: {certificate.model_type}", style="bold")
    if certificate.unclear is not None:
        yield Text(f"unknown: {certificate.unclear}", style=COLOURS["unknown"])
        return
    for group in alike(certificate):
        yield verdicts_table(group)
    yield Text(
        "Measured in float64 on a small random layer with the same attention; allowed is what the statement and "
        "rounding leave. A number above it is a counterexample.",
        style="dim",
    )


def alike(certificate: Certificate) -> list[list[Finding]]:
    """The findings grouped by equal verdicts, so that the same table is not printed twice."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in certificate.findings:
        key = tuple((v.status, v.broken, v.dims, v.notes, v.present) for v in finding.verdicts.values())
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def verdicts_table(group: list[Finding]) -> Table:
    """One row a bias. Numbers are those of the group's first kind of attention."""
    title = "; ".join(f"{f.site.name} ({layer_range(f.site.layers)})" for f in group)
    table = Table(title=title, title_justify="left")
    table.add_column("bias", style="bold", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("by", no_wrap=True)
    table.add_column("why", ratio=1)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    for verdict in group[0].verdicts.values():
        numbers = ("", "")
        if verdict.witness is not None:
            numbers = (f"{verdict.witness.value:.2g}", f"{verdict.witness.allowed:.2g}")
        status = Text(verdict.status, style=COLOURS[verdict.status])
        table.add_row(f"b_{verdict.bias}", status, verdict.theorem, why(verdict), *numbers)
    return table


def layer_range(layers: tuple[int, ...]) -> str:
    """layers 0 to 11; layers 0, 2, …, 24; layer 3."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    step = layers[1] - layers[0]
    if layers != tuple(range(layers[0], layers[-1] + 1, step)):
        return "layers " + ", ".join(map(str, layers))
    return f"layers {layers[0]} to {layers[-1]}" if step == 1 else f"layers {layers[0]}, {layers[1]}, …, {layers[-1]}"


def why(verdict: Verdict) -> Text:
    """The reason; the verdict on parts of a head; what each broken hypothesis costs alone; the notes."""
    text = Text(verdict.reason)
    for part in verdict.dims:
        text.append(f"\n{part.status} on dims {part.first} to {part.last} of each head", style=COLOURS[part.status])
    witness = verdict.witness
    if witness is not None:
        text.append(f"\nmeasured: {witness.measures}", style="dim")
        for key, value in witness.by_hypothesis.items():
            text.append(f"\n  {value:.2g} where '{key}' alone is broken", style="dim")
        for name, value in witness.details.items():
            text.append(f"\n  {name}: {value:.2g}", style="dim")
    for note in verdict.notes:
        text.append(f"\n{note}", style="italic")
    return text
