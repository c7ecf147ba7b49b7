"""The harness against known values: what transformers' own BERT reached under the same protocol, and K3 exactly.

Skipped, visibly, where the record is not there: it takes hours and is committed, not made by the tests.
"""

from math import sqrt
from statistics import mean, stdev

import pytest
from evidence import ROOT, both_paths, protocol_scores, record
from scipy.stats import t

FILE = ROOT / "records" / "reproduce-biases.json"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE.name} is not in records/ yet")
# transformers' BertForSequenceClassification on all-MiniLM-L6-v2, SST-2, 1,000 sentences: mean and deviation, 5 seeds.
REFERENCE = {"v": (0.7229, 0.0038), "q": (0.608, 0.033)}


@pytest.mark.parametrize("row", REFERENCE)
def test_it_reaches_what_the_reference_reaches(row):
    """Two means, drawn apart: a difference beyond Welch's 99 % interval would be chance once in a hundred."""
    (middle, deviation), ours = REFERENCE[row], protocol_scores(row)
    assert len(ours) == 8
    parts = deviation**2 / 5, stdev(ours) ** 2 / 8
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 7)
    assert abs(mean(ours) - middle) <= t.ppf(0.995, freedom) * sqrt(sum(parts))


def test_the_fast_path_is_as_accurate_as_the_plain_one():
    """Over five seeds the means differ by less than either's standard error."""
    fast, plain = both_paths()
    assert len(fast) == len(plain) == 5
    assert abs(mean(fast) - mean(plain)) < min(stdev(fast), stdev(plain)) / sqrt(5)


def test_b_k_is_the_head_alone():
    """K3: in every pair of runs every epoch's accuracy is the same, and the heads differ by rounding."""
    same = record("reproduce-biases")["same"]
    assert {pair["seed"] for pair in same} == set(range(8))
    assert all(pair["difference"] <= pair["allowed"] for pair in same)
    assert all(pair["same_epochs"] == pair["epochs"] for pair in same if pair["learning_rate"] == 4e-4)
    assert protocol_scores("k") == protocol_scores("none")


def test_b_k_is_the_same_in_every_form():
    """K3 with R2: every form of b_k has the same accuracy at every epoch, and the heads differ by rounding."""
    same = record("reproduce-reparam")["same"]
    assert {pair["seed"] for pair in same} == set(range(6))
    assert {pair["second"] for pair in same} == {"k vera", "k vera1d", "k dora"}
    assert all(pair["difference"] <= pair["allowed"] for pair in same)
    assert all(pair["same_epochs"] == pair["epochs"] == 50 for pair in same)


def test_it_is_the_protocol():
    """The settings that the reference was run with."""
    settings = record("reproduce-biases")["settings"]
    expected = {"batch": 16, "eps": 1e-6, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "clip": 1.0}
    assert {name: settings[name] for name in expected} == expected
    runs = [one for one in record("reproduce-biases")["runs"].values() if not one["held_out"]]
    assert {(one["examples"], one["epochs"]) for one in runs} == {(1000, 16)}
