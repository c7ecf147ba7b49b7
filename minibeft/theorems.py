"""The catalogue: every statement by name, with hypotheses, claim and scope; proofs, certify, verify and tests read it.

A hypothesis has a short key. The same key names its counterexample in `proofs/`, its negative twin in `tests/`, and the
reason that `certify` gives when a configuration breaks it.
"""

from dataclasses import dataclass

BEFT = "BEFT, arXiv 2509.15974"
NAMAZIFAR = "Namazifar et al., arXiv 2302.08626"
CORDONNIER = "Cordonnier et al., arXiv 2006.16362"

HYPOTHESES: dict[str, str] = {
    # the scores
    "unrotated": "no rotary positions turn q and k after their biases",
    "no-relative-vectors": "no vector of the distance i − j multiplies q or k in the logits (BERT's relative_key)",
    "no-qk-norm": "q and k are not normalised after their biases",
    "no-softcap": "the logits are not passed through a nonlinearity (tanh soft-capping) before the softmax",
    "softmax": "the weights are a softmax over the keys (not sigmoid, ReLU or linear attention)",
    "no-sink": "no sink takes part in the softmax (attention sink, softmax-off-by-one)",
    "no-foreign-keys": "every key in the softmax carries b_k (no prefix keys, add_bias_kv, add_zero_attn)",
    "exact": "arithmetic is exact",
    # the values
    "rows-sum-to-one": "each row of the weights that multiply V sums to one (no dropout on P, no λ-difference)",
    "visible-key": "each row sees at least one key",
    "raw-values": "values are not normalised after their bias",
    "ungated": "the attention output is not multiplied by a gate",
    "no-foreign-values": "every value in the mixture carries b_v (no prefix values, add_bias_kv, add_zero_attn)",
    # training
    "no-weight-decay": "the optimiser does not decay the weights",
    "same-randomness": "both runs start from the same head and draw the same data order and dropout masks",
    # algebra
    "full-rank-output": "W_o (C × HD) has rank C, and no key-value head is shared (no GQA)",
    "unique-maximiser": "one key alone maximises k_j·b_q",
    "nonzero": "neither bias is the zero vector",
}


@dataclass(frozen=True)
class Theorem:
    """One statement of the theory. `needs` are the keys of its hypotheses in HYPOTHESES, each of them necessary."""

    name: str
    title: str
    claim: str
    needs: tuple[str, ...] = ()
    scope: str = ""
    source: str = "minibeft"
