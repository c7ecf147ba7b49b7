"""What verify found, for the terminal and as a picture."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minibeft.errors import cut
from minibeft.show.grid import Grid
from minibeft.verification.findings import Check, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"holds": "green", "VIOLATED": "bold red", "fails, as it must": "yellow", "not seen to fail": "yellow"}


def render(report: Report) -> Iterator[Grid | str]:
    """The norms of the biases, a row for each check, and one closing sentence."""
    yield f"{report.model}: a {report.family} model, {len(report.norms)} layers, run on {report.settings['input']}"
    if any(norm is not None for row in report.norms for norm in row.values()):
        yield norms_grid(report)
    else:
        yield "The model has no attention biases; zero ones were added for the checks."
    yield checks_grid(report)
    yield report.reason
    yield finding(report)


def finding(report: Report) -> str:
    """How the checks came out, in a sentence."""
    violated = sum(check.verdict == "VIOLATED" for check in report.checks)
    if violated:
        return f"{violated} of {len(report.checks)} checks are violated."
    return f"All {len(report.checks)} checks came out as the theory says."


def norms_grid(report: Report) -> Grid:
    """Norms by layer; a dash where the model has no such bias."""
    norms = [["–" if (norm := row[name]) is None else f"{norm:.4f}" for name in "qkv"] for row in report.norms]
    note = "– : absent; zero biases were added for the checks" if any("–" in row for row in norms) else ""
    rows = [(str(layer), *row) for layer, row in enumerate(norms)]
    return Grid("Norms of the attention biases", ("layer", "‖b_q‖", "‖b_k‖", "‖b_v‖"), rows, note)


def checks_grid(report: Report) -> Grid:
    """The worst layer of each check: what was measured, what the theorem and the rounding allow, their ratio."""
    header = ("", "statement", "measured", "allowed", "ratio", "verdict")
    note = "the worst layer of each; allowed is what the theorem and the rounding of the arithmetic leave"
    return Grid("What the theorems say, measured", header, [row_of(check) for check in report.checks], note, COLOURS)


def row_of(check: Check) -> tuple[str, ...]:
    """One check at its worst layer."""
    worst = check.worst
    where = f" (layer {worst.layer})" if worst.layer >= 0 else ""
    note = f"\n{check.note}" if check.note else ""
    numbers = (f"{worst.value:.1e}", f"{worst.allowed:.1e}", f"{worst.ratio:.2g}")
    return check.theorem, f"{check.what}{where}{note}", *numbers, check.verdict


# By verdict: the marker and its colour, and what it means.
MARKS = {
    "holds": ("o", "#0072B2", "measured, within what is allowed"),
    "fails, as it must": ("^", "#E69F00", "above it, where the theorem stops"),
    "not seen to fail": ("v", "#CC79A7", "within it, where the theorem stops"),
    "VIOLATED": ("X", "#D55E00", "VIOLATED"),
}
FLOOR = 1e-18  # where an exact zero is drawn


def draw(report: Report, figure: "Figure") -> None:
    """Each check on a line: a mark for the measured number, a bar for what the theorem and rounding allow; logarithmic,
    exact zeros at the left edge."""
    axes = figure.subplots()
    axes.set_title(f"{cut(report.model, 60)}: {finding(report)}", fontsize=10, loc="left")
    worst = [check.worst for check in report.checks]
    rows = range(len(worst))
    axes.plot([max(w.allowed, FLOOR) for w in worst], rows, "|", ms=9, color="grey", label="allowed")
    for verdict, (marker, colour, meaning) in MARKS.items():
        here = [row for row in rows if report.checks[row].verdict == verdict]
        if here:
            values = [max(worst[row].value, FLOOR) for row in here]
            axes.plot(values, here, marker, ls="", ms=5, color=colour, label=meaning)
    axes.set_xscale("log")
    axes.set_yticks(rows, [f"{check.theorem}  {cut(check.what, 60)}" for check in report.checks], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=2, fontsize=8)
