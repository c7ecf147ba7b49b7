"""The catalogue: every statement by name, with hypotheses, claim and scope; proofs, certify, verify and tests read it.

A hypothesis has a short key. The same key names its counterexample in `proofs/`, its negative twin in `tests/`, and the
reason that `certify` gives when a configuration breaks it. Arithmetic is exact throughout; the key "exact" is listed
where rounding does more than perturb the statement: where it turns 'no effect' into an effect.
"""

from dataclasses import dataclass

from minibeft.theory.evidence import EVIDENCE, Evidence

BEFT = "BEFT, arXiv 2509.15974"
NAMAZIFAR = "Namazifar et al., arXiv 2302.08626"
CORDONNIER = "Cordonnier et al., arXiv 2006.16362"
COHEN = "Cohen and Fausti, arXiv 2309.02413"

HYPOTHESES: dict[str, str] = {
    # the scores
    "unrotated": "no rotary positions turn q and k after their biases",
    "no-relative-vectors": "no vector of the distance i − j multiplies q or k in the logits (BERT's relative_key)",
    "no-qk-norm": "q and k are not normalised after their biases",
    "no-softcap": "the logits are not passed through a nonlinearity (tanh soft-capping) before the softmax",
    "softmax": "the weights are a softmax over the keys (not sigmoid, ReLU or linear attention)",
    "identity-features": "linear attention weighs a key by q·k itself, without a feature map",
    "no-sink": "no sink takes part in the softmax (attention sink, softmax-off-by-one)",
    "no-foreign-keys": "every key in the softmax carries b_k (no prefix keys, add_bias_kv, add_zero_attn)",
    "layer-norm": "the stream is read through a LayerNorm, which takes off the mean (not through an RMSNorm)",
    "exact": "arithmetic is exact",
    "in-range": "nothing overflows or underflows",
    # the values
    "rows-sum-to-one": "weights of a row that sees a key sum to one, sink included (no dropout, λ-difference, sigmoid)",
    "visible-key": "each row sees at least one key",
    "raw-values": "values are not normalised after their bias",
    "ungated": "the attention output is not multiplied by a gate",
    "no-foreign-values": "every value in the mixture carries b_v (no prefix values, add_bias_kv, add_zero_attn)",
    "raw-output": "W_o reads the attention output itself (no norm lies between them)",
    # training
    "no-weight-decay": (
        "no weight decay; applied apart from the gradients, as in AdamW, it moves b_k (K2) and nothing else (K3)"
    ),
    "same-randomness": "both runs start from the same head and draw the same data order and dropout masks",
    "adaptive": "the optimiser divides each gradient by its own running size (Adam)",
    "own-parameters": "the parameters that a bias is made of are used nowhere else",
    # algebra
    "full-rank-output": "W_o E has rank C, E repeating each key-value head over its group (E = 1 without GQA)",
    "unique-maximiser": "one key alone maximises k_j·b_q",
    "nonzero": "neither bias is the zero vector",
}

QUERY = ("unrotated", "no-relative-vectors", "no-qk-norm", "no-softcap")
SCORES = (*QUERY, "softmax", "no-sink", "no-foreign-keys", "exact")
VALUES = ("no-sink", "rows-sum-to-one", "visible-key", "raw-values", "ungated", "no-foreign-values")


@dataclass(frozen=True)
class Theorem:
    """One statement of the theory. `needs` are the keys of its hypotheses in HYPOTHESES, each of them necessary.

    A measured statement is an observation on one model, not a theorem; what `proofs/` shows for it is why it had to
    come out that way.
    """

    name: str
    title: str
    claim: str
    needs: tuple[str, ...] = ()
    scope: str = ""
    source: str = "minibeft"
    measured: bool = False

    @property
    def evidence(self) -> Evidence:
        """Where its derivation, its theorems in Coq, its test and its code are."""
        return EVIDENCE[self.name]


