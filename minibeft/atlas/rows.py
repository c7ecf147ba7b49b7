"""One model type: its audit, certify's verdict on the same configuration, and what is dead in its default size."""

import re
from typing import Any

import torch

from minibeft.audit.audit import Report, audit_config
from minibeft.audit.measure import UNSEEN
from minibeft.audit.report import dead_biases
from minibeft.audit.subject import configuration, quietly
from minibeft.certificate.certify import certify
from minibeft.errors import BadInput

Row = dict[str, Any]


def row(kind: str, seed: int) -> Row:
    """The audit of a model type as a row, with its configuration; where there is none, `unaudited` says why."""
    try:
        report = audit_config({"model_type": kind}, seed)
    except BadInput as error:
        return {"type": kind, "unaudited": str(error).removeprefix("config: cannot be audited: ")}
    return row_of(kind, report)


def row_of(kind: str, report: Report) -> Row:
    """The row of an audit."""
    keys, values = ([layer.found[bias] for layer in report.layers] for bias in "kv")
    largest = [f.largest_null for f in keys if f.largest_null is not None]
    smallest = [f.smallest_active for f in keys if f.smallest_active is not None]
    return {
        "type": kind,
        "layers": len(report.layers),
        "k": overall([f.status for f in keys]),
        "k_without": [sum(f.without for f in keys), sum(f.coordinates for f in keys)],
        "k_why": whys(keys),
        "k_bias": sum(bool(layer.biases["k"]) for layer in report.layers),
        "v": overall([f.status for f in values]),
        "v_why": whys(values),
        "unmeasured": sum(f.status == UNSEEN for layer in report.layers for f in layer.found.values()),
        "largest_null": max(largest, default=None),
        "smallest_active": min(smallest, default=None),
        "dead": dead(kind, report),
        "kinds": {bias: sorted({layer.found[bias].status for layer in report.layers} - {UNSEEN}) for bias in "kv"},
        "config": report.config,
    }


def overall(found: list[str]) -> str:
    """One verdict for all layers: the one they share, or partly."""
    kinds = set(found) - {UNSEEN} or {UNSEEN}
    if len(kinds) == 1:
        return kinds.pop()
    return "partly null" if kinds & {"null", "partly null"} else "partly foldable"


def whys(found: list[Any]) -> str:
    """Each reason once."""
    return "; ".join(sorted({f.why for f in found if f.why and f.status != UNSEEN}))


def compared(found: Row) -> Row:
    """The row with certify's verdicts on the same configuration, and whether audit's verdicts are among certify's."""
    if "unaudited" in found:
        return found
    rest = {key: value for key, value in found.items() if key not in ("kinds", "config")}
    certificate = certify(found["config"])
    if certificate.unclear is not None:
        return rest | {"certify": "unknown", "agrees": None}
    verdicts = [finding.verdicts for finding in certificate.findings]
    keys = {"partly null" if each["k"].dims else each["k"].status for each in verdicts}
    values = {"not foldable" if each["v"].status == "active" else each["v"].status for each in verdicts}
    agrees = set(found["kinds"]["k"]) <= keys and set(found["kinds"]["v"]) <= values
    return rest | {"certify": f"{overall(sorted(keys))}, {overall(sorted(values))}", "agrees": agrees}


def dead(kind: str, report: Report) -> int:
    """How many entries of key biases do nothing in a model of the default size.

    Counted are the tensors whose name is, up to its numbers, that of a bias found dead in the small model.
    """
    shares = {
        re.sub(r"\d+", "#", name): layer.biases["k"]["share"]
        for layer in report.layers
        for name in layer.biases["k"].get("names", [])
        if name in dead_biases(report)["dead"]
    }
    if not shares:
        return 0
    with quietly(), torch.device("meta"):
        try:
            model = report.kind(configuration({"model_type": kind}))
        except Exception:
            return 0
    sizes = [(re.sub(r"\d+", "#", name), p.numel()) for name, p in model.named_parameters()]
    return round(sum(size * shares[name] for name, size in sizes if name in shares))
