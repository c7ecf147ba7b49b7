"""Every statement of the theory, proved step by step by sympy, with a counterexample for each of its hypotheses.

Read a script from top to bottom, or run it: `minibeft prove K1`, `python -m minibeft.proofs K1`.

    key_bias        K1      the key bias has no effect
    training        K2 K3   it gets no gradient; training it is training without it
    drift           K5-K7   what Adam makes of rounding noise; why two measurements gave what they did
    key_scope       K4      where it begins to matter: rotary positions, sinks, foreign keys
    key_cache       K9 K10  keys as they are cached, and what rotary positions make of b_k
    key_elsewhere   K11 K12 beside sinks, under sigmoid weights, in linear attention
    rounding        K4      and how far finite precision moves it; measured.py holds the bound against real errors
    layer_norm      K8 V7   what a LayerNorm hides
    value_bias      V1-V4 V6  the value bias is a shift; folding, gradient, reach
    value_scope     V5      where it stops being a shift
    query_bias      Q1 Q2 Q4 Q5  one number per key; hull, blindness, null directions
    query_gradient  Q8 Q9   its gradient is a covariance; what it does to P in nats
    query_limits    Q6 Q7   saturation; rotary positions
    query_bound     Q3      tanh(osc/4), and why not less
    query_price     Q10     what moving attention costs
    query_reach     Q11     which mean keys b_q reaches
    readers         V8      what a linear read-out sees
    latent          V9      a bias on MLA's latent
    reparametrised  R1 R2   LoRA, VeRA and DoRA on a bias
    importance      I1-I3   Mag+Angle, Magnitude, Fisher
    gauge           G1 G2   the gradients of one head agree; what weight decay makes of that

The scripts are built on: notation (the letters), relation (what a formula is), statement (what a proof is), steps (the
kinds of step), sums (the algebra of indexed sums), numbers (the guard of that algebra), head (one attention head with a
switch for each hypothesis, from which the counterexamples come), printing, typeset and document (unicode and LaTeX).
"""

from minibeft.proofs import (  # noqa: F401  each registers its statements
    drift,
    gauge,
    importance,
    key_bias,
    key_cache,
    key_elsewhere,
    key_scope,
    latent,
    layer_norm,
    query_bias,
    query_bound,
    query_gradient,
    query_limits,
    query_price,
    query_reach,
    readers,
    reparametrised,
    training,
    value_bias,
    value_scope,
)
from minibeft.proofs.statement import PROOFS, Counterexample, Proof, Report, Step
from minibeft.theory.theorems import THEOREMS

assert PROOFS.keys() == THEOREMS.keys(), PROOFS.keys() ^ THEOREMS.keys()

__all__ = ["PROOFS", "Counterexample", "Proof", "Report", "Step"]