_CATALOGUE = (
    Theorem(
        "K1",
        "b_k has no effect",
        "P(b_k) = P(0): b_k adds s q_i·b_k to every logit of row i, and a softmax ignores what its row shares.",
        SCORES,
        "every additive mask (causal, padding, ALiBi, T5), every scale, cross-attention, MQA and GQA, dropout on P",
        f"{CORDONNIER}, §3; {NAMAZIFAR}; {BEFT}",
    ),
    Theorem(
        "K2",
        "b_k gets no gradient",
        "Σ_j ∂L/∂z_ij = 0 in every row, so ∂L/∂b_k = 0 for every loss, and Adam leaves b_k where it was.",
        (*SCORES, "no-weight-decay"),
        "as K1; every differentiable loss of the attention output; Adam and every optimiser that rests at gradient 0",
    ),
    Theorem(
        "K3",
        "training b_k is training without it",
        "Fine-tuning {b_k, head} and {head} follows the same trajectory of the head; without a head nothing moves.",
        (*SCORES, "no-weight-decay", "same-randomness"),
        "as K2; every optimiser that updates a parameter by the step, its own value, state and gradient, and the joint "
        "gradient norm (SGD, Adam, AdamW, clipping); not one that mixes parameters, as by the RMS of all trained "
        "entries",
    ),
    Theorem(
        "K4",
        "where b_k begins to matter",
        "Rotary: q_i·R_{j−i} b_k. Sink or foreign keys: O' = ρP̂V + (1−ρ)F, ρ = w/(w + (1−w)e^{−c}), F = 0 for a sink. "
        "Rounding: at most diam(V)·tanh((ε₀+ε₁)/2) + 2γ_{2S} max|V|.",
        ("in-range",),
        "rotary and partial rotary, relative keys, QK-norm, soft-capping, sigmoid, ReLU, linear, sinks, foreign keys, "
        "finite precision",
    ),
    Theorem(
        "K5",
        "Adam moves b_k by rounding noise",
        "A gradient of pure noise g moves b_k by lr·|g|/(|g| + eps) a step: by lr if |g| ≫ eps, by lr·|g|/eps if not.",
        ("adaptive",),
        "the first step, and every step under a constant gradient; the drift tells eps, not use",
    ),
    Theorem(
        "K6",
        "SST-2: b_k with a head equals the head alone",
        "The runs {b_k, head} and {head} have the same validation accuracy at every epoch.",
        (),
        "all-MiniLM-L6-v2, 1,000 sentences of SST-2, 16 epochs, seed 0",
        measured=True,
    ),
    Theorem(
        "K7",
        "pretraining left b_k next to zero",
        "‖b_k‖ is 0.010 to 0.020 in every layer while ‖b_q‖ is 2.1 to 6.7 and ‖b_v‖ 0.2 to 1.7. BERT starts b_k at "
        "0, and no entry is 0 any more: rounding noise moves it (K5), to no effect (K1).",
        (),
        "all-MiniLM-L6-v2, six layers",
        measured=True,
    ),
    Theorem(
        "K8",
        "LayerNorm hides a b_k in W_k",
        "Behind a LayerNorm with γ ≠ 0 and with n = 1/γ, W_k + t nᵀ gives the same P as W_k for every t, so "
        "(∂L/∂W_k) n = 0.",
        ("layer-norm", *SCORES),
        "d directions of each key head's W_k, for full fine-tuning and LoRA alike; not behind RMSNorm",
        "what LayerNorm removes: arXiv 2409.12951; that W_k gets no gradient there is ours",
    ),
    Theorem(
        "K9",
        "cached keys may be shifted",
        "With keys as they are multiplied with q, taking one vector c off all of them leaves P as it is, for every c.",
        ("no-relative-vectors", "no-softcap", "softmax", "no-sink", "no-foreign-keys", "exact"),
        "rotary, QK-norm, every mask and scale",
    ),
    Theorem(
        "K10",
        "b_k under rotary positions",
        "b_k adds a learned wave of the distance a plane, any amplitude and phase; TV(P(0), P(b_k)) ≤ "
        "tanh(¼ s Σ_u ‖q^u‖ ‖b_k^u‖ min(2, ω_u W)) where the keys in sight lie within W positions.",
        ("no-relative-vectors", "no-qk-norm", "no-softcap", "softmax", "no-sink", "no-foreign-keys"),
        "partial rotary too (ω = 0); K1 is the limit ω → 0",
    ),
    Theorem(
        "K11",
        "b_k beside a sink is a gate",
        "Beside a sink of logit σ, b_k is a sink logit of the query's own, σ − c_i with c_i = s (q_i + b_q)·b_k: row i "
        "is P(0), the sink left out, times the gate sigmoid(ln Σ_j e^{z_ij} − σ + c_i). Under sigmoid attention each "
        "weight w becomes w/(w + (1−w) e^{−c_i}).",
        (*QUERY, "no-foreign-keys"),
        "every mask and scale, GQA; softmax-off-by-one is σ = 0",
    ),
    Theorem(
        "K12",
        "b_k in linear attention",
        "Under linear attention with identity features, b_k mixes in the mean of the values: O_i(b_k) = (1−λ_i) O_i(0) "
        "+ λ_i v̄, λ_i = m c_i/(n_i + m c_i), n_i = Σ_j z_ij with c_i = s (q_i + b_q)·b_k.",
        (*QUERY, "identity-features", "no-sink", "no-foreign-keys", "rows-sum-to-one", "ungated"),
        "the m keys that the row sees, where n_i and n_i + m c_i are not 0",
    ),
    Theorem(
        "V1",
        "b_v is a shift",
        "O(b_v) = O(0) + 1 b_vᵀ: the same vector for every token, whatever it attends to.",
        VALUES,
        "every mask that leaves each row a key; rotary, QK-norm, soft-capping, ALiBi, linear attention; GQA",
        f"{NAMAZIFAR}; {BEFT}",
    ),
    Theorem(
        "V2",
        "b_v folds into b_o",
        "b_o' = b_o + W_o b_v and no b_v give the same output.",
        (*VALUES, "raw-output"),
        "as V1; under GQA b_v is repeated over its group",
        NAMAZIFAR,
    ),
    Theorem(
        "V3",
        "the gradient of b_v",
        "∂L/∂b_v = Σ_i ∂L/∂O_i = W_oᵀ ∂L/∂b_o: no backward pass through the attention is needed.",
        (*VALUES, "raw-output"),
        "as V1; under GQA summed over the group",
    ),
    Theorem(
        "V4",
        "what b_v reaches",
        "O reaches exactly O(0) + 1·ℝᵈ; tuning b_v and tuning b_o reach the same functions iff rank(W_o E) = C.",
        (*VALUES, "raw-output", "full-rank-output"),
        "as V1; with rank W_o < C, b_o reaches strictly more",
    ),
    Theorem(
        "V5",
        "where b_v stops being a shift",
        "Dropout: r_i b_v with E r_i = 1. Sink: (1 − sink mass) b_v. λ-difference: (1 − λ) b_v. Blind row: 0 · b_v.",
        (),
        "dropout on P, sinks, differential attention, foreign values, sigmoid, value-norm, gates, fully masked rows",
    ),
    Theorem(
        "V6",
        "what b_v cannot reach",
        "The outputs b_v reaches have dimension rank(W_o E) ≤ min(C, rank W_o, G·D), E repeating heads over groups; "
        "b_v is identifiable iff W_o E has rank G·D.",
        (*VALUES, "raw-output"),
        "GQA, MQA and rank-deficient W_o",
    ),
    Theorem(
        "V7",
        "the mean of b_o is not read",
        "Where every reader of the residual stream is a LayerNorm, the mean of b_o + W_o b_v does nothing: "
        "1ᵀ ∂L/∂b_o = 0 and 1ᵀ ∂L/∂W_o = 0.",
        ("layer-norm",),
        "every number of blocks behind; not for RMSNorm",
        "SliceGPT, arXiv 2401.15024, takes the mean out of the stream; the form with biases is ours",
    ),
    Theorem(
        "V8",
        "a linear reader cannot tell b_v",
        "A linear read-out r of the outputs gives O(b_v) the score of O(0) plus r·W_o b_v, the same for every example: "
        "no ranking of examples depends on b_v, no AUC does. b_q alone can reverse one.",
        (*VALUES, "raw-output"),
        "one token's row, or a mean of rows; not where a norm or another nonlinearity comes before the reader",
    ),
    Theorem(
        "V9",
        "a bias on MLA's latent",
        "A bias b_c on the latent c_j of MLA, k_j = U_k c_j and v_j = U_v c_j, has no effect through the keys and is "
        "b_v = U_v b_c through the values: O(b_c) = O(0) + 1 (U_v b_c)ᵀ, so b_o' = b_o + W_o U_v b_c does the same "
        "without it.",
        (*SCORES, *VALUES[1:], "raw-output"),
        "added after the latent's norm; the rotary part of the keys, which does not read the latent, does no harm",
        "DeepSeek-V2, arXiv 2405.04434",
    ),
    Theorem(
        "Q1",
        "b_q adds one number to each key",
        "z_ij(b_q) = z_ij(0) + β_j with β_j = s k_j·b_q, the same for every query. In a softmax without sink or "
        "foreign keys only the part s b_q·W_k y_j of it moves P.",
        QUERY,
        "every mask, any weighting of the logits, sinks (β = 0 there) and foreign keys",
        CORDONNIER,
    ),
    Theorem(
        "Q2",
        "outputs stay in the convex hull",
        "Every row of O is a convex combination of the rows of V, whatever b_q is.",
        ("softmax", "no-sink", "rows-sum-to-one", "visible-key", "ungated"),
        "rotary, QK-norm and soft-capping too",
    ),
    Theorem(
        "Q3",
        "b_q moves P by at most tanh(osc(β)/4)",
        "TV(P_i(0), P_i(b_q)) ≤ tanh(osc(β)/4), attained; hence ‖O_i(b_q) − O_i(0)‖ ≤ diam(V)·tanh(osc(β)/4).",
        (*QUERY, "softmax", "no-sink", "rows-sum-to-one", "ungated"),
        "osc over the keys that the row sees; any norm on the values",
        f"{COHEN}: the bound on TV by their Hilbert distance, which is osc(β) here; what b_q makes of it is ours",
    ),
    Theorem(
        "Q4",
        "b_q is blind to who asks",
        "log P_ij − log P_il − log P_rj + log P_rl does not depend on b_q.",
        (*QUERY, "softmax"),
        "any two queries and two keys that both see; sinks and foreign keys too",
    ),
    Theorem(
        "Q5",
        "null directions of b_q",
        "b_q leaves P as it is iff it is orthogonal to span{k_j − k̄}, a space of dimension at most min(d, m − 1); "
        "O may stay besides, as where all values are equal.",
        (*QUERY, "softmax", "no-sink"),
        "rows that see all m keys; fewer keys in sight only add null directions",
    ),
    Theorem(
        "Q6",
        "saturation",
        "As t → ∞, every query attends to the maximiser j* of k_j·b_q alone: 1 − P_ij* ≤ (m−1) e^{osc(z_i) − tΔ}.",
        (*QUERY, "softmax", "no-sink", "unique-maximiser"),
        "the maximum is over the keys a row sees; Δ is the gap to the runner-up, times s",
    ),
    Theorem(
        "Q7",
        "b_q under rotary positions",
        "β_ij = s k_j·R_{i−j} b_q depends on i − j; Q4 fails; Q2, and Q3 with osc taken row by row, hold.",
        (),
        "full and partial rotary; relative-position terms alike",
    ),
    Theorem(
        "Q8",
        "b_q's gradient is a covariance",
        "∂O_i/∂b_q = s Σ_j P_ij (v_j − O_i)(k_j − k̄_i)ᵀ, of norm ≤ (s/4) diam(K) diam(V), attained; so "
        "‖∂L/∂b_q‖ ≤ (s/4) diam(K) diam(V) Σ_i ‖∂L/∂O_i‖.",
        (*QUERY, "softmax", "no-sink", "rows-sum-to-one", "ungated"),
        "every mask; diameters over the keys that the row sees, foreign ones too; both sides are 0 where it sees none",
    ),
    Theorem(
        "Q9",
        "b_q moves P by at most osc(β)²/8 nats",
        "KL(P(0)‖P(b_q)) and KL(P(b_q)‖P(0)) ≤ osc(β)²/8.",
        (*QUERY, "softmax", "no-sink"),
        "osc over the keys that the row sees, foreign ones too",
        "Hoeffding's lemma",
    ),
    Theorem(
        "Q10",
        "the price of moving attention",
        "A b_q that moves row i by TV has s ‖b_q‖ diam(K) ≥ 4 artanh(TV). To leave all keys but j* at most ε, "
        "s ‖b_q‖ gap = osc(z_i) + ln((m−1)/ε) is enough.",
        (*QUERY, "softmax", "no-sink"),
        "the m keys that the row sees, with any mask in z_i; gap is by how much k·b_q/‖b_q‖ is larger for j* than for "
        "any other key",
    ),
    Theorem(
        "Q11",
        "what b_q reaches",
        "The mean keys Σ_j P_ij k_j that b_q gives one query are exactly the relative interior of conv{k_j}. Each "
        "belongs to one P, so to one b_q up to null directions (Q5).",
        (*QUERY, "softmax", "no-sink"),
        "one query and the keys that it sees, with any mask and any logits; all queries share the one b_q",
        "minibeft; the mean map of an exponential family",
    ),
    Theorem(
        "R1",
        "what a reparametrised bias reaches",
        "With b viewed as r×c and scale s: LoRA adds every Δ of rank ≤ k and no other, by k(r + c) numbers, from 0. "
        "VeRA: k + c numbers, dimension ≤ k + c − 1, 0 if a diagonal is, and only then where k ≤ r, A has rank k "
        "and B no entry 0. VeRA1D: one number, the line ℝ·1. "
        "DoRA: one more than LoRA, b + s·t·(b+Δ)/‖b+Δ‖, from (1 + s)b.",
        ("nonzero",),
        "DoRA alone needs b ≠ 0; the four forms as the official code has them",
        f"{BEFT}; LoRA arXiv 2106.09685; VeRA arXiv 2310.11454; DoRA arXiv 2402.09353",
    ),
    Theorem(
        "R2",
        "parametrisation changes none of it",
        "K1 to K3 and V1 hold for every bias b = g(θ): ∂L/∂θ = Jᵀ ∂L/∂b, and 0 stays 0.",
        (*SCORES, *VALUES[1:], "own-parameters"),
        "every differentiable g: LoRA, VeRA, DoRA, a constant",
    ),
    Theorem(
        "I1",
        "Mag+Angle",
        "I = 1 − cos∠(b,b')·min(‖b‖,‖b'‖)/max(‖b‖,‖b'‖) is symmetric, invariant to a common scale and rotation, "
        "0 iff b' = b, at most 1 for angles up to 90° and at most 2 beyond.",
        ("nonzero",),
        "every dimension; undefined at 0, as in bias-free models",
        BEFT,
    ),
    Theorem(
        "I2",
        "Magnitude",
        "I = mean |b' − b| is a metric, and scales with its arguments; it is not invariant to a rotation.",
        (),
        "every dimension",
        BEFT,
    ),
    Theorem(
        "I3",
        "Fisher",
        "I = mean over batches of mean g², g clipped to joint norm 1: 0 iff every gradient is 0 (as for b_k), at most "
        "1/d.",
        (),
        "every number of batches and dimension; the sum of d·I over the terms clipped together is at most 1",
        BEFT,
    ),
    Theorem(
        "G1",
        "weight decay fixes the gauge",
        "Where L + λ/2 ‖θ‖² is stationary and λ ≠ 0: b_k = 0, b_v = W_oᵀ b_o, [W_q b_q][W_q b_q]ᵀ = W_k W_kᵀ and "
        "[W_v b_v][W_v b_v]ᵀ = W_oᵀ W_o.",
        (*SCORES, *VALUES[1:], "raw-output"),
        "decay in the loss, over all parameters; under GQA query heads of a group are summed over",
    ),
    Theorem(
        "G2",
        "a head's gradients agree",
        "With W̃ = [W b] and G̃ its gradient: G̃_q W̃_qᵀ = W̃_k G̃_kᵀ and G̃_v W̃_vᵀ = W_oᵀ G_o, for every loss; query heads "
        "that share keys and values are summed over. Gradient flow keeps W̃_q W̃_qᵀ − W̃_k W̃_kᵀ and W̃_v W̃_vᵀ − W_oᵀ W_o.",
        (
            *("unrotated", "no-relative-vectors", "no-qk-norm", "no-foreign-keys"),
            *("raw-values", "ungated", "no-foreign-values", "raw-output"),
        ),
        "every mask, any weighting of the logits, soft-capping, sinks, GQA",
        "the symmetry without biases: arXiv 2506.06194, 2412.14543; conservation laws: arXiv 2606.17816; the form with "
        "biases is ours",
    ),
)


THEOREMS: dict[str, Theorem] = {theorem.name: theorem for theorem in _CATALOGUE}
