"""Rank correlation: scipy's, ties and gaps, its interval, and what it is not defined for."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from unlearn_eval.metrics.correlation import ALL_ALIKE, TOO_FEW, rank_correlation
from unlearn_eval.utils.errors import UserError


def test_it_is_scipy_s_with_ties_and_without_what_is_missing():
    generator = np.random.default_rng(0)
    x = generator.random(40).round(1)
    y = (x + generator.random(40) > 1).astype(float)
    expected = spearmanr(x, y)
    found = rank_correlation([*x, None, 0.5], [*y, 1.0, float("nan")])
    assert (found.value, found.p_value, found.n) == (
        pytest.approx(expected.statistic),
        pytest.approx(expected.pvalue),
        40,
    )
    assert found.low < found.value < found.high
    assert found == rank_correlation(list(x), list(y)), "the draws are seeded"


@pytest.mark.parametrize("sign", [1, -1])
def test_both_ends(sign):
    found = rank_correlation(range(10), [sign * i**3 for i in range(10)])
    assert found.value == pytest.approx(sign)
    assert (found.low, found.high) == (pytest.approx(sign), pytest.approx(sign))


def test_the_interval_holds_nothing_where_there_is_nothing():
    generator = np.random.default_rng(1)
    inside = [rank_correlation(generator.random(60), generator.random(60), seed=i) for i in range(20)]
    assert sum(own.low < 0 < own.high for own in inside) >= 17


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2, 3], [1, 2, 3], TOO_FEW),
        ([1] * 9, range(9), ALL_ALIKE),
        (range(9), [0.0] * 9, ALL_ALIKE),
        ([], [], TOO_FEW),
    ],
)
def test_what_has_no_ranks_has_a_reason(x, y, reason):
    found = rank_correlation(list(x), list(y))
    assert (found.value, found.low, found.p_value, found.reason) == (None, None, None, reason)


def test_lengths_must_agree():
    with pytest.raises(UserError, match="3 numbers and 2"):
        rank_correlation([1, 2, 3], [1, 2])
