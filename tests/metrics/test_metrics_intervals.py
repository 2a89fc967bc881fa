"""Errors and intervals against scipy, exhaustive counts, and their coverage."""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unlearn_eval import metrics as m
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=30, deadline=None)
some_scores = st.lists(st.one_of(st.none(), st.floats(-100, 100)), max_size=12)


# mean_and_stderr


def test_mean_and_stderr_by_hand():
    mean, stderr, n = m.mean_and_stderr([1.0, 2.0, None, 3.0, math.nan])
    assert (mean, n) == (2.0, 3)
    assert stderr == pytest.approx(1 / math.sqrt(3))
    assert m.mean_and_stderr([5.0]) == (5.0, None, 1)
    assert m.mean_and_stderr([]) == m.mean_and_stderr([None]) == (None, None, 0)
    assert m.mean_and_stderr([2.0, 2.0]).stderr == 0.0
    assert math.isfinite(m.mean_and_stderr([1.7e308, 1.7e308]).mean)


@quick
@given(some_scores)
def test_mean_and_stderr_match_scipy(values):
    known = [v for v in values if v is not None]
    result = m.mean_and_stderr(values)
    assert result.n == len(known)
    if known:
        assert result.mean == pytest.approx(sum(known) / len(known), abs=1e-9)
    if len(known) > 1:
        assert result.stderr == pytest.approx(stats.sem(known), abs=1e-9)
    assert m.mean_and_stderr(values[::-1]) == pytest.approx(result, abs=1e-9)


# bootstrap


def test_bootstrap_is_seeded():
    sample = np.random.default_rng(1).normal(size=30)
    once = m.bootstrap(np.mean, sample, n_resamples=100, seed=3)
    assert m.bootstrap(np.mean, sample, n_resamples=100, seed=3) == once
    assert m.bootstrap(np.mean, sample, n_resamples=100, seed=np.random.default_rng(3)) == once
    assert m.bootstrap(np.mean, sample, n_resamples=100, seed=4) != once


def test_bootstrap_agrees_with_scipy_and_theory():
    sample = np.random.default_rng(1).exponential(size=80)
    ours = m.bootstrap(np.mean, sample, n_resamples=4000)
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=4000, method="percentile", rng=0)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    assert ours.stderr == pytest.approx(stats.sem(sample), rel=0.05)
    assert (ours.n_resamples, ours.n_dropped) == (4000, 0)
    narrower = m.bootstrap(np.mean, sample, n_resamples=1000, confidence=0.5)
    assert ours.low < narrower.low < sample.mean() < narrower.high < ours.high


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = m.bootstrap(np.mean, generator.normal(size=40), n_resamples=200, seed=generator, confidence=0.8)
        covered += interval.low <= 0 <= interval.high
    assert 0.68 < covered / 200 < 0.88  # four standard errors of a binomial around .78


def test_bootstrap_drops_and_counts_the_undefined():
    def share(sample):
        return None if sample[0] == 0 else float(sample.mean())

    interval = m.bootstrap(share, [0, 1, 1, 1], n_resamples=400)
    assert interval.n_resamples + interval.n_dropped == 400
    assert interval.n_dropped == pytest.approx(100, abs=40)
    assert m.bootstrap(lambda s: math.nan, [1, 2], n_resamples=5) == m.Interval(None, None, None, 0, 5)
    assert m.bootstrap(np.mean, [1.0], n_resamples=5) == m.Interval(None, None, None, 0, 0)
    assert m.bootstrap(np.mean, [1.0, 2.0], [], n_resamples=5).low is None


def test_bootstrap_resamples_each_sample_and_keeps_rows_together():
    rows = np.arange(20).reshape(10, 2)
    seen = []
    m.bootstrap(lambda a, b: seen.append((a, b)) or 0.0, rows, list("xyz"), n_resamples=20)
    assert all(a.shape == (10, 2) and (a[:, 1] - a[:, 0] == 1).all() and len(b) == 3 for a, b in seen)
    assert len({a.tobytes() for a, _ in seen}) == 20
    assert len({b.tobytes() for _, b in seen}) > 5


def test_bootstrap_of_an_auc_with_undefined_scores():
    generator = np.random.default_rng(0)
    forget, holdout = [None, *generator.normal(size=30)], [*generator.normal(1.0, size=30), None]
    interval = m.bootstrap(m.membership_auc, forget, holdout, n_resamples=100)
    assert 0.5 < interval.low < m.membership_auc(forget, holdout) < interval.high < 1


def test_bootstrap_refuses():
    for arguments, options in [
        ((), {}),
        (([1, 2],), {"confidence": 95}),
        (([1, 2],), {"n_resamples": 0}),
    ]:
        with pytest.raises(UserError, match="at least one sample"):
            m.bootstrap(np.mean, *arguments, **options)


# paired_comparison


def naive_sign_flip(differences):
    observed = abs(sum(differences))
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-9
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(flips) / len(flips)


def test_paired_comparison_by_hand():
    result = m.paired_comparison([1.0, 2.0, 3.0, None, 9.0], [2.0, 4.0, 6.0, 1.0, None])
    assert (result.difference, result.n) == (2.0, 3)
    assert result.stderr == pytest.approx(1 / math.sqrt(3))
    assert result.p_value == 0.25  # all three up: 2 of 8 sign patterns
    assert 1.0 <= result.low <= 2.0 <= result.high <= 3.0


