"""The small layer and its measurements, worked out again from the definitions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from breakers import PLAIN
from torch import Tensor

from minibeft.certificate.certify import Certificate, Finding, Verdict, certify, judge
from minibeft.certificate.certify import DimRange as Part
from minibeft.certificate.report import COLOURS, render
from minibeft.certificate.witness import (
    Layer,
    Witness,
    fold,
    key_effect,
    key_witness,
    query_witness,
    reach,
    small,
    value_witness,
)
from minibeft.families.attention import Site
from minibeft.show.grid import Grid
from minibeft.theory import statements
from minibeft.theory.rotary import Rotary
from minibeft.theory.variants import AttentionSpec

PRIME = 10_007
SMALL = {
    # (H, G, D, C, rotary dims) → the same of the small one
    "BERT": ((12, 12, 64, 768, 64), (2, 2, 8, 16, 8)),
    "GPT-J": ((16, 16, 256, 4096, 64), (2, 2, 8, 16, 2)),
    "Phi": ((32, 8, 80, 2560, 32), (8, 2, 10, 80, 4)),
    "one pair of 24 dims": ((4, 4, 24, 96, 2), (2, 2, 24, 48, 2)),
    "3 pairs of 8": ((4, 1, 8, 20, 6), (4, 1, 8, 20, 6)),
    "a prime, all of it": ((2, 1, PRIME, 50, PRIME), (2, 1, 64, 1, 64)),
    "a prime, in part": ((2, 1, PRIME, 2 * PRIME, 5000), (2, 1, 64, 128, 30)),
    "a prime, one pair": ((2, 1, PRIME, 2 * PRIME, 2), (2, 1, 64, 128, 2)),
    "many heads": ((2**20, 1, 8, 2**23, 8), (512, 1, 8, 4096, 8)),
    "nothing turns": ((4, 4, 24, 96, 0), (2, 2, 24, 48, 0)),
}


@pytest.mark.parametrize(("large", "expected"), SMALL.values(), ids=SMALL)
def test_the_sizes_of_the_small_layer(large, expected):
    *sizes, turned = large
    s = small(AttentionSpec(*sizes, rotary=Rotary(turned)))
    assert s.rotary is not None
    assert (s.heads, s.kv_heads, s.head_size, s.width, s.rotary.dims) == expected
    if turned == sizes[2]:
        without = small(AttentionSpec(*sizes))
        assert (without.heads, without.kv_heads, without.head_size, without.width) == expected[:4]
        assert without.rotary is None


@pytest.mark.parametrize(("window", "left"), [(None, None), (128, 4), (3, 3)])
@pytest.mark.parametrize(("prefix", "given"), [(0, 0), (1, 1), (20, 2)])
def test_the_window_and_the_prefix_of_the_small_layer(window, left, prefix, given):
    s = small(replace(PLAIN, window=window, prefix=prefix))
    assert (s.window, s.prefix) == (left, given)


@pytest.mark.parametrize("rotary", [None, Rotary(4)])
def test_what_the_small_layer_reads(rotary):
    """Two sequences of seven tokens; a cross-attention's keys come of nine others, of seven where positions turn."""
    own = Layer.random(replace(PLAIN, rotary=rotary))
    assert own.x.shape == (2, 7, PLAIN.width)
    assert own.y is own.x
    other = Layer.random(replace(PLAIN, cross=True, rotary=rotary))
    assert other.y.shape == (2, 9 if rotary is None else 7, PLAIN.width)
    assert torch.equal(other.x, own.x)
    assert not torch.equal(other.y[:, :7], other.x)


SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sink": {"sink": "learned"},
    "prefix": {"prefix": 2},
    "add_bias_kv": {"bias_kv": True},
    "add_zero_attn": {"zero_key": True},
    "rotary in a window": {"rotary": Rotary(16), "window": 2},
    "sigmoid": {"weighting": "sigmoid"},
    "differential": {"differential": 0.3},
}


