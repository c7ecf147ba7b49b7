"""A certificate for the terminal: a table for each kind of attention, with the reasons and the measurements."""

from collections.abc import Iterator

from minibeft.certificate.certify import Certificate, Finding, Verdict
from minibeft.show.grid import Grid

DOES = {
    "null": "b_{} does nothing",
    "foldable": "b_{} only shifts the output, so the bias after W_o can carry it",
    "limited": "b_{} has a bounded effect",
    "active": "b_{} has an effect",
    "unknown": "what b_{} does is unknown",
}
COLOURS = {"null": "dim", "foldable": "cyan", "limited": "yellow", "active": "bold green", "unknown": "bold red"}


def render(certificate: Certificate) -> Iterator[Grid | str]:
    """What each bias does in a sentence, then the verdicts; or why there are none."""
    if certificate.unclear is not None:
        yield f"{certificate.model}: {certificate.model_type}, unknown: {certificate.unclear}"
        return
    yield f"In this {certificate.model_type} model {'; '.join(does(certificate, bias) for bias in 'kvq')}."
    yield certificate.model
    yield from map(verdicts_grid, alike(certificate))
    yield (
        "Measured in float64 on a small random layer with the same attention; allowed is what the statement and "
        "rounding leave. A number above it is a counterexample."
    )


def does(certificate: Certificate, bias: str) -> str:
    """What a bias does; where kinds of attention differ, in how many layers of which."""
    groups: dict[str, list[str]] = {}
    for finding in certificate.findings:
        verdict = finding.verdicts[bias]
        parts = " on some entries of each head" if len({part.status for part in verdict.dims}) > 1 else ""
        place = f"{finding.site.name}, {len(finding.site.layers)} layer{'s' * (len(finding.site.layers) > 1)}"
        groups.setdefault(DOES[verdict.status].format(bias) + parts, []).append(place)
    if len(groups) == 1:
        return next(iter(groups))
    return ", ".join(f"{what} ({'; '.join(places)})" for what, places in groups.items())


def alike(certificate: Certificate) -> list[list[Finding]]:
    """The findings grouped by equal verdicts, so that the same table is not printed twice."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in certificate.findings:
        key = tuple((v.status, v.broken, v.dims, v.notes, v.present) for v in finding.verdicts.values())
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def verdicts_grid(group: list[Finding]) -> Grid:
    """One row per bias. Numbers are those of the group's first kind of attention."""
    title = "; ".join(f"{f.site.name} ({layer_range(f.site.layers)})" for f in group)
    rows = []
    for verdict in group[0].verdicts.values():
        found = verdict.witness
        numbers = ("", "") if found is None else (f"{found.value:.2g}", f"{found.allowed:.2g}")
        rows.append((f"b_{verdict.bias}", verdict.status, verdict.theorem, why(verdict), *numbers))
    return Grid(title, ("bias", "verdict", "by", "why", "measured", "allowed"), rows, styles=COLOURS)


def layer_range(layers: tuple[int, ...]) -> str:
    """layers 0 to 11; layers 0, 2, …, 24; layer 3."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    step = layers[1] - layers[0]
    if layers != tuple(range(layers[0], layers[-1] + 1, step)):
        return "layers " + ", ".join(map(str, layers))
    return f"layers {layers[0]} to {layers[-1]}" if step == 1 else f"layers {layers[0]}, {layers[1]}, …, {layers[-1]}"


def why(verdict: Verdict) -> str:
    """The reason; then the verdict on parts of a head, what each broken hypothesis costs alone, and the notes."""
    lines, witness = [verdict.reason], verdict.witness
    lines += [f"{part.status} on dims {part.first} to {part.last} of each head" for part in verdict.dims]
    if witness is not None:
        lines.append(f"measured: {witness.measures}")
        lines += [f"  {value:.2g} where '{key}' alone is broken" for key, value in witness.by_hypothesis.items()]
        lines += [f"  {name}: {value:.2g}" for name, value in witness.details.items()]
    return "\n".join([*lines, *verdict.notes])
