"""The paired comparison over seeds: against scipy, against values by hand, and what few seeds cannot show."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test, t, ttest_1samp, ttest_rel

from minibeft.errors import BadInput
from minibeft.reproduce.report import orders, verdict
from minibeft.reproduce.statistics import detectable, half_interval, least_p, paired

SCORES = st.lists(st.tuples(st.integers(0, 872), st.integers(0, 872)), min_size=2, max_size=7)


@given(SCORES)
def test_it_agrees_with_scipy(counts):
    """Accuracies are counts of 872; the t test on them is scipy's to rounding, the exact test scipy's exactly."""
    first, second = ([count / 872 for count in column] for column in zip(*counts, strict=True))
    found = paired(first, second)
    assert found is not None
    assert found.n == len(counts)
    assert found.above == sum(a > b for a, b in counts)
    if len({a - b for a, b in counts}) > 1:
        assert found.p_t == pytest.approx(ttest_rel(first, second).pvalue, rel=1e-9)

    def total(a, b, axis):
        return (a - b).sum(axis=axis)

    whole = [[a for a, _ in counts], [b for _, b in counts]]
    theirs = permutation_test(whole, total, permutation_type="samples", n_resamples=2 ** len(counts), vectorized=True)
    # scipy doubles the smaller tail and we count both; signs come in pairs ±, so the tails are equal.
    assert found.p_exact == pytest.approx(min(1.0, theirs.pvalue), abs=1e-12)


def test_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2√3; 2 of the 8 sign patterns are as far from 0."""
    found = paired([2, 4, 6], [1, 2, 3])
    assert found is not None
    assert (found.mean, found.std, found.above, found.p_exact) == (2, 1, 3, 0.25)
    assert found.p_t == pytest.approx(0.0741799, abs=1e-7)


def test_the_interval_is_scipys():
    """Differences 1, 2, 3 again: mean 2, and scipy's interval around it."""
    low, high = ttest_1samp([1, 2, 3], 0).confidence_interval(0.95)
    half = half_interval(1.0, 3)
    assert (2 - half, 2 + half) == (pytest.approx(low), pytest.approx(high))


def test_what_can_be_seen_is_seen_four_times_of_five():
    """4,000 tables of 8 seeds whose true difference is the detectable one: the t test finds it in a share of 0.8. By
    Hoeffding the share is off by 0.06 or more with a probability of at most 2 exp(−2 · 4000 · 0.06²) < 1e-12."""
    draws = np.random.Generator(np.random.PCG64(0)).normal(detectable(0.03, 8), 0.03, (4000, 8))
    statistic = draws.mean(1) / (draws.std(1, ddof=1) / 8**0.5)
    assert np.mean(np.abs(statistic) > t.ppf(0.975, 7)) == pytest.approx(0.8, abs=0.06)


def test_five_seeds_cannot_reach_the_usual_level():
    """However far apart: two of 32 patterns. Six can."""
    found = paired([0.9] * 5, [0.5, 0.51, 0.52, 0.53, 0.54])
    assert found is not None
    assert found.p_exact == least_p(5) == 0.0625
    assert least_p(6) < 0.05 < least_p(5)


def test_equal_runs_are_no_evidence():
    found = paired([0.5287, 0.53], [0.5287, 0.53])
    assert found is not None
    assert (found.mean, found.std, found.above, found.p_t, found.p_exact) == (0, 0, 0, 1, 1)


def test_one_seed_shows_nothing():
    assert paired([0.7], [0.6]) is None


def test_too_many_seeds_to_list():
    with pytest.raises(BadInput, match="at most 20 seeds"):
        paired(range(21), [0] * 21)


@pytest.mark.parametrize(
    ("differences", "p_t", "said"),
    [
        ([0.1, 0.2], 0.2, "yes, in every seed"),
        ([-0.1, -0.2], 0.2, "no, the reverse in every seed"),
        ([0.1, 0.0, 0.1], 0.01, "on average"),
        ([-0.1, 0.0, -0.1], 0.2, "no, the reverse on average, not significant"),
        ([0.0, 0.0], 1.0, "no, equal"),
    ],
)
def test_what_is_said_of_an_order(differences, p_t, said):
    assert verdict(differences, p_t) == said


def test_a_difference_is_told_by_its_mean_and_its_median():
    """By hand: of 40, 20 and 3 points the mean is 21, the median 20; the half interval is that of Student's t."""
    scores = {"v": [0.9, 0.8, 0.73], "q": [0.5, 0.6, 0.7]}
    cells = [{"row": row, "rate": "own", "regime": "low", "scores": found} for row, found in scores.items()]
    test = paired(scores["v"], scores["q"])
    assert test is not None
    verdict = {"first": "v", "second": "q", "rate": "own", "regime": "low"} | asdict(test)
    record = {"cells": cells, "searches": [], "verdicts": [verdict], "seeds": [0, 1, 2], "least_p": 0.25}
    ((*_, difference, _, _, _, _),) = orders(record).rows
    assert difference == f"+21.0 ± {100 * 4.302653 * 0.185203 / 3**0.5:.1f} (+20.0)"
