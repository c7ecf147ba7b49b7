"""The proofs can fail: every part of every claim is made false, in several ways, and the step that decides it says so.

A false variant replaces one formula of one claim; the script and the code that decides are the real ones. What is
printed is what is decided, so the formulas are all there is to change; besides, the words of the catalogue are changed,
and steps are taken away.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sympy import (
    Abs,
    Derivative,
    Expr,
    IndexedBase,
    Integer,
    MatrixBase,
    Min,
    Rational,
    S,
    Symbol,
    cos,
    exp,
    log,
    ones,
    sin,
    sqrt,
    tanh,
)

from minibeft.proofs import (
    PROOFS,
    Counterexample,
    Report,
    Step,
    importance,
    key_bias,
    latent,
    query_bias,
    query_limits,
    query_price,
    query_reach,
    readers,
)
from minibeft.proofs import drift as D
from minibeft.proofs import gauge as Y
from minibeft.proofs import key_cache as C9
from minibeft.proofs import key_elsewhere as KE
from minibeft.proofs import key_scope as K4
from minibeft.proofs import layer_norm as L
from minibeft.proofs import query_bound as Q3
from minibeft.proofs import query_gradient as G8
from minibeft.proofs import reparametrised as R
from minibeft.proofs import rounding as E
from minibeft.proofs import training as T
from minibeft.proofs import value_bias as V
from minibeft.proofs import value_scope as V5
from minibeft.proofs.layer_norm import X
from minibeft.proofs.measured import measured
from minibeft.proofs.notation import RANGE, G, a, b, beta, d, e, i, j, k, l, m, mu, n, o, over, q, r, s, softmax, v, z
from minibeft.proofs.relation import MISSES, SYMMETRIC, Quantity, Relation, says
from minibeft.proofs.statement import Outcome
from minibeft.proofs.steps import Names, equal
from minibeft.proofs.sums import identical
from minibeft.theory import bounds
from minibeft.theory.theorems import THEOREMS

PARTS = [(name, part) for name, proof in PROOFS.items() for part in proof.claims]


def deciding(name: str, part: str, claim: Relation) -> list[Step]:
    """The steps that are about this formula, put in place of the part."""
    steps = [x for x in PROOFS[name].parts(**{part: claim}) if isinstance(x, Step)]
    return [x for x in steps if x.decides is not None and x.decides.same(claim)]


# ---------------------------------------------------------------- every part of every claim


def far(side: Expr | Quantity, by: int) -> Expr | Quantity:
    """Another number, far away."""
    if not isinstance(side, Quantity):
        return side + by * 10**9

    def of(*sizes):
        value = side.of(*sizes)
        return value + by * (ones(*value.shape) if isinstance(value, MatrixBase) else 10**9)

    return Quantity(side.name, of)


def tilted(one, other) -> Expr:
    """A number in which the two are not alike."""
    return over(a, one[a] - 2 * other[a]) if isinstance(one, IndexedBase) else one - 2 * other


def variants(claim: Relation) -> Iterator[tuple[str, Relation]]:
    """The part with one thing changed."""
    if claim.sign == MISSES:
        for index in sorted(claim.left.free_symbols & set(RANGE) - {claim.right}, key=str):
            yield f"another index, {index}", replace(claim, right=index)
        yield "index added", replace(claim, left=claim.left * over(a, b[a]) * claim.right)
        yield "equal instead", replace(claim, sign="=")
        return
    if claim.sign == SYMMETRIC:
        yield "one of them alone", replace(claim, left=claim.left * tilted(*claim.right))
        yield "equal instead", replace(claim, sign="=")
        yield "with another", replace(claim, left=claim.left + 2 * tilted(*claim.right))
        return
    yield "sign", replace(claim, sign={"=": "≥", "≤": "="}[claim.sign])
    if claim.sign == "≤":
        yield "left larger", replace(claim, left=far(claim.left, 1))
        yield "right smaller", replace(claim, right=far(claim.right, -1))
    else:
        yield "left off", replace(claim, left=far(claim.left, 1))
        yield "right off", replace(claim, right=far(claim.right, 1))
    if isinstance(claim.right, Expr) and claim.right != 0:
        yield "negated", replace(claim, right=-claim.right)
        yield "halved", replace(claim, right=claim.right / 2)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_each_part_is_what_a_step_decides(name: str, part: str):
    assert deciding(name, part, PROOFS[name].claims[part])


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_part_that_is_changed_is_rejected(name: str, part: str):
    for how, claim in variants(PROOFS[name].claims[part]):
        steps = deciding(name, part, claim)
        assert steps, f"{how}: no step is about it"
        for step in steps:
            assert not step.decide().ok, f"{name}, {part}, {how}: accepted"


def test_each_statement_has_at_least_three_false_variants():
    for name, proof in PROOFS.items():
        assert sum(len(list(variants(claim))) for claim in proof.claims.values()) >= 3, name


# ---------------------------------------------------------------- likely mistakes


def sink(shift: Expr) -> Expr:
    """ρ with e^shift in place of e^{−c}."""
    return K4.W / (K4.W + (1 - K4.W) * shift)


BETA = query_bias.BETA
# Statement, part: mistake → the right side with that mistake.
MISTAKES: dict[tuple[str, str], dict[str, object]] = {
    ("K1", "shift"): {
        "sign": key_bias.logit(bias=False) - key_bias.SHIFT,
        "missing 1/√d": key_bias.logit(bias=False) + over(a, q[i, a] * b[a]),
        "keys instead of queries": key_bias.logit(bias=False) + s * over(a, k[j, a] * b[a]),
    },
    ("K1", "weights"): {
        "dropped mask": softmax(key_bias.logit(bias=False), mask=Integer(1)),
        "b_k left in": softmax(key_bias.logit(bias=False) + s * over(a, k[j, a] * b[a])),
        "twice": 2 * softmax(key_bias.logit(bias=False)),
    },
    ("K2", "jacobian"): {"sign": T.P_L * (T.P_J - T.DELTA), "diagonal alone": T.P_L * T.DELTA},
    ("K2", "gradient"): {"not zero": over(i, s * q[i, e])},
    ("K2", "row_sum"): {"one": Integer(1)},
    ("K2", "bias"): {"decays": T.BIAS / 2, "reset": Integer(0)},
    ("K3", "same"): {
        "sees the key bias": T.ONWARD(T.THETA, T.SLOPE(T.THETA, 2 * T.output(0)), 1),
        "another optimiser": T.SLOPE(T.THETA, T.PLAIN),
        "norm left out": T.ONWARD(T.THETA, T.PLAIN, Integer(0)),
    },
    ("K3", "alone"): {"half": T.output(0) / 2},
    ("K4", "rotary"): {
        "angle i − j for j − i": K4.PLAIN + K4.dot(K4.QUERY, K4.turned(*K4.BIAS, i - j)),
        "b_k not turned": K4.PLAIN + K4.dot(K4.QUERY, K4.BIAS),
    },
    ("K4", "determinant"): {"half": 1 - cos(K4.ANGLE)},
    ("K4", "mass"): {"sign of c": sink(exp(K4.C)), "c dropped": sink(Integer(1))},
    ("K4", "sink"): {"sign of c": sink(exp(K4.C)) * K4.ALONE, "sink has a value": K4.RHO * K4.ALONE + 1 - K4.RHO},
    ("K4", "entry"): {"product of errors dropped": s * over(a, E.SIZE[a] * E.KAPPA[a]) * (E.ETA + E.RHO)},
    ("K4", "row"): {"error of the maximum dropped": E.ERROR + E.UNIT * E.SPREAD + E.GAMMA_4},
    ("K4", "sums"): {"half": E.THETA * E.LARGEST / 2},
    ("K4", "rounding"): {"one run's sums": E.MOST + E.THETA * E.LARGEST, "softmax exact": 2 * E.THETA * E.LARGEST},
    ("K5", "start"): {"root of eps": D.LR * D.G / (D.G + sqrt(D.EPS)), "learning rate left out": D.G / (D.G + D.EPS)},
    ("K5", "drift"): {"proportional to noise": D.X},
    ("K5", "large"): {"no step": Integer(0)},
    ("K6", "score"): {"twice the hits": 2 * PROOFS["K6"].claims["score"].right, "one hit more": 1 + D.u},
    ("K7", "shrinks"): {"grows": (1 + D.LR * D.DECAY) * D.BIAS, "rests": D.BIAS},
    ("K7", "norm"): {"halves": over(a, b[a] ** 2) / 2},
    ("K8", "along"): {
        "x̂ left in": L.FIXED + over(o, X[j, o]),
        "γ for 1/γ": over(o, L.GAMMA[o] * L.BETA[o]),
        "zero": Integer(0),
    },
    ("K8", "keys"): {"no bias at all": L.key(moved=False), "β alone": L.key(moved=False) + L.T[a] * over(o, L.BETA[o])},
    ("K8", "weights"): {"dropped mask": softmax(s * over(a, q[i, a] * L.key(moved=False)), mask=Integer(1))},
    ("K8", "gradient"): {"not zero": over(o, L.WK[e, o])},
    ("K9", "logit"): {"sign": C9.PULL + s * over(a, q[i, a] * b[a]), "by key": C9.PULL - s * over(a, k[j, a] * b[a])},
    ("K9", "weights"): {"dropped mask": softmax(C9.PULL, mask=Integer(1))},
    ("K9", "rotary"): {"not turned": softmax(s * K4.dot(K4.QUERY, K4.KEY))},
    ("K10", "waves"): {"sine's sign": over(C9.u, C9.COSINE * cos(C9.ANGLE) - C9.SINE * sin(C9.ANGLE))},
    ("K10", "apart"): {"half": 2 * sin((C9.PHI - C9.PSI) / 2) ** 2 * (C9.FIRST**2 + C9.SECOND**2)},
    ("K10", "cauchy"): {"remainder added": C9.LENGTH * (C9.ONE**2 + C9.TWO**2) + (C9.X * C9.TWO - C9.Y * C9.ONE) ** 2},
    ("K10", "rise"): {"none": Integer(0)},
    ("K10", "spread"): {"half": s * over(C9.u, C9.LONG[C9.u] * C9.BIG[C9.u] * C9.REACH[C9.u]) / 2},
    ("K10", "bound"): {"tanh(osc/8)": tanh(Q3.B / 8)},
    ("V1", "output"): {
        "sign": V.PLAIN - b[a],
        "scaled by the row sum": V.PLAIN + b[a] * over(j, mu[i, j] * exp(z[i, j])),
        "mean over keys": V.PLAIN + b[a] / m,
        "seven times": 7 * V.PLAIN,
        "dropped mask": over(j, softmax(z[i, j], mask=Integer(1)) * v[j, a]) + b[a],
    },
    ("V2", "folded"): {
        "sign": V.heads_output(0, 2 * V.BO[V.o] - V.FOLDED),
        "b_v not repeated": V.heads_output(0, V.BO[V.o] + over(V.u, over(a, V.W[V.o, V.u, a] * over(V.x, b[V.x, a])))),
        "W_o left out": V.heads_output(0, V.BO[V.o] + over(V.u, over(a, V.SHARED))),
    },
    ("V3", "gradient"): {"mean for sum": over(i, G[i, e]) / n, "one token": G[i, e]},
    ("V3", "through"): {"W_o left out": over(V.o, V.through_output(V.BO[V.o]))},
    ("V4", "output"): {"half": V.PLAIN + V.T[a] / 2},
    ("V4", "moves"): {"nowhere": Integer(0), "not squared": over(V.o, V.Y[V.o])},
    ("V4", "onto"): {"singular": Quantity("0", lambda size: 0 * V.determinant(size))},
    ("V5", "dropout"): {"r_i = 1": b[a]},
    ("V5", "sink"): {"sink mass for 1 − sink mass": V5.SINK / (V5.SUM + V5.SINK) * b[a]},
    ("V5", "difference"): {"1 + λ": (1 + V5.LAMBDA) * b[a]},
    ("V5", "blind"): {"gets b_v": b[a]},
    ("V6", "dimension"): {
        "rank W_o forgotten": Min(V.SIZES[0], V.SIZES[2] * V.SIZES[3]),
        "sharing forgotten": Min(V.SIZES[0], V.SIZES[4]),
        "C forgotten": Min(V.SIZES[4], V.SIZES[2] * V.SIZES[3]) + V.SIZES[0] - V.SIZES[0] + (V.SIZES[0] - 1) * 0 + 1,
        "all of it": V.SIZES[0],
    },
    ("V7", "norm"): {"mean of 1 entry": L.PLAIN + L.SHIFT[i], "γ left out": L.PLAIN / L.GAMMA[o]},
    ("V7", "onward"): {
        "lost": X[i, o] + L.ENTERS(L.PLAIN),
        "block sees it": X[i, o] + L.SHIFT[i] + L.ENTERS(L.PLAIN + L.SHIFT[i]),
    },
    ("V7", "bias"): {"γ alone": over(i, over(o, G[i, o] * L.GAMMA[o]))},
    ("V7", "matrix"): {"o left in": over(i, over(o, G[i, o] * L.HEADS[i, e]))},
    ("Q1", "shift"): {
        "missing 1/√d": query_bias.logit(bias=False) + over(a, k[j, a] * b[a]),
        "by query": query_bias.logit(bias=False) + s * over(a, q[i, a] * b[a]),
        "sign": query_bias.logit(bias=False) - BETA,
    },
    ("Q1", "cross"): {"nothing moves P": softmax(query_bias.logit(bias=False, key=query_bias.RAW[j, a]))},
    ("Q2", "total"): {"number of keys": m},
    ("Q2", "inside"): {"half as far": query_bias.TOP / 2},
    ("Q2", "mean"): {"sum": over(j, over(a, query_bias.ALONG[a] * v[j, a]))},
    ("Q3", "bound"): {"tanh(osc/8)": tanh(Q3.B / 8), "tanh(osc/2)": tanh(Q3.B / 2), "osc/4": Q3.B / 4},
    ("Q3", "attained"): {"tanh(osc/8)": tanh(Q3.B / 8), "tanh(osc/2)": tanh(Q3.B / 2), "osc/4": Q3.B / 4},
    ("Q3", "moved"): {"sign of β": softmax(z[i, j] - beta[j]), "dropped mask": softmax(z[i, j] + beta[j], mask=S.One)},
    ("Q3", "output"): {"half": Q3.DIAMETER * tanh(Q3.B / 4) / 2},
    ("Q4", "ratio"): {"sign": exp(z[i, j] - z[i, l] + z[r, j] - z[r, l])},
    ("Q4", "blind"): {"not blind": query_bias.preference(shift=False) * exp(beta[j] - beta[l])},
    ("Q5", "dimension"): {"m for m − 1": Min(query_bias.DIMS, query_bias.KEYS), "d": query_bias.DIMS},
    ("Q5", "difference"): {"sum": s * over(a, b[a] * (k[j, a] + k[l, a]))},
    ("Q5", "moves"): {"β_j alone": exp(beta[j])},
    ("Q6", "bound"): {
        "twice as fast": (m - 1) * exp(query_limits.OSC - 2 * query_limits.T * query_limits.GAP),
        "m − 2 keys": (m - 2) * exp(query_limits.OSC - query_limits.T * query_limits.GAP),
        "osc left out": (m - 1) * exp(-query_limits.T * query_limits.GAP),
    },
    ("Q6", "limit"): {"half": Rational(1, 2)},
    ("Q7", "shift"): {
        "angle j − i for i − j": s * query_limits.PLAIN
        + s * K4.dot(query_limits.KEY, K4.turned(*query_limits.BIAS, j - i)),
        "scale left out": s * query_limits.PLAIN + K4.dot(query_limits.KEY, K4.turned(*query_limits.BIAS, i - j)),
    },
    ("Q7", "double"): {"kept": Integer(0)},
    ("Q7", "bound"): {"tanh(osc/8)": tanh(Q3.B / 8)},
    ("K11", "added"): {"query left out": KE.logit(bias=False) + s * over(a, KE.QUERY_BIAS[a] * b[a])},
    ("K11", "sink"): {"sign of c": KE.beside(0, KE.SIGMA + KE.C), "c left out": KE.beside(0, KE.SIGMA)},
    ("K11", "gate"): {"sign of σ": KE.sigmoid(log(KE.MASS) + KE.SIGMA + KE.C) * softmax(z[i, j])},
    ("K11", "sigmoid"): {"sign of c": KE.KEPT / (KE.KEPT + (1 - KE.KEPT) * exp(KE.C)), "no effect": KE.KEPT},
    ("K12", "total"): {"one key's worth": KE.ROW + KE.C},
    ("K12", "mixed"): {
        "no effect": over(j, mu[i, j] * z[i, j] * v[j, a]) / KE.ROW,
        "mean alone": over(j, mu[i, j] * v[j, a]) / KE.SEEN,
        "sum for mean": (1 - KE.SHARE) * over(j, mu[i, j] * z[i, j] * v[j, a]) / KE.ROW
        + KE.SHARE * over(j, mu[i, j] * v[j, a]),
    },
    ("V8", "shift"): {"no effect": readers.score(0), "W_o left out": readers.score(0) + over(a, readers.SHARED)},
    ("V8", "ranking"): {"turned": readers.read(0).subs(i, r) - readers.read(0)},
    ("V8", "auc"): {"one": Integer(1)},
    ("V8", "reversed"): {"kept": Rational(1, 9)},
    ("V9", "keys"): {"U_k b_c left in": softmax(latent.logit(bias=False) + latent.LATENT[j, V.x], mask=mu[V.u, i, j])},
    ("V9", "values"): {"no effect": latent.output(bias=False), "U_v left out": latent.output(bias=False) + b[a]},
    ("V9", "fold"): {"W_o left out": latent.through(False, latent.BO[latent.f] + over(a, over(V.u, latent.FROM)))},
    ("Q10", "length"): {"half": query_price.LENGTHS / 2},
    ("Q10", "bound"): {"tanh(osc/8)": tanh(Q3.B / 8)},
    ("Q10", "inverse"): {"half the price": exp(Q3.B / 4)},
    ("Q10", "others"): {
        "gap twice": over(l, query_limits.NOT_J) * exp(query_limits.OSC - 2 * query_limits.T * query_limits.GAP)
    },
    ("Q10", "enough"): {
        "half ε": log(query_price.EPS / 2),
        "other keys left out": query_limits.OSC - query_price.PRICE,
    },
    ("Q11", "slope"): {"sign": s * (query_reach.TARGET[e] - query_reach.MEAN), "scale left out": query_reach.MEAN},
    ("Q11", "reached"): {"missed": Integer(1)},
    ("Q11", "bends"): {"straight": Integer(0), "second moment": over(j, query_reach.LINE * beta[j] ** 2)},
    ("Q11", "null"): {"β_j alone": exp(beta[j])},
    ("Q8", "slope"): {
        "not centred": s * over(j, G8.WEIGHTS * v[j, e] * k[j, G8.third]),
        "s left out": G8.COVARIANCE / s,
    },
    ("Q8", "above"): {"s/8": G8.BOUND / 2, "diam V alone": s / 4 * G8.WIDE},
    ("Q8", "below"): {"s/5": G8.BOUND * Rational(4, 5)},
    ("Q8", "attained"): {"s": s, "s/2": s / 2},
    ("Q8", "loss"): {"half": G8.BOUND * over(i, G8.PUSH[i]) / 2},
    ("Q9", "ratio"): {"sign of β": over(l, G8.put(G8.P, j, l) * exp(beta[l])) * exp(beta[j])},
    ("Q9", "back"): {"M": over(j, G8.P * exp(beta[j]))},
    ("Q9", "first"): {"osc²/2": G8.UNDER - G8.START - G8.T * G8.OSC**2, "mean at 0": -G8.T * G8.OSC**2 / 4},
    ("Q9", "second"): {"mean square": over(j, G8.TILTED * beta[j] ** 2)},
    ("Q9", "variance"): {"osc²/8": G8.OSC**2 / 8},
    ("R1", "count"): {"of the full matrix": R.K * R.R * R.C},
    ("R1", "dimension"): {"as many as numbers": R.K * (R.R + R.C), "rc": R.R * R.C},
    ("R1", "rank"): {"k − 1": R.K - 1},
    ("R1", "vera_dimension"): {"gauge forgotten": R.K + R.C},
    ("R1", "vera_most"): {"one less": R.K + R.C - 2},
    ("R1", "vera_only"): {"λ left out": Quantity("", lambda r, c, k: R.left_over(r, c, k).subs(Symbol("λ0"), 1))},
    ("R1", "dora_first"): {"starts at b": R.BIAS[0]},
    ("R1", "dora_length"): {"scale left out": R.LENGTH},
    ("R2", "gradient"): {"not zero": Integer(1)},
    ("R2", "weights"): {"g left in": softmax(s * over(a, q[i, a] * (k[j, a] * R.MADE)))},
    ("R2", "shift"): {"scaled": over(j, R.P * v[j, a]) + s * R.MADE},
    ("I1", "measure"): {"plus": 1 + importance.BETWEEN / importance.LONG**2},
    ("I1", "acute"): {"half": Rational(1, 2)},
    ("I1", "most"): {"one": Integer(1)},
    ("I2", "scale"): {"no scale": importance.magnitude(b[a], importance.NEW[a])},
    ("I2", "triangle"): {"half": PROOFS["I2"].claims["triangle"].right / 2},
    ("I2", "sign"): {"sum of both": -over(a, Abs(importance.NEW[a] + b[a])) / d},
    ("I2", "turned"): {"invariant": Integer(1)},
    ("I3", "bound"): {"half": 1 / (2 * d)},
    ("I3", "joint"): {"half": Rational(1, 2)},
    ("I3", "keys"): {"one": Integer(1)},
    ("G1", "key"): {"L has a slope": Y.DECAY * b[e] + s * over(i, q[i, e]), "λ twice": 2 * Y.DECAY * b[e]},
    ("G1", "value"): {
        "one query head": over(o, Y.O[o, Y.u, e] * Derivative(Y.VALUE_LOSS, Y.BO[o])),
        "b_o alone": Y.DECAY * over(o, Y.BO[o]),
    },
    ("G1", "logits"): {"transposed": Y.against(Y.LOGIT_LOSS, Y.K, a, e) - Y.DECAY * Y.squares(Y.K, a, e)},
    ("G1", "output"): {"λ left out": over(Y.u, Y.by_output(Y.OUTPUT_LOSS, Y.u, a, e))},
    ("G2", "logits"): {"transposed": Y.against(Y.LOGITS, Y.K, a, e), "of itself": Y.against(Y.LOGITS, Y.Q, e, a)},
    ("G2", "output"): {"transposed": Y.by_output(Y.OUTPUT, e, a), "zero": Integer(0)},
    ("G2", "keys"): {"one query head": over(o, Derivative(Y.LOGITS, Y.K[e, o]) * Y.K[a, o])},
    ("G2", "values"): {"transposed": over(Y.u, Y.by_output(Y.SHARED, Y.u, e, a))},
    ("G2", "flow"): {"the other way": -Y.rate(Y.LOGITS, Y.K), "half of it": -Y.against(Y.LOGITS, Y.K, a, e)},
    ("G2", "flow_out"): {"half of it": -2 * Y.by_output(Y.OUTPUT, a, e)},
}
MISTAKEN = [(name, part, how) for (name, part), found in MISTAKES.items() for how in found]


def mistaken(name: str, part: str, how: str) -> list[Step]:
    return deciding(name, part, replace(PROOFS[name].claims[part], right=MISTAKES[name, part][how]))


@pytest.mark.parametrize(("name", "part", "how"), MISTAKEN)
def test_a_likely_mistake_is_rejected(name: str, part: str, how: str):
    steps = mistaken(name, part, how)
    assert steps
    assert not any(step.decide().ok for step in steps)


def test_each_statement_has_its_likely_mistakes():
    assert {name for name, _ in MISTAKES} == set(PROOFS)


@pytest.mark.parametrize(
    ("name", "part", "how"), [x for x in MISTAKEN if x[0] in ("K1", "V1", "V2", "Q1", "Q4") and x[1] != "inside"]
)
@pytest.mark.parametrize("blind", ["identical", "tried"])
def test_either_half_of_the_check_rejects_alone(name: str, part: str, how: str, blind: str, monkeypatch):
    """The normal form decides identities for all sizes, the guard adds numbers up at small ones."""
    answer = {"identical": lambda *_: True, "tried": lambda *_: (True, "")}[blind]
    monkeypatch.setattr(f"minibeft.proofs.steps.{blind}", answer)
    assert not any(step.decide().ok for step in mistaken(name, part, how))


# ---------------------------------------------------------------- steps and words are tied together


def believed(name: str, **change) -> Report:
    """A report in which every part counts as proved, unchecked."""
    proof = PROOFS[name]
    outcomes = tuple(Outcome(part, True, "", 0.0) for part in proof.parts())
    return replace(Report(proof.theorem, outcomes, tuple(proof.claims.values())), **change)


@pytest.mark.parametrize("name", PROOFS)
def test_every_word_of_the_claim_has_its_formula(name: str):
    assert believed(name).loose == []


@pytest.mark.parametrize("name", [name for name in PROOFS if not THEOREMS[name].measured])
def test_a_claim_in_other_words_is_not_proved(name: str):
    theorem = THEOREMS[name]
    words = {part.says for part in PROOFS[name].claims.values() if part.says}
    others = [theorem.claim + " The bias is 7.", "O(b_v) = 7 O(0)", *(theorem.claim.replace(x, "7") for x in words)]
    for claim in others:
        report = believed(name, theorem=replace(theorem, claim=claim))
        assert report.loose, claim
        assert not report.ok


@pytest.mark.parametrize("name", PROOFS)
def test_a_part_without_its_step_is_missed(name: str):
    report = believed(name)
    for claim in report.claims:
        others = tuple(
            x
            for x in report.outcomes
            if not (isinstance(x.part, Step) and x.part.decides and x.part.decides.same(claim))
        )
        assert not replace(report, outcomes=others).ok
        failed = tuple(replace(x, ok=x in others) for x in report.outcomes)
        assert replace(report, outcomes=failed).loose


def test_one_is_one_proves_nothing():
    assert not equal("one", 1, 1).decide().ok
    one = equal("true, and nothing to the purpose", over(j, v[j, a] + 1), over(j, v[j, a]) + m)
    assert one.decide().ok
    for name in PROOFS:
        steps = tuple(x for x in believed(name).outcomes if not isinstance(x.part, Step))
        assert not believed(name, outcomes=(Outcome(one, True, "", 0.0), *steps)).ok
        after = believed(name, outcomes=(*believed(name).outcomes, Outcome(one, True, "", 0.0)))
        assert after.loose == ["the last step decides no part of the claim"]


def test_what_is_printed_is_what_is_decided():
    """Names are written out again before a step is accepted."""
    left, right = over(j, V.P * (v[j, a] + b[a])), V.PLAIN + b[a]
    assert equal("", left, right, called={V.PLAIN: Symbol("O", real=True)}).decide().ok
    wrong: Names = {V.PLAIN: Symbol("O", real=True), over(j, z[i, j]): Symbol("O", real=True)}
    step = equal("", over(j, z[i, j]) + V.PLAIN, over(l, z[i, l]) + V.PLAIN, called=wrong)
    assert not step.decide().ok


def test_a_name_is_printed_with_what_it_stands_for():
    step = equal("", V.SHIFTED, V.PLAIN + b[a], called={V.PLAIN: Symbol("O", real=True)})
    assert [(x.left, x.sign, x.right) for x in step.formulas[1:]] == [(Symbol("O", real=True), "stands for", V.PLAIN)]


def test_a_step_decides_the_sign_that_it_is_asked_for():
    for sign in ("≤", ">", MISSES, "≠"):
        assert not equal("", says("", over(j, V.P), sign, 1)).decide().ok


# ---------------------------------------------------------------- the guards of the guard


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


@pytest.mark.parametrize("name", ["K1", "V1", "Q3", "I1"])
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
