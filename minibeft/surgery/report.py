"""What inspect, simplify, merge and quantkeys found, as tables and lines for the terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from minibeft.surgery.equivalence import Agreement
from minibeft.surgery.inspect import Inspection
from minibeft.surgery.merge import Merged
from minibeft.surgery.quantkeys import Study
from minibeft.surgery.simplify import Simplified


def columns(title: str, *names: str) -> Table:
    """A table of short entries, all but the first flush right."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def render_inspection(found: Inspection) -> Iterator[RenderableType]:
    """One row a bias, then what each verdict lets simplify do."""
    title = f"{found.model}: {found.certificate.model_type}, {found.parameters:,} parameters"
    table = columns(title, "term", "layers", "size", "‖b‖", "share", "verdict")
    table.add_column("name", overflow="fold")
    for b in found.biases:
        verdict = found.certificate.verdict(b.term).status if b.term in ("q", "k", "v") else ""
        norms = " – ".join(f"{norm:.3g}" for norm in sorted({min(b.norms), max(b.norms)}))
        table.add_row(b.term, str(len(b.norms)), f"{b.shape[0]:,}", norms, f"{b.share:.3%}", verdict, b.name)
    yield table
    for step in found.steps:
        yield Text(f"simplify, {step}")


def render_simplified(done: Simplified) -> Iterator[RenderableType]:
    """The steps, what was removed, and the verification."""
    for step in done.steps:
        yield Text(str(step))
    size = f"{done.bytes_removed:,} bytes gone" if done.bytes_removed else "no bytes gone, the format wants the tensors"
    yield Text(f"{done.zeroed:,} parameters set to zero, {done.dropped:,} dropped, {size}")
    yield Text(f"b_o' was rounded by at most {done.rounding:.2g}")
    yield from render_agreement(done.agreement)


def render_merged(done: Merged) -> Iterator[RenderableType]:
    """What rounding did to the adapter, and the verification."""
    kept = "; what was lost is kept in merge/residual.safetensors" if done.residual else ""
    yield Text(
        f"{done.entries:,} entries changed; in the file's type {done.lost:,} of them are what they were before, and "
        f"{done.rounded:,} are not exactly b + Δ{kept}; {done.added} tensors are new"
    )
    yield from render_agreement(done.agreement)


def render_agreement(agreement: Agreement) -> Iterator[RenderableType]:
    """How far the two models' outputs lie apart."""
    for what, d in (("unrounded", agreement.exact), ("as written", agreement.written)):
        yield Text(
            f"verified on {agreement.sentences} sentences, {what}, in {d.dtype}: outputs up to {agreement.largest:.3g} "
            f"differ by {d.value:.2g}, rounding explains {d.allowed:.2g}"
        )


def render_study(study: Study) -> Iterator[RenderableType]:
    """One row for each quantiser, width and shift: the root mean square error of K, the total variation of P, and the
    relative error of O with its gain against no shift."""
    dims = f"{study.dims} of {study.head_size} dims of each head are free to shift"
    title = f"{study.model}: {dims}; found on {study.calibration} sentences, measured on {study.evaluation} others"
    table = columns(title, "quantiser", "bits", "shift", "error K", "TV of P", "error O", "gain")
    zero = {(row.quantiser, row.bits): row.output for row in study.rows if row.shift == "zero"}
    for row in study.rows:
        gain = "" if row.shift == "zero" else f"{1 - row.output / zero[row.quantiser, row.bits]:z.1%}"
        numbers = f"{row.key:.4f}", f"{row.weights:.4f}", f"{row.output:.4f}", gain
        table.add_row(row.quantiser, str(row.bits), row.shift, *numbers, end_section=row.shift == "best")
    yield table