@pytest.mark.parametrize("name", SPECS)
def test_Q3s_ratio_row_by_row(name):
    """TV/tanh(osc/4), osc of the change of the row's log-weights; weight that no key gets counts as one more entry."""
    spec = replace(PLAIN, **SPECS[name])
    witness, p = query_witness(spec), Layer.random(small(replace(spec, differential=None))).instance()
    before, after, ratios = p.weights(b_q=None).flatten(0, 2), p.weights().flatten(0, 2), []
    for one, other in zip(before.tolist(), after.tolist(), strict=True):
        rest = [] if name in ("plain", "rotary in a window", "sigmoid", "differential") else [1 - sum(one)]
        pairs: list[tuple[float, float]] = list(
            zip([*one, *rest], [*other, *([1 - sum(other)] if rest else [])], strict=True)
        )
        change = [math.log(b / a) for a, b in pairs if a > 0]
        limit = math.tanh((max(change) - min(change)) / 4)
        if limit > 1e-3:
            ratios.append(sum(abs(b - a) for a, b in pairs) / 2 / limit)
    assert witness.value == pytest.approx(max(ratios), rel=1e-9)
    assert witness.allowed == pytest.approx(1 + 2e3 * statements.query_errors(p).max().item(), rel=1e-12)
    largest = witness.details["largest change of a double difference of log P"]
    assert largest == statements.blindness(p).value.max().item()


@pytest.mark.parametrize("weighting", ["softmax", "sigmoid"])
def test_a_row_with_one_key_has_no_ratio(weighting):
    """A key that is hidden is not one whose weight stays."""
    assert query_witness(replace(PLAIN, window=1, weighting=weighting)).value == 0.0


# Two broken hypotheses for each bias: what is measured where one of them alone is left.
PAIRS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "q": (query_witness, {"no-softcap": {"softcap": 2.0}, "no-relative-vectors": {"relative_query": True}}),
    "k": (key_witness, {"no-softcap": {"softcap": 2.0}, "no-sink": {"sink": "one"}}),
    "v": (value_witness, {"no-sink": {"sink": "one"}, "ungated": {"gate": True}}),
}


@pytest.mark.parametrize("bias", "qkv")
def test_each_hypothesis_alone(bias):
    witness, changes = PAIRS[bias]
    both: dict[str, Any] = {}
    for change in changes.values():
        both |= change
    found = witness(replace(PLAIN, **both))
    assert found.by_hypothesis.keys() == changes.keys()
    for hypothesis, change in changes.items():
        one = witness(replace(PLAIN, **change))
        number = one.details["largest change of a double difference of log P"] if bias == "q" else one.value
        assert found.by_hypothesis[hypothesis] == number
        assert number not in (found.value, 0.0)


def test_the_witness_on_b_k():
    spec = small(replace(PLAIN, head_size=5, rotary=Rotary(4)))
    witness = key_witness(spec)
    gap = key_effect(spec)
    assert (witness.value, witness.allowed) == (gap.value.max().item(), gap.allowed.max().item())
    assert witness.details == {
        "on the dims that are not rotated": key_effect(spec, range(4, 5)).value.max().item(),
        "on the rotated dims": key_effect(spec, range(4)).value.max().item(),
    }
    assert key_witness(replace(PLAIN, rotary=Rotary(16))).details == {}
    assert key_witness(PLAIN).details == {}


