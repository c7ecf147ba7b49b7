"""What stands behind each statement: its derivation, its theorems in Coq, its test, its code, and its level.

The one place that says so: `minibeft prove --list`, `make formal`, proofs/TRUST.md and the README read it.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

LEVELS: dict[str, str] = {
    "formal": "the kernel of Coq has checked it, for every size",
    "every size": "sympy has, by normal forms of sums over n tokens, m keys and d dims",
    "fixed sizes": "sympy has, with the sizes put in as numbers",
    "tried": "it held on the instances that were drawn",
    "measured": "it is an observation on one model",
}


@dataclass(frozen=True)
class Evidence:
    """Where to look: modules of proofs/, tests/ and minibeft/ without their ending, files of proofs/formal/ with the
    endings of their theorems' names. `left` is what the theorems in Coq leave to a lower level."""

    derivation: str
    test: str
    code: str
    formal: dict[str, str] = field(default_factory=dict)
    level: str = "formal"
    left: str = ""

    def theorems(self, name: str) -> list[str]:
        """The statement's theorems in Coq: {"KeyBias": "layer"} of K1 is KeyBias.K1_layer."""
        return [f"{file}.{name}_{end}" for file, ends in self.formal.items() for end in ends.split()]

    def places(self) -> list[PurePosixPath]:
        """The files in which the statement is derived, proved in Coq, tested and computed."""
        found = [("proofs", self.derivation, ".py"), *(("proofs/formal", file, ".v") for file in self.formal)]
        found += [("tests", self.test, ".py"), ("minibeft", self.code, ".py")]
        return [PurePosixPath(folder, module + ending) for folder, module, ending in found if module]


KEYS, SCOPE, VALUES, QUERIES, NORMS, GAUGE = (
    f"theory/test_{room}" for room in ("key_bias", "key_bias_scope", "value_bias", "query_bias", "layer_norm", "gauge")
)
NATS, CACHE = "theory/test_query_slope", "theory/test_key_cache"
ELSEWHERE, READERS, PRICE = "theory/test_key_elsewhere", "theory/test_value_readers", "theory/test_query_price"
STATEMENTS, SLOPE, REPARAM, IMPORTANCE = (
    "theory/statements",
    "theory/query_slope",
    "training/reparam",
    "training/importance",
)