def test_paired_comparison_edges():
    assert set(asdict(m.paired_comparison([None], [1.0])).values()) == {None, 0}
    one = m.paired_comparison([1.0], [2.0])
    assert (one.difference, one.stderr, one.low, one.high, one.p_value, one.n) == (
        1.0,
        None,
        None,
        None,
        1.0,
        1,
    )
    same = m.paired_comparison([0.3] * 30, [0.3] * 30)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.low == pytest.approx(-same.high)
    assert 0.05 < same.high < 0.1, "30 items that agree do not make the change certain"
    unbounded = m.paired_comparison([3.0] * 30, [5.0] * 30)
    assert (unbounded.difference, unbounded.low, unbounded.high) == (2.0, None, None)
    with pytest.raises(UserError, match="2 scores before and 1 after"):
        m.paired_comparison([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", [2, 5, 20, 100])
@pytest.mark.parametrize("change", [-1.0, -0.8, 0.0, 0.3, 1.0])
def test_items_that_all_change_alike_leave_an_interval_with_a_width(change, n):
    before = [max(0.0, -change)] * n
    result = m.paired_comparison(before, [one + change for one in before])
    assert result.low < result.high
    assert -1 <= result.low <= result.difference <= result.high <= 1
    # Agresti and Min's table of n matched pairs with half an item in each cell: the mean and variance of -1, 0, 1.
    b, c, total = n * max(change, 0) + 0.5, n * max(-change, 0) + 0.5, n + 2
    variance = (b + c) / total - ((b - c) / total) ** 2
    ends = stats.norm((b - c) / total, math.sqrt(variance / total)).interval(0.95)
    assert (result.low, result.high) == pytest.approx((max(-1, ends[0]), min(1, ends[1])))


@pytest.mark.parametrize(("mean", "bounds"), [(0.8, (0, 1)), (0.0, (0, 1)), (0.25, (-1, 1)), (2.0, (0, 2))])
def test_bounded_scores_that_agree_have_wilsons_interval(mean, bounds):
    low, high = m.summary_interval(mean, 0.0, 20, bounds)
    share = (mean - bounds[0]) / (bounds[1] - bounds[0])
    z, n = stats.norm.ppf(0.975), 20
    middle, half = (
        (share + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
    )
    expected = [bounds[0] + (bounds[1] - bounds[0]) * (middle + sign * half / (1 + z * z / n)) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected)
    assert bounds[0] <= low <= mean <= high <= bounds[1]


def test_unbounded_scores_that_agree_have_no_interval():
    assert m.summary_interval(1.5, 0.0, 12, None) is None
    assert m.summary_interval(0.5, 0.0, 12, (-math.inf, 1.0)) is None


def test_paired_comparison_is_seeded_and_sees_what_unpaired_cannot():
    generator = np.random.default_rng(0)
    before = generator.uniform(size=60)
    after = before + generator.normal(0.02, 0.01, size=60)
    result = m.paired_comparison(before, after, seed=5)
    assert m.paired_comparison(before, after, seed=5) == result
    assert m.paired_comparison(before, after, seed=np.random.default_rng(5)) == result
    assert result.p_value == 1e-4  # the least that 9999 flips can say
    assert 0 < result.low < result.difference < result.high
    assert stats.ttest_ind(before, after).pvalue > 0.5


def test_monte_carlo_p_agrees_with_scipy():
    generator = np.random.default_rng(2)
    before, after = generator.normal(size=25), generator.normal(0.4, 1.0, size=25)
    ours = m.paired_comparison(before, after).p_value
    theirs = stats.permutation_test(
        (after - before,), np.mean, permutation_type="samples", n_resamples=9999, rng=0
    ).pvalue
    assert 0.005 < theirs < 0.6
    # both are Monte-Carlo: four standard errors of their difference
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(2 * theirs * (1 - theirs) / 9999))


def test_p_values_are_uniform_without_a_difference():
    generator = np.random.default_rng(3)
    p = [m.paired_comparison(np.zeros(9), generator.normal(size=9), seed=generator).p_value for _ in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@quick
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_exact_p_matches_all_sign_patterns(differences):
    zeros = [0.0] * len(differences)
    result = m.paired_comparison(zeros, differences)
    assert result.p_value == pytest.approx(naive_sign_flip(differences))
    mirrored = m.paired_comparison(differences, zeros)
    assert mirrored.p_value == pytest.approx(result.p_value)
    assert mirrored.difference == -result.difference
    assert m.paired_comparison(zeros, differences[::-1]).p_value == pytest.approx(result.p_value)


# Of a mean whose items are not at hand ---------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(2, 40))
def test_the_interval_of_a_share_is_wilsons(n_right, n):
    n_right = min(n_right, n)
    mean, stderr, _ = m.mean_and_stderr([1.0] * n_right + [0.0] * (n - n_right))
    interval = stats.binomtest(n_right, n).proportion_ci(method="wilson")
    assert m.summary_interval(mean, stderr, n, (0.0, 1.0)) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=30).filter(lambda v: max(v) - min(v) > 1e-3))
def test_the_interval_of_other_means_is_students_cut_at_the_bounds(values):
    mean, stderr, n = m.mean_and_stderr(values)
    expected = stats.t.interval(0.95, n - 1, loc=mean, scale=stderr)
    assert m.summary_interval(mean, stderr, n) == pytest.approx(expected)
    cut = (max(0.0, expected[0]), min(1.0, expected[1]))
    assert m.summary_interval(mean, stderr, n, (0.0, 1.0)) == pytest.approx(cut)


@pytest.mark.parametrize("known", [(None, None, 5), (0.5, None, 5), (0.5, 0.1, 1)])
def test_without_a_standard_error_there_is_no_interval(known):
    assert m.summary_interval(*known) is None


def test_a_paired_interval_is_the_bootstraps():
    generator = np.random.default_rng(3)
    before, after = generator.random(40), generator.random(40)
    paired, interval = m.paired_comparison(before, after, seed=7), m.bootstrap(np.mean, after - before, seed=7)
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high), rel=1e-12)  # sums differ in order