def row_sums(spec: AttentionSpec) -> Tensor:
    layer = Layer.random(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return layer.run(layer.params, training=True)[1].sum(-1)


def test_the_witness_on_b_v():
    """The folded output, the shift, dropout's row sums with a seed of their own, and what b_v and b_o reach."""
    spec = small(replace(PLAIN, heads=4, head_size=3, width=7, dropout=0.4, causal=False))
    torch.manual_seed(5)
    witness = value_witness(spec)
    assert torch.initial_seed() == 5
    gap = fold(spec)
    assert (witness.value, witness.allowed) == (gap.value.max().item(), gap.allowed.max().item())
    shift = statements.value_shift(Layer.random(spec).instance()).value.max().item()
    assert witness.details == {
        "max |O(b_v) − O(0) − b_v|": shift,
        "max |row sum of P − 1| in training": (row_sums(spec) - 1).abs().max().item(),
        "dimension that b_v reaches here": 3,
        "dimension that b_o reaches here": 7,
    }
    assert reach(Layer.random(spec)) == 3
    assert "max |row sum of P − 1| in training" not in value_witness(replace(spec, dropout=0.0)).details


WEIGHTINGS: dict[str, tuple[str, str]] = {
    "softmax": ("limited", "Q3"),
    "linear": ("limited", "Q7"),
    "sigmoid": ("active", "Q3"),
    "relu": ("active", "Q3"),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("bias", "qkv")
def test_which_biases_the_model_has(weighting, bias):
    """present says which, and a note that the verdict is on one added to the projection where it is not."""
    for biases in (frozenset(bias), frozenset("qkvo") - {bias}):
        verdicts = judge(replace(PLAIN, weighting=weighting, biases=biases))
        assert {name: verdict.present for name, verdict in verdicts.items()} == {n: n in biases for n in "qkv"}
        for name, verdict in verdicts.items():
            note = f"the model has no b_{name}: the verdict is on one added to the projection"
            assert (note in verdict.notes) == (name not in biases)
            assert verdict.bias == name
        assert (verdicts["q"].status, verdicts["q"].theorem) == WEIGHTINGS[weighting]


def test_the_notes_on_b_q_and_b_v():
    sink = "the sink is one more entry of the row, with logit shift 0 and value 0"
    two = "for each of the two softmaxes; their difference moves by up to 1.25 ×"
    assert judge(PLAIN)["q"].notes == ()
    assert judge(replace(PLAIN, sink="one"))["q"].notes == (sink,)
    assert judge(replace(PLAIN, differential=-0.25))["q"].notes == (two,)
    dropped = "dropout 0.1 on P: exact at evaluation; in training the shift is b_v in expectation"
    assert judge(PLAIN)["v"].notes == (
        "b_v reaches at most 6 dimensions of the output, as many as b_o (V4, if W_o has full rank)",
        "folding repeats b_v over the 2 query heads that share its head",
    )
    assert judge(replace(PLAIN, heads=1, width=17, biases=frozenset("qkv"), dropout=0.1))["v"].notes == (
        dropped,
        "b_v reaches at most 16 dimensions of the output, b_o reaches all 17 (V6)",
        "the output projection has no bias: folding creates one",
    )
    assert judge(replace(PLAIN, sink="one", dropout=0.1))["v"].notes == ()


def test_one_dim_that_does_not_turn():
    verdict = judge(replace(PLAIN, head_size=5, rotary=Rotary(4)))["k"]
    assert verdict.dims == (Part(0, 3, "active"), Part(4, 4, "null"))
    assert judge(replace(PLAIN, rotary=Rotary(16)))["k"].dims == judge(PLAIN)["k"].dims == ()


def test_a_certificate_in_plain_values():
    c = certify({"model_type": "bert", "num_hidden_layers": 2})
    assert c.model == "config"
    verdicts = {b: v.reason for b, v in c.findings[0].verdicts.items()}
    written = c.as_json()
    assert written.keys() == {"model", "model_type", "unclear", "verdicts", "findings"}
    assert (written["model"], written["model_type"], written["unclear"]) == ("config", "bert", None)
    assert written["verdicts"] == {"q": "limited", "k": "null", "v": "foldable"}
    (finding,) = written["findings"]
    assert (finding["site"], finding["layers"]) == ("self-attention", (0, 1))
    assert {b: v["reason"] for b, v in finding["verdicts"].items()} == verdicts
    unclear = certify({"model_type": "unheard-of"})
    assert unclear.unclear is not None
    assert unclear.verdict("k") == Verdict("k", "unknown", "", unclear.unclear)
    assert unclear.as_json()["unclear"] == unclear.unclear
    assert list(render(unclear)) == [f"config: unheard-of, unknown: {unclear.unclear}"]


def test_the_whole_report():
    """The first sentence, the model, a table for each kind of attention, and how to read it."""
    witness = Witness("the number", 0.125, 0.5, {"unrotated": 2.0}, {"on a part": 0.25})
    parts = (Part(0, 3, "active"), Part(4, 15, "null"))
    verdicts = {
        "q": Verdict("q", "limited", "Q3", "why q"),
        "k": Verdict("k", "active", "K4", "why k", ("unrotated",), True, parts, ("a note",), witness),
    }
    verdicts["v"] = Verdict("v", "foldable", "V2", "why v", present=True)
    findings = [Finding(Site(name, layers, PLAIN), verdicts) for name, layers in (("one", (0, 1, 2)), ("two", (4,)))]
    sentence, model, table, reading = render(Certificate("the model", "kind", tuple(findings)))
    assert sentence == (
        "In this kind model b_k has an effect on some entries of each head; b_v only shifts the output, so the bias "
        "after W_o can carry it; b_q has a bounded effect."
    )
    assert model == "the model"
    why = (
        "why k\nactive on dims 0 to 3 of each head\nnull on dims 4 to 15 of each head\nmeasured: the number\n"
        "  2 where 'unrotated' alone is broken\n  on a part: 0.25\na note"
    )
    rows = [
        ("b_q", "limited", "Q3", "why q", "", ""),
        ("b_k", "active", "K4", why, "0.12", "0.5"),
        ("b_v", "foldable", "V2", "why v", "", ""),
    ]
    header = ("bias", "verdict", "by", "why", "measured", "allowed")
    assert table == Grid("one (layers 0 to 2); two (layer 4)", header, rows, styles=COLOURS)
    assert isinstance(reading, str)
    assert reading.startswith("Measured in float64 on a small random layer")