EVIDENCE: dict[str, Evidence] = {
    "K1": Evidence("key_bias", KEYS, STATEMENTS, {"KeyBias": "no_effect layer dropout"}),
    "K2": Evidence("training", KEYS, STATEMENTS, {"KeyBias": "row_sum no_gradient adam_rests"}),
    "K3": Evidence("training", KEYS, "training/train", {"Training": "same_trajectory same_outputs alone"}),
    "K4": Evidence(
        "key_scope",
        SCOPE,
        "theory/bounds",
        {"KeyBias": "rotary rotary_matters foreign_keys sink", "QueryBias": "rounding"},
        left="that a row's rounding errors stay within ε₀, ε₁ and γ_2S max|V|: proofs/rounding.py, proofs/measured.py",
    ),
    "K5": Evidence("drift", KEYS, IMPORTANCE, {"KeyBias": "step large_noise small_noise"}),
    "K6": Evidence("drift", "training/test_train", "reproduce/same", level="measured"),
    "K7": Evidence("drift", "verification/test_verify", "verification/verify", level="measured"),
    "K8": Evidence("layer_norm", NORMS, "theory/norms", {"LayerNorm": "direction hidden no_gradient"}),
    "K9": Evidence("key_cache", CACHE, STATEMENTS, {"KeyBias": "cached_keys"}),
    "K10": Evidence("key_cache", CACHE, STATEMENTS, {"Rotary": "waves bound"}),
    "K11": Evidence("key_elsewhere", ELSEWHERE, "theory/variants", {"Elsewhere": "own_sink gate sigmoid"}),
    "K12": Evidence("key_elsewhere", ELSEWHERE, "theory/instance", {"Elsewhere": "mean"}),
    "V1": Evidence("value_bias", VALUES, STATEMENTS, {"ValueBias": "shift weights_that_sum_to_one"}),
    "V2": Evidence("value_bias", VALUES, STATEMENTS, {"ValueBias": "fold"}),
    "V3": Evidence("value_bias", VALUES, STATEMENTS, {"ValueBias": "sum output_bias gradient"}),
    "V4": Evidence("value_bias", VALUES, "certificate/certify", {"ValueBias": "reach", "Ranks": "same_functions"}),
    "V5": Evidence("value_scope", VALUES, "certificate/certify", {"ValueBias": "dropout sink difference blind"}),
    "V6": Evidence("value_bias", VALUES, "certificate/certify", {"Ranks": "reached dimension attained identifiable"}),
    "V7": Evidence("layer_norm", NORMS, "theory/norms", {"LayerNorm": "layer_norm mean output_bias output_matrix"}),
    "V8": Evidence("readers", READERS, STATEMENTS, {"Ranking": "shift ranking auc query_reverses"}),
    "V9": Evidence("latent", READERS, STATEMENTS, {"Latent": "keys shift fold"}),
    "Q1": Evidence("query_bias", QUERIES, STATEMENTS, {"QueryBias": "one_number_a_key part_that_moves"}),
    "Q2": Evidence("query_bias", QUERIES, STATEMENTS, {"QueryBias": "convex half_spaces"}),
    "Q3": Evidence("query_bound", QUERIES, STATEMENTS, {"QueryBias": "bound any_logits attained output"}),
    "Q4": Evidence("query_bias", QUERIES, STATEMENTS, {"QueryBias": "blind_to_who_asks"}),
    "Q5": Evidence(
        "query_bias", QUERIES, STATEMENTS, {"QueryBias": "null_directions equal_values", "Ranks": "dimension"}
    ),
    "Q6": Evidence("query_limits", QUERIES, STATEMENTS, {"QueryBias": "saturation limit"}),
    "Q7": Evidence("query_limits", QUERIES, STATEMENTS, {"QueryBias": "rotary not_blind hull bound"}),
    "Q8": Evidence(
        "query_gradient", NATS, "theory/query_slope", {"Covariance": "covariance gruss bound loss attained"}
    ),
    "Q9": Evidence("query_gradient", NATS, STATEMENTS, {"Divergence": "divergence any_logits"}),
    "Q10": Evidence("query_price", PRICE, STATEMENTS, {"Price": "needed enough"}),
    "Q11": Evidence(
        "query_reach",
        PRICE,
        STATEMENTS,
        {"Reach": "inside once"},
        left="that every point inside is reached: a minimum that exists by Weierstrass's theorem, which proofs/ cites, "
        "and that Newton's method finds",
    ),
    "R1": Evidence(
        "reparametrised",
        "training/test_reparam",
        REPARAM,
        {"Ranks": "lora_reach lora_start", "Reparam": "vera_zero vera_only_zero vera_dimension vera1d dora_start"},
        left="VeRA's k + c − 1 as a dimension; Coq has that one of the k + c numbers can be 1",
    ),
    "R2": Evidence(
        "reparametrised", "training/test_reparam", REPARAM, {"Reparam": "no_effect no_gradient shift chain_rule"}
    ),
    "I1": Evidence(
        "importance",
        "theory/test_importance",
        IMPORTANCE,
        {"Importance": "symmetric scale rotation zero acute between"},
    ),
    "I2": Evidence("importance", "theory/test_importance", IMPORTANCE, {"Importance": "metric scale not_invariant"}),
    "I3": Evidence("importance", "theory/test_importance", IMPORTANCE, {"Importance": "zero bound joint_bound"}),
    "G1": Evidence(
        "gauge",
        GAUGE,
        "theory/gauge",
        {"Decay": "key_bias value_bias", "Gauge": "query_key value_output"},
        left="query heads that share keys and values, in the last two: sympy, for every size",
    ),
    "G2": Evidence(
        "gauge",
        GAUGE,
        "theory/gauge",
        {"Gauge": "query_key value_output"},
        left="query heads that share keys and values, and gradient flow: sympy, for every size",
    ),
}

FORMAL: dict[str, str] = {theorem: name for name, evidence in EVIDENCE.items() for theorem in evidence.theorems(name)}
