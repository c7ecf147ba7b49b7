"""What inspect, simplify, merge and quantkeys found, for the terminal, and quantkeys as a picture."""

from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from minibeft.show.grid import Grid
from minibeft.surgery.equivalence import Agreement
from minibeft.surgery.inspect import Biases, Inspection
from minibeft.surgery.merge import Merged
from minibeft.surgery.quantkeys import Study
from minibeft.surgery.simplify import Simplified

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Iterator[Grid | str]


def render_inspection(found: Inspection) -> Lines:
    """One row per bias, then what each verdict lets simplify do."""
    title = f"{found.model}: {found.certificate.model_type}, {found.parameters:,} parameters"
    header = ("term", "layers", "size", "‖b‖", "share", "verdict", "name")
    yield Grid(title, header, [bias_row(found, biases) for biases in found.biases])
    yield from (f"simplify, {step}" for step in found.steps)


def bias_row(found: Inspection, b: Biases) -> tuple[str, ...]:
    """The biases of one name in all layers."""
    verdict = found.certificate.verdict(b.term).status if b.term in ("q", "k", "v") else ""
    norms = " – ".join(f"{norm:.3g}" for norm in sorted({min(b.norms), max(b.norms)}))
    return b.term, str(len(b.norms)), f"{b.shape[0]:,}", norms, f"{b.share:.3%}", verdict, b.name


def render_simplified(done: Simplified) -> Lines:
    """The steps, what was removed, and the verification."""
    yield from map(str, done.steps)
    size = f"{done.bytes_removed:,} bytes gone" if done.bytes_removed else "no bytes gone, the format wants the tensors"
    yield f"{done.zeroed:,} parameters set to zero, {done.dropped:,} dropped, {size}"
    yield f"b_o' was rounded by at most {done.rounding:.2g}"
    yield from render_agreement(done.agreement)


def render_merged(done: Merged) -> Lines:
    """What rounding did to the adapter, and the verification."""
    kept = "; what was lost is kept in merge/residual.safetensors" if done.residual else ""
    yield (
        f"{done.entries:,} entries changed; in the file's type {done.lost:,} of them are what they were before, and "
        f"{done.rounded:,} are not exactly b + Δ{kept}; {done.added} tensors are new"
    )
    yield from render_agreement(done.agreement)


def render_agreement(agreement: Agreement) -> Lines:
    """How far the two models' outputs lie apart."""
    for what, d in (("unrounded", agreement.exact), ("as written", agreement.written)):
        yield (
            f"verified on {agreement.sentences} {agreement.inputs}, {what}, in {d.dtype}: outputs up to "
            f"{agreement.largest:.3g} differ by {d.value:.2g}, rounding explains {d.allowed:.2g}"
        )


def render_study(study: Study) -> Lines:
    """What the study found in a sentence; then one row for each quantiser, width and shift: the root mean square error
    of K, the total variation of P, and the relative error of O with its gain against no shift."""
    yield finding(study)
    zero = {(row.quantiser, row.bits): row.output for row in study.rows if row.shift == "zero"}
    rows = []
    for row in study.rows:
        was = zero[row.quantiser, row.bits]
        gain = "" if row.shift == "zero" or not was else f"{1 - row.output / was:z.1%}"
        numbers = f"{row.key:.4f}", f"{row.weights:.4f}", f"{row.output:.4f}", gain
        rows.append((row.quantiser, str(row.bits), row.shift, *numbers))
    title = f"{study.model}: shifts found on {study.calibration} sentences, measured on {study.evaluation} others"
    yield Grid(title, ("quantiser", "bits", "shift", "error K", "TV of P", "error O", "gain"), rows)


def draw_study(study: Study, figure: "Figure") -> None:
    """For each quantiser and width the error of the output that each shift leaves, as a share of that without one."""
    axes = figure.subplots()
    error = {(row.quantiser, row.bits, row.shift): row.output for row in study.rows}
    groups = [key[:2] for key, was in error.items() if key[2] == "zero" and was]
    shifts = list(dict.fromkeys(key[2] for key in error if key[2] != "zero"))
    for at, shift in enumerate(shifts):
        shares = [error[(*group, shift)] / error[(*group, "zero")] for group in groups]
        axes.bar([n + 0.25 * (at - (len(shifts) - 1) / 2) for n in range(len(groups))], shares, 0.22, label=shift)
    axes.axhline(1, color="grey", lw=1)
    axes.set_xticks(
        range(len(groups)), [f"{name}\n{bits} bits".replace(", ", "\n") for name, bits in groups], fontsize=8
    )
    axes.set_ylabel("error of O, as a share of that without a shift", fontsize=8)
    axes.set_title("\n".join(wrap(finding(study), 100)), fontsize=9, loc="left")
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": len(shifts)}
    axes.legend(title="shift of the cached keys", fontsize=8, title_fontsize=8, **where)


def finding(study: Study) -> str:
    """Where a shift takes the largest share off the output's error, and how much."""
    error = {(row.quantiser, row.bits, row.shift): row.output for row in study.rows}
    zero = {key: error[(*key[:2], "zero")] for key in error if key[2] != "zero"}
    kept = {key: error[key] / was for key, was in zero.items() if was}
    quantiser, bits, shift = best = min(kept, key=kept.__getitem__, default=("", 0, ""))
    if kept.get(best, 1) >= 1:
        return "No shift of the cached keys takes anything off the output's error here."
    was, now = error[quantiser, bits, "zero"], error[best]
    return (
        f"A shift of the cached keys ({shift}) takes up to {1 - kept[best]:.0%} off the output's error: from {was:.4f} "
        f"to {now:.4f} at {bits} bits ({quantiser}). It changes nothing else."
    )
