"""Set-level metrics against published floors, scipy, and naive definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import hmean, ks_2samp

from unlearn_eval import metrics as m
from unlearn_eval.metrics.utility import _log_tail
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=50, deadline=None)
positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


# harmonic mean and model utility


def test_harmonic_mean_by_hand():
    assert m.harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert m.harmonic_mean([1, 2, 4]) == pytest.approx(12 / 7)
    assert m.harmonic_mean([0.9, 0.0, 0.9]) == 0.0
    assert m.harmonic_mean([0.9, None]) is m.harmonic_mean([0.0, None]) is m.harmonic_mean([]) is None
    assert m.harmonic_mean([0.9, math.nan]) is None
    assert 0 < m.harmonic_mean([5e-324, 1.0]) < 1e-322
    with pytest.raises(UserError, match=">= 0"):
        m.harmonic_mean([0.5, -0.1])


@quick
@given(positive)
def test_harmonic_mean_properties(values):
    mean = m.harmonic_mean(values)
    assert mean == pytest.approx(float(len(values) / sum(1 / Fraction(v) for v in values)))
    assert mean == pytest.approx(float(hmean(values)))
    assert m.harmonic_mean(values[::-1]) == pytest.approx(mean)
    assert min(values) * (1 - 1e-12) <= mean <= np.mean(values) * (1 + 1e-12)


def test_model_utility():
    parts = dict.fromkeys(m.MODEL_UTILITY_PARTS, 1.0)
    assert len(parts) == 9
    assert m.model_utility(parts) == 1.0
    assert m.model_utility({**parts, "world_facts_rouge": 0.0}) == 0.0
    assert m.model_utility({**parts, "retain_probability": 0.1, "other": 0.0}) == pytest.approx(9 / (8 + 10))
    assert m.model_utility({**parts, "real_authors_truth_ratio": None}) is None
    del parts["retain_rouge"]
    with pytest.raises(UserError, match="lacks retain_rouge"):
        m.model_utility(parts)


@pytest.mark.parametrize("part", m.MODEL_UTILITY_PARTS)
def test_every_part_counts(part):
    parts = dict.fromkeys(m.MODEL_UTILITY_PARTS, 0.8)
    assert m.model_utility({**parts, part: 0.2}) == pytest.approx(9 / (8 / 0.8 + 1 / 0.2))


# forget quality


@pytest.mark.parametrize(("n", "floor"), [(40, 1.86e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_complete_separation_gives_the_published_floor(n, floor):
    quality = m.forget_quality(np.arange(n), np.arange(n) + 1000.0)
    assert quality.p_value == pytest.approx(floor, rel=5e-3)
    assert quality.p_value == pytest.approx(2 / math.comb(2 * n, n))
    assert quality.log10_p == pytest.approx(math.log10(floor), abs=3e-3)
    assert (quality.statistic, quality.n, quality.n_reference) == (1.0, n, n)


def test_the_same_model_is_the_retain_model():
    ratios = np.random.default_rng(0).lognormal(size=100)
    quality = m.forget_quality(ratios, ratios[::-1])
    assert (quality.p_value, quality.log10_p, quality.statistic) == (1.0, 0.0, 0.0)


def test_no_reference_is_none_and_the_undefined_are_dropped():
    assert m.forget_quality([1.0], None) is m.forget_quality([], [1.0]) is None
    assert m.forget_quality([1.0], [None, math.nan]) is None
    quality = m.forget_quality([0.1, None, math.nan, 0.2], [0.3, 0.4, 0.5])
    assert (quality.n, quality.n_reference) == (2, 3)
    assert quality.p_value == pytest.approx(2 / math.comb(5, 2))
    assert m.forget_quality([0.1, math.inf], [0.0, 0.05]).statistic == 1.0


def test_log10_p_outlives_p():
    n = 700
    separated = m.forget_quality(np.arange(n), np.arange(n) + 1e6)
    assert separated.p_value == 0.0
    assert separated.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2 * n, n)), rel=1e-12)

    n = 540  # p is subnormal: not 0, but without digits
    rounded = m.forget_quality(np.arange(n), np.arange(n) + 1e6)
    assert 0 < rounded.p_value < 1e-320
    assert rounded.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2 * n, n)), rel=1e-12)

    unequal = m.forget_quality(np.arange(900), np.arange(600) + 1e6)
    assert unequal.p_value == 0.0
    assert unequal.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(1500, 600)), rel=1e-12)

    n, steps = 1200, 1000  # D = 5/6
    partial = m.forget_quality(np.arange(n), np.arange(n) + steps)
    total = math.comb(2 * n, n)
    exact = 2 * (math.comb(2 * n, n - steps) - 0)  # n - 2 * steps < 0: no further terms
    assert partial.p_value < 1e-300
    assert partial.log10_p == pytest.approx(math.log10(exact) - math.log10(total), rel=1e-10)

    uneven = m.forget_quality(np.arange(2000), np.arange(1999) + 1500)
    assert uneven.p_value < 1e-300
    assert -1000 < uneven.log10_p < -300


@pytest.mark.parametrize(("n", "m_size", "shift"), [(400, 400, 330), (400, 400, 400), (300, 200, 9999)])
def test_the_tail_meets_scipy_where_p_still_fits(n, m_size, shift):
    result = ks_2samp(np.arange(n), np.arange(m_size) + shift)
    assert 0 < result.pvalue < 1e-100
    assert _log_tail(n, m_size, result.statistic) == pytest.approx(math.log(result.pvalue), rel=1e-9)


def test_the_asymptotic_tail_is_near_and_above():
    result = ks_2samp(np.arange(400), np.arange(399) + 300)
    tail = _log_tail(400, 399, result.statistic)
    assert math.log(result.pvalue) < tail < 0.6 * math.log(result.pvalue)


# At D = 1/n scipy's exact p is 1 plus a rounding error, so it warns and takes the asymptotic p, also 1.
@pytest.mark.filterwarnings("ignore:ks_2samp. Exact calculation")
@quick
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=25),
    st.lists(st.integers(-40, 40), min_size=1, max_size=25),
)
def test_p_is_the_same_under_monotone_maps(log_model, log_reference):
    # multiples of 1/8 whose images stay distinct in float64
    logs = [np.array(x) / 8 for x in (log_model, log_reference)]
    plain = m.forget_quality(*logs)
    expected = ks_2samp(*logs)
    assert plain.p_value == pytest.approx(expected.pvalue)
    assert plain.statistic == pytest.approx(expected.statistic)
    assert plain.log10_p == pytest.approx(math.log10(expected.pvalue))
    ratios = [np.exp(x) for x in logs]
    inverse, share = [1 / r for r in ratios], [1 / (1 + r) for r in ratios]
    for mapped in (ratios, inverse, share):
        assert m.forget_quality(*mapped).p_value == pytest.approx(plain.p_value, rel=1e-9)
    assert m.forget_quality(*logs[::-1]).p_value == pytest.approx(plain.p_value, rel=1e-9)
    assert m.forget_quality(logs[0][::-1], logs[1]) == plain
    assert 0 <= plain.p_value <= 1
    assert 0 <= plain.statistic <= 1


@quick
@given(st.integers(2, 20))
def test_forget_score_is_no_monotone_map(n):
    """Control: min(TR, 1/TR) folds the ratios, so a test on it would not see a sign."""
    assume(n > 1)
    low, high = np.exp(-np.arange(1, n + 1.0)), np.exp(np.arange(1, n + 1.0))
    folded = [[m.truth_ratio_score(r, "forget") for r in side] for side in (low, high)]
    assert m.forget_quality(low, high).statistic == 1.0
    np.testing.assert_allclose(*folded)


def test_combined_score():
    assert m.combined_score(0.0, 1.0) == 2.0  # oracle
    assert m.combined_score(1.0, 1.0) == 1.0  # unedited memorizer
    assert m.combined_score(0.3, 0.8) == pytest.approx(1.5)
    assert m.combined_score(None, 0.8) is m.combined_score(0.3, None) is None
    with pytest.raises(UserError, match="forget_rouge1 = 30"):
        m.combined_score(30.0, 0.8)
