"""What each attention bias of a model can do, read off config.json alone: null, foldable, limited, active or unknown.

A verdict names the theorem that says so and the hypotheses that the configuration breaks, and carries a measurement on
a small random instance of the same attention. The weights of the model are not needed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minibeft.certificate.model_files import load_config
from minibeft.certificate.witness import Witness, key_witness, query_witness, value_witness
from minibeft.errors import BadInput
from minibeft.families import FAMILIES
from minibeft.families.attention import Site
from minibeft.families.reading import Reader, Unclear
from minibeft.theory.mechanisms import null_dims, reasons
from minibeft.theory.variants import AttentionSpec

Status = Literal["null", "foldable", "limited", "active", "unknown"]
STATUSES: tuple[Status, ...] = ("null", "foldable", "limited", "active", "unknown")


@dataclass(frozen=True)
class DimRange:
    """The verdict on dims first to last, both included, of each head."""

    first: int
    last: int
    status: Status


@dataclass(frozen=True)
class Verdict:
    """What one bias can do.

    theorem  the statement that says so (its name in the catalogue)
    broken   the hypotheses that this attention breaks, keys of theorems.HYPOTHESES
    present  whether the model has this bias; if not, the verdict is on one added to the projection
    dims     the verdict on parts of each head, where it is not the same for all
    """

    bias: str
    status: Status
    theorem: str
    reason: str
    broken: tuple[str, ...] = ()
    present: bool | None = None
    dims: tuple[DimRange, ...] = ()
    notes: tuple[str, ...] = ()
    witness: Witness | None = None


@dataclass(frozen=True)
class Finding:
    """The three verdicts, by "q", "k", "v", on one kind of attention of the model."""

    site: Site
    verdicts: dict[str, Verdict]


@dataclass(frozen=True)
class Certificate:
    """The verdicts on every kind of attention of a model; none, and why, when the configuration is not understood."""

    model: str
    model_type: str
    findings: tuple[Finding, ...] = ()
    unclear: str | None = None

    def verdict(self, bias: str) -> Verdict:
        """The verdict on a bias of the whole model: the one of the attention where it can do most."""
        found = [finding.verdicts[bias] for finding in self.findings]
        if not found:
            return Verdict(bias, "unknown", "", self.unclear or "")
        return max(found, key=lambda verdict: STATUSES.index(verdict.status))

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        findings = [
            {"site": f.site.name, "layers": f.site.layers, "verdicts": {b: asdict(v) for b, v in f.verdicts.items()}}
            for f in self.findings
        ]
        overall = {bias: self.verdict(bias).status for bias in "qkv"}
        top = {"model": self.model, "model_type": self.model_type, "unclear": self.unclear}
        return {**top, "verdicts": overall, "findings": findings}


def certify(model: str | Path | Mapping[str, Any], *, prefix: bool = False) -> Certificate:
    """The certificate of a folder, a config.json, a hub id, or a configuration's contents.

    prefix  the model is run with prefix tuning; found by itself where an adapter_config.json says so
    Raises BadInput where there is no configuration. One that is not understood is no error: it gets 'unknown'.
    """
    if isinstance(model, Mapping):
        config, where, adapter = dict(model), "config", None
    else:
        config, where, adapter = load_config(model)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise BadInput(f"{where}: model_type is missing; it says which family's attention the configuration describes")
    try:
        if model_type not in FAMILIES:
            raise Unclear(where, f"model_type {model_type} is not one of {', '.join(FAMILIES)}")
        sites = FAMILIES[model_type].sites(config, where)
        tokens = prefix_tokens(adapter) or int(prefix)
    except Unclear as why:
        return Certificate(where, model_type, unclear=why.why)
    if tokens:
        sites = [replace(site, spec=replace(site.spec, prefix=tokens)) if site.takes_prefix else site for site in sites]
    return Certificate(where, model_type, tuple(Finding(site, judge(site.spec, site.carries)) for site in sites))


ADAPTER = "adapter_config.json"
# Adapters by what they do to attention: some give every layer keys and values of its own, some add tokens or change
# what the projections compute, which no hypothesis forbids. Any other is not understood.
FOREIGN = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
INNOCENT = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "LORA", "ADALORA", "VERA", "LOHA", "LOKR", "BEFT"}
    | {"LN_TUNING", "TRAINABLE_TOKENS"}
)


def prefix_tokens(adapter: Mapping[str, Any] | None) -> int:
    """How many keys and values a PEFT adapter gives to every layer."""
    kind = None if adapter is None else str(adapter.get("peft_type"))
    if adapter is None or kind in INNOCENT:
        return 0
    if kind not in FOREIGN:
        raise Unclear(ADAPTER, f"the adapter's peft_type {kind} may change the attention")
    return Reader(adapter, ADAPTER).count("num_virtual_tokens", 1)


# Why a statement holds, where nothing breaks it.
SHIFT = {
    "k": "b_k adds the same number to every logit of a row, and a softmax ignores what its row shares",
    "v": "the weights of a row sum to one, so b_v shifts every output by the same vector, which b_o can carry",
    "q": "b_q adds one number to each key, the same for every query: a row of P moves by at most tanh(osc/4)",
}


def judge(spec: AttentionSpec, carries: bool = True) -> dict[str, Verdict]:
    """The verdicts on b_q, b_k and b_v under this attention; carries: a b_o is added after it, or could be."""
    value = judge_value(spec)
    if value.status == "foldable" and not carries:
        why = "b_v is one shift, but in this configuration no b_o is added that could carry it"
        value = replace(value, status="active", theorem="V1", reason=why, notes=absent(spec, "v"), witness=None)
    return {"q": judge_query(spec), "k": judge_key(spec), "v": value}


def absent(spec: AttentionSpec, bias: str) -> tuple[str, ...]:
    """The note on a bias that the model does not have."""
    return () if bias in spec.biases else (f"the model has no b_{bias}: the verdict is on one added to the projection",)


def judge_key(spec: AttentionSpec) -> Verdict:
    """K1, or K4 where a hypothesis is broken."""
    missing, null = reasons(spec, "k"), null_dims(spec)
    dims: tuple[DimRange, ...] = ()
    if 0 < len(null) < spec.head_size:
        dims = (DimRange(0, null.start - 1, "active"), DimRange(null.start, null.stop - 1, "null"))
    reason = "; ".join(missing.values()) or SHIFT["k"]
    return Verdict(
        "k",
        "active" if missing else "null",
        "K4" if missing else "K1",
        reason,
        tuple(missing),
        "k" in spec.biases,
        dims,
        absent(spec, "k"),
        key_witness(spec),
    )


def judge_value(spec: AttentionSpec) -> Verdict:
    """V2, or V5 where a hypothesis is broken; V6 on what b_v reaches beside b_o; dropout, which only training has."""
    missing, notes = reasons(spec, "v"), absent(spec, "v")
    if spec.dropout and not missing:
        notes += (f"dropout {spec.dropout:g} on P: exact at evaluation; in training the shift is b_v in expectation",)
    if not missing:
        shared = spec.kv_heads * spec.head_size
        reach = min(shared, spec.width)
        more = (
            f"b_o reaches all {spec.width} (V6)" if reach < spec.width else "as many as b_o (V4, if W_o has full rank)"
        )
        notes += (f"b_v reaches at most {reach} dimensions of the output, {more}",)
        if spec.kv_heads < spec.heads:
            notes += (f"folding repeats b_v over the {spec.heads // spec.kv_heads} query heads that share its head",)
        if "o" not in spec.biases:
            notes += ("the output projection has no bias: folding creates one",)
    reason = "; ".join(missing.values()) or SHIFT["v"]
    status, theorem = ("active", "V5") if missing else ("foldable", "V2")
    return Verdict("v", status, theorem, reason, tuple(missing), "v" in spec.biases, (), notes, value_witness(spec))


def judge_query(spec: AttentionSpec) -> Verdict:
    """Q3, or Q7's form of it where the shift of the logits is not the same for every query."""
    missing, notes = reasons(spec, "q"), absent(spec, "q")
    if spec.weighting in ("sigmoid", "relu"):
        return Verdict(
            "q", "active", "Q3", missing["softmax"], tuple(missing), "q" in spec.biases, (), notes, query_witness(spec)
        )
    if spec.differential is not None:
        notes += (f"for each of the two softmaxes; their difference moves by up to {1 + abs(spec.differential):g} ×",)
    if spec.sink is not None:
        notes += ("the sink is one more entry of the row, with logit shift 0 and value 0",)
    reason = SHIFT["q"]
    if missing:
        reason = "; ".join(missing.values()) + ": Q4 fails, the bound holds row by row"
    theorem = "Q7" if missing else "Q3"
    return Verdict("q", "limited", theorem, reason, tuple(missing), "q" in spec.biases, (), notes, query_witness(spec))
