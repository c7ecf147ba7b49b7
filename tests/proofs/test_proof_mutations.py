"""The proofs can fail: each wrong claim is handed to the proof that makes it, and its own check() rejects it.

A mutant replaces one claimed formula of one theorem; steps, counterexamples and the code that decides them are the
real ones. The check rejects in two independent ways, and each must do alone: the normal form decides identities for all
sizes, the guard adds numbers up at small sizes.
"""

from dataclasses import replace

import pytest
from sympy import Abs, Integer, cos, exp, sqrt, tanh

from minibeft.proofs import PROOFS, Counterexample, drift, key_bias, key_scope, query_limits, training, value_bias
from minibeft.proofs import value_scope as scope
from minibeft.proofs.measured import measured
from minibeft.proofs.notation import G, a, b, beta, d, e, i, j, k, l, m, mu, n, over, q, r, s, softmax, v, z
from minibeft.proofs.steps import equal
from minibeft.proofs.sums import identical
from minibeft.theory import bounds

K4, V = key_scope, value_bias


def share(shift):
    """The sink formula with e^shift in place of e^{−c}."""
    return K4.W / (K4.W + (1 - K4.W) * shift)


MUTANTS = {
    "K1 shift: sign": ("K1", {"shift": -s * over(a, q[i, a] * b[a])}),
    "K1 shift: missing 1/√d": ("K1", {"shift": over(a, q[i, a] * b[a])}),
    "K1 shift: keys instead of queries": ("K1", {"shift": s * over(a, k[j, a] * b[a])}),
    "K1 weights: dropped mask": ("K1", {"weights": softmax(key_bias.logit(bias=False), mask=Integer(1))}),
    "K1 weights: b_k left in": ("K1", {"weights": softmax(key_bias.logit(bias=False) + s * over(a, k[j, a] * b[a]))}),
    "K2 Jacobian: sign": ("K2", {"jacobian": training.P_L * (training.P_J - training.DELTA)}),
    "K2 Jacobian: diagonal alone": ("K2", {"jacobian": training.P_L * training.DELTA}),
    "K2 gradient: not zero": ("K2", {"gradient": over(i, s * q[i, e])}),
    "K2 row sum: one": ("K2", {"row_sum": Integer(1)}),
    "K3 head: sees the key bias": (
        "K3",
        {"next_head": training.ONWARD(training.THETA, training.SLOPE(training.THETA, 2 * training.output(0)), 1)},
    ),
    "K4 rotary: angle i − j for j − i": ("K4", {"rotary": K4.dot(K4.QUERY, K4.turned(*K4.BIAS, i - j))}),
    "K4 rotary: b_k not turned": ("K4", {"rotary": K4.dot(K4.QUERY, K4.BIAS)}),
    "K4 rotary: determinant": ("K4", {"determinant": lambda angle: 1 - cos(angle)}),
    "K4 sink: sign of c": ("K4", {"share": share(exp(K4.C))}),
    "K4 sink: c dropped": ("K4", {"share": share(Integer(1))}),
    "K4 rounding: product of errors dropped": ("K4", {"entry": lambda eta, rho: eta + rho}),
    "K4 rounding: error of the maximum dropped": (
        "K4",
        {"row": lambda error, spread, unit: error + unit * spread + K4.GAMMA_4},
    ),
    "K4 rounding: half of the sums": ("K4", {"sums": lambda theta, largest: theta * largest / 2}),
    "K5 step: root of eps": ("K5", {"step": drift.LR * drift.G / (drift.G + sqrt(drift.EPS))}),
    "K5 drift: proportional to noise": ("K5", {"drift": drift.X}),
    "K7 decay: grows": ("K7", {"factor": 1 + drift.LR * drift.X}),
    "V1 shift: sign": ("V1", {"output": V.PLAIN - b[a]}),
    "V1 shift: b_v scaled by the row sum": ("V1", {"output": V.PLAIN + b[a] * over(j, mu[i, j] * exp(z[i, j]))}),
    "V1 shift: mean over keys": ("V1", {"output": V.PLAIN + b[a] / m}),
    "V1 output: dropped mask": ("V1", {"output": over(j, softmax(z[i, j], mask=Integer(1)) * v[j, a]) + b[a]}),
    "V2 fold: sign": ("V2", {"folded": 2 * V.BO[V.o] - PROOFS["V2"].claims["folded"]}),
    "V2 fold: b_v not repeated over its group": (
        "V2",
        {"folded": V.BO[V.o] + over(V.u, over(a, V.W[V.o, V.u, a] * over(V.x, b[V.x, a])))},
    ),
    "V3 gradient: mean for sum": ("V3", {"gradient": over(i, G[i, e]) / n}),
    "V3 gradient: W_o left out": ("V3", {"through": lambda back: over(V.o, over(i, back))}),
    "V4 reach: half": ("V4", {"output": V.PLAIN + V.T[a] / 2}),
    "V5 dropout: r_i = 1": ("V5", {"dropout": over(j, V.P)}),
    "V5 sink: sink mass for 1 − sink mass": ("V5", {"sink": scope.SINK / (scope.SUM + scope.SINK)}),
    "V5 difference: 1 + λ": ("V5", {"difference": 1 + scope.LAMBDA}),
    "V5 blind row: gets b_v": ("V5", {"blind": Integer(1)}),
    "V6 rank: sharing forgotten": ("V6", {"bound": lambda width, rank, _: min(width, rank)}),
    "Q1 shift: missing 1/√d": ("Q1", {"shift": over(a, k[j, a] * b[a])}),
    "Q1 shift: by query": ("Q1", {"shift": s * over(a, q[i, a] * b[a])}),
    "Q2 weights: sum to the number of keys": ("Q2", {"total": m}),
    "Q3 bound: tanh(osc/2)": ("Q3", {"bound": lambda osc: tanh(osc / 2)}),
    "Q3 bound: tanh(osc/8)": ("Q3", {"bound": lambda osc: tanh(osc / 8)}),
    "Q3 bound: osc/4": ("Q3", {"bound": lambda osc: osc / 4}),
    "Q3 weights: sign of β": ("Q3", {"moved": softmax(z[i, j] - beta[j])}),
    "Q3 weights: dropped mask": ("Q3", {"moved": softmax(z[i, j] + beta[j], mask=Integer(1))}),
    "Q4 ratio: sign": ("Q4", {"ratio": exp(z[i, j] - z[i, l] + z[r, j] - z[r, l])}),
    "Q5 dimension: m for m − 1": ("Q5", {"dimension": lambda dims, keys: min(dims, keys)}),
    "Q5 difference: sum": ("Q5", {"difference": s * over(a, b[a] * (k[j, a] + k[l, a]))}),
    "Q6 rate: twice as fast": (
        "Q6",
        {"bound": (m - 1) * exp(query_limits.OSC - 2 * query_limits.T * query_limits.GAP)},
    ),
    "Q6 limit: half": ("Q6", {"limit": Integer(1) / 2}),
    "Q7 rotary: angle j − i for i − j": (
        "Q7",
        {"shift": K4.dot(query_limits.KEY, K4.turned(*query_limits.BIAS, j - i))},
    ),
    "Q7 double difference: kept": ("Q7", {"double": Integer(0)}),
    "R1 LoRA: numbers of the full matrix": ("R1", {"lora_count": lambda rows, columns, rank: rank * rows * columns}),
    "R1 LoRA: dimension as many as numbers": (
        "R1",
        {"lora_dimension": lambda rows, columns, rank: rank * (rows + columns)},
    ),
    "R1 VeRA: gauge forgotten": ("R1", {"vera_dimension": lambda rows, columns, rank: rank + columns}),
    "R1 DoRA: starts at b": ("R1", {"dora_start": lambda bias, scale: bias}),
    "R2 gradient: not zero": ("R2", {"gradient": Integer(1)}),
    "I1 measure: plus": ("I1", {"measure": lambda inner, x, y: 2 - PROOFS["I1"].claims["measure"](inner, x, y)}),
    "I1 measure: angle alone": ("I1", {"measure": lambda inner, x, y: 1 - inner / (x * y)}),
    "I2 measure: no absolute value": ("I2", {"measure": lambda old, new: over(a, new - old) / d}),
    "I2 measure: sum of both": ("I2", {"measure": lambda old, new: over(a, Abs(new + old)) / d}),
    "I3 bound: half": ("I3", {"bound": 1 / (2 * d)}),
    "I3 joint: half": ("I3", {"joint": Integer(1) / 2}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_rejected(mutant: str):
    name, claims = MUTANTS[mutant]
    report = PROOFS[name].check(to_first_failure=True, **claims)
    assert not report.ok, f"{mutant}: the proof of {name} accepts it"
    assert not report.outcomes[-1].ok  # a part was decided against; nothing merely raised or ran out


@pytest.mark.parametrize("mutant", [x for x in MUTANTS if x.split()[0] in ("K1", "K2", "V1", "V2", "Q1", "Q4")])
@pytest.mark.parametrize("blind", ["identical", "agree"])
def test_either_half_of_the_check_rejects_alone(mutant: str, blind: str, monkeypatch):
    monkeypatch.setattr(f"minibeft.proofs.steps.{blind}", lambda *_: True)
    name, claims = MUTANTS[mutant]
    assert not PROOFS[name].check(to_first_failure=True, **claims).ok


def test_a_wrong_rule_of_the_algebra_is_caught_by_the_guard(monkeypatch):
    """Planted: Σ_l 1 = m + 1. The algebra then believes it; adding up does not."""
    monkeypatch.setattr("minibeft.proofs.sums.length", lambda index: m + 1)
    assert identical(over(j, Integer(1)), m + 1)
    assert not equal("false", over(j, Integer(1)), m + 1).decide().ok


@pytest.mark.parametrize("factor", [1e-3, 1e4])
@pytest.mark.slow
def test_the_measurement_rejects_a_float_bound_that_is_too_small_or_absurdly_loose(factor: float, monkeypatch):
    """Every γ_n of the bound scaled: far below, real errors exceed it; far above, it says nothing any more."""
    true = bounds.gamma
    monkeypatch.setattr(bounds, "gamma", lambda count, u: factor * true(count, u))
    monkeypatch.setattr("minibeft.proofs.measured.TYPES", ("float32",))
    verdict = measured().decide()
    assert not verdict.ok, verdict.note


@pytest.mark.parametrize("name", ["K1", "V1", "Q3"])
def test_a_counterexample_that_breaks_nothing_is_rejected(name: str):
    for part in PROOFS[name].parts():
        if isinstance(part, Counterexample):
            assert not replace(part, dropped=part.kept).decide().ok
            assert not replace(part, kept=part.dropped).decide().ok


def test_a_hypothesis_without_its_counterexample_is_reported():
    true = PROOFS["V1"]
    fewer = replace(
        true, script=lambda claim: (x for x in true.script(claim) if getattr(x, "hypothesis", "") != "ungated")
    )
    report = fewer.check()
    assert not report.ok
    assert report.unmatched == ["ungated"]
