"""What verify found, as tables for the terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from minibeft.verification.findings import Report

COLOURS = {"holds": "green", "VIOLATED": "bold red", "fails, as it must": "yellow", "not seen to fail": "yellow"}


def render(report: Report) -> Iterator[RenderableType]:
    """The norms of the biases, a row for each check, and one closing sentence."""
    yield Text(f"{report.model}: a {report.family} model, {len(report.norms)} layers", style="bold")
    yield norms_table(report)
    yield checks_table(report)
    yield Text(report.reason)
    violated = sum(check.verdict == "VIOLATED" for check in report.checks)
    if violated:
        yield Text(f"{violated} of {len(report.checks)} checks are violated.", style="bold red")
    else:
        yield Text(f"All {len(report.checks)} checks came out as the theory says.", style="bold green")


def norms_table(report: Report) -> Table:
    """Norms by layer; a dash where the model has no such bias."""
    table = Table(title="Norms of the attention biases", min_width=40)
    table.add_column("layer", justify="right")
    for name in "qkv":
        table.add_column(f"‖b_{name}‖", justify="right")
    for index, row in enumerate(report.norms):
        table.add_row(str(index), *("–" if (n := row[name]) is None else f"{n:.4f}" for name in "qkv"))
    if any(value is None for row in report.norms for value in row.values()):
        table.caption = "– : absent; zero biases were added for the checks"
    return table


def checks_table(report: Report) -> Table:
    """The worst layer of each check: what was measured, what the theorem and the rounding allow, their ratio."""
    table = Table(
        title="What the theorems say, measured",
        caption="the worst layer of each; allowed is what the theorem and the rounding of the arithmetic leave",
    )
    table.add_column("", style="bold")
    table.add_column("statement", ratio=1)
    for name in ("measured", "allowed", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in report.checks:
        worst = check.worst
        where = "" if worst.layer < 0 else f" [dim](layer {worst.layer})[/dim]"
        note = f"\n[dim]{check.note}[/dim]" if check.note else ""
        numbers = (f"{worst.value:.1e}", f"{worst.allowed:.1e}", f"{worst.ratio:.2g}")
        verdict = Text(check.verdict, style=COLOURS[check.verdict])
        table.add_row(check.theorem, f"{check.what}{where}{note}", *numbers, verdict)
    return table
