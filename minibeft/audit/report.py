"""An audit for the terminal: what was found in one sentence, then a row for each kind of layer."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from minibeft.audit.audit import LayerReport, Report
from minibeft.show.grid import Grid

COLOURS = {
    "null": "dim", "partly null": "dim", "foldable": "cyan", "limited": "yellow", "active": "bold green",
    "not foldable": "bold green", "not measured": "bold red",
}  # fmt: skip


def render(report: Report) -> Iterator[Grid | str]:
    """The finding, the layers, the dead biases."""
    what = "small and random, from its configuration" if report.random else "with its weights"
    yield f"{report.model}: {report.model_type}, {what}, measured on transformers' model in float64"
    yield finding(report)
    yield Grid("", ("layers", "b_q", "b_k", "b_v"), [row(group) for group in alike(report.layers)], styles=COLOURS)
    yield dead(report)


def finding(report: Report) -> str:
    """The first sentence: what b_k does."""
    keys = [layer.found["k"] for layer in report.layers]
    without, count = (sum(getattr(key, part) for key in keys) for part in ("without", "coordinates"))
    null = sum(key.status == "null" for key in keys)
    layers = f"{len(keys)} attention layer{'s' * (len(keys) != 1)}"
    whys = sorted({key.why for key in keys if key.why and key.status != "not measured"})
    tail = f"; active {' and '.join(whys)}" if whys else ""
    unseen = sum(f.status == "not measured" for layer in report.layers for f in layer.found.values())
    more = f"; {unseen} verdicts were not measured" if unseen else ""
    return f"b_k is null in {null} of {layers} ({without} of {count} coordinates){tail}{more}."


def alike(layers: list[LayerReport]) -> list[list[LayerReport]]:
    """Layers whose names differ in numbers alone and whose verdicts are equal."""
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for layer in layers:
        verdicts = [(f.status, f.why, f.without, f.coordinates) for f in layer.found.values()]
        groups.setdefault((re.sub(r"\d+", "#", layer.name), *verdicts), []).append(layer)
    return list(groups.values())


def row(group: list[LayerReport]) -> tuple[str, ...]:
    """One row: the names, and the verdicts with what they rest on."""
    names = list(dict.fromkeys(layer.name for layer in group))
    return (title(names, len(group)), *("\n".join(cell(group, bias)) for bias in "qkv"))


def title(names: list[str], count: int) -> str:
    """encoder.layer.0–5.attention.self.key; × n where the same parameters serve several layers."""
    numbers = [re.findall(r"\d+", name) for name in names]
    ranges = [sorted({int(n) for n in column}) for column in zip(*numbers, strict=True)]
    texts = iter([spans(column) for column in ranges])
    whole = re.sub(r"\d+", lambda _: next(texts), names[0])
    return whole if count == len(names) else f"{whole}\n{count} uses"


def spans(numbers: list[int]) -> str:
    """0–5, or 0,4,8."""
    runs = [[numbers[0]]]
    for before, after in pairwise(numbers):
        runs[-1].append(after) if after == before + 1 else runs.append([after])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def cell(group: list[LayerReport], bias: str) -> Iterator[str]:
    """The verdict; how many coordinates it holds for; why; and the norms of that bias over these layers."""
    found = group[0].found[bias]
    yield found.status
    if found.without:
        yield f"{found.without} of {found.coordinates}"
    if found.why:
        yield found.why
    norms = [layer.biases[bias]["norm"] for layer in group if layer.biases[bias]]
    low, high = (f"{end(norms, default=0.0):.2g}" for end in (min, max))
    yield f"norm {low if low == high else f'{low} to {high}'}" if norms else "no bias"


def dead_biases(report: Report) -> dict[str, Any]:
    """The key biases that do nothing in every use, as tensors and entries; those of b_q, b_k and b_v that are zero."""
    uses: dict[str, list[LayerReport]] = {}
    zero: set[str] = set()
    for layer in report.layers:
        for bias, found in layer.biases.items():
            if found and found["zero"] == found["entries"]:
                zero |= {f"b_{bias} of {layer.name}"}
        for name in layer.biases["k"].get("names", []):
            uses.setdefault(name, []).append(layer)
    dead = {name: layers for name, layers in uses.items() if all(x.found["k"].status == "null" for x in layers)}
    return {
        "dead": sorted(dead),
        "dead_entries": sum(x[0].biases["k"]["entries"] // len(x[0].biases["k"]["names"]) for x in dead.values()),
        "zero": sorted(zero),
    }


def dead(report: Report) -> str:
    """Dead and zero biases in one line."""
    found = dead_biases(report)
    what = (
        f"{len(found['dead'])} key biases ({found['dead_entries']:,} entries) do nothing" if found["dead"] else "none"
    )
    zero = "" if report.random else f"; zero in the weights: {len(found['zero']) or 'none'}"
    return f"Dead biases: {what}{zero}."
