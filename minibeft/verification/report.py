"""What verify found, for the terminal."""

from collections.abc import Iterator

from minibeft.show.grid import Grid
from minibeft.verification.findings import Check, Report

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
    violated = sum(check.verdict == "VIOLATED" for check in report.checks)
    if violated:
        yield f"{violated} of {len(report.checks)} checks are violated."
    else:
        yield f"All {len(report.checks)} checks came out as the theory says."


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
