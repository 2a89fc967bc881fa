"""How sure is a mean: standard errors, bootstrap intervals, and paired comparisons of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unlearn_eval.metrics.arrays import FloatArray, MaybeNumbers, defined, drop_missing
from unlearn_eval.utils.errors import UserError

# 2^12 sign patterns are fewer than the Monte-Carlo draws, so up to 12 differences are counted out in full.
_EXACT_UP_TO = 12
_SIGN_FLIPS = 9_999
_FLIPS_AT_ONCE = 500
_Z = 1.959963984540054  # of 95 %, two-sided

# Of 0/1 scores; of others with few non-zero differences, and with many.
TESTS = ("exact McNemar", "exact sign flips", "sign flips")


class MeanAndStderr(NamedTuple):
    """A mean, its standard error, and the number of values behind it."""

    mean: float | None
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval.

    Attributes:
        low: lower end, or None with fewer than two usable resamples.
        high: upper end, or None.
        stderr: standard deviation of the statistic over the resamples, or None.
        n_resamples: resamples on which the statistic was defined.
        n_dropped: resamples on which it was not.
    """

    low: float | None
    high: float | None
    stderr: float | None
    n_resamples: int
    n_dropped: int = 0


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same items; None where too few items were scored in both.

    Attributes:
        difference: mean of after - before.
        stderr: its standard error, sample standard deviation over sqrt(n).
        low: lower end of the 95 % bootstrap interval.
        high: upper end.
        p_value: two-sided test of no difference.
        n: items scored in both.
        test: the test that gave it, one of `TESTS`.
    """

    difference: float | None
    stderr: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    test: str | None = None


def mean_and_stderr(values: Iterable[float | None]) -> MeanAndStderr:
    """The mean of the defined values, its standard error and their number.

    The standard error is the sample standard deviation (n - 1) over sqrt(n), None below two values; the mean
    is None without any.

    Args:
        values: one score for each item; None and NaN are left out.
    """
    known = drop_missing(values)
    if not known.size:
        return MeanAndStderr(None, None, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # raw truth ratios may be the largest float
        mean = defined(known.mean())
        stderr = defined(known.std(ddof=1) / math.sqrt(known.size)) if known.size > 1 else None
    return MeanAndStderr(mean, stderr, int(known.size))


def bootstrap(
    statistic: Callable[..., float | None],
    *samples: Sequence[Any] | npt.NDArray[Any],
    n_resamples: int = 1000,
    seed: int | np.random.Generator = 0,
    confidence: float = 0.95,
) -> Interval:
    """A percentile bootstrap interval of a statistic, and its standard error.

    Each sample is resampled with replacement on its own, so items that belong together must be rows of one
    array. Resamples on which the statistic is None or NaN are dropped and counted. Below two items in a
    sample there is nothing to resample, and the ends are None.

    Args:
        statistic: takes one array for each sample and returns a number, None or NaN.
        *samples: (n_i, ...) arrays or sequences; rows are items.
        n_resamples: resamples to draw.
        seed: a seed, or the generator to draw from.
        confidence: the interval's coverage, in (0, 1).

    Raises:
        UserError: no sample, confidence outside (0, 1), or n_resamples below 1.

    Source: Efron's percentile interval, as `scipy.stats.bootstrap(method="percentile")`. No known difference.
    """
    if not samples or not 0 < confidence < 1 or n_resamples < 1:
        raise UserError(
            f"a bootstrap of {len(samples)} samples, {n_resamples} resamples and confidence {confidence:g}",
            "give at least one sample and one resample, and a confidence between 0 and 1",
        )
    arrays = [np.asarray(sample) for sample in samples]
    if min(len(array) for array in arrays) < 2:
        return Interval(None, None, None, 0)
    generator = np.random.default_rng(seed)
    drawn = [
        statistic(*(array[generator.integers(len(array), size=len(array))] for array in arrays))
        for _ in range(n_resamples)
    ]
    return percentile_interval(drawn, confidence)


def percentile_interval(drawn: MaybeNumbers, confidence: float = 0.95) -> Interval:
    """The interval of a statistic of which every resample's value is known; None and NaN are dropped and counted.

    Args:
        drawn: (n_resamples,) values.
        confidence: the interval's coverage, in (0, 1).
    """
    known = drop_missing(drawn)
    n_dropped = len(drawn) - int(known.size)
    if known.size < 2:
        return Interval(None, None, None, int(known.size), n_dropped)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), float(known.std(ddof=1)), int(known.size), n_dropped)


def resample_counts(*sizes: int, n_resamples: int = 1000, seed: int | np.random.Generator = 0) -> list[FloatArray]:
    """How often each item of each sample stands in each resample: the draws of `bootstrap`, for products of matrices.

    Args:
        *sizes: the number of items of each sample.
        n_resamples: resamples to draw.
        seed: a seed, or the generator to draw from.

    Returns:
        For each sample (n_resamples, size) counts; every row sums to the size.
    """
    generator = np.random.default_rng(seed)
    counts = [np.empty((n_resamples, size)) for size in sizes]
    for row in range(n_resamples):
        for of, size in zip(counts, sizes, strict=True):
            of[row] = np.bincount(generator.integers(size, size=size), minlength=size)
    return counts


def summary_interval(
    mean: float | None, stderr: float | None, n: int | None, bounds: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of a mean of which only the standard error and the number of items are known.

    Student's t with n - 1 degrees of freedom, cut at `bounds`. Of 0/1 scores it is Wilson's: with bounds (0, 1) they
    are recognized by their variance, p(1 - p), which no other scores reach. Where all items agree t has no width;
    there Wilson's stands for other bounded scores too, whose variance is at most that of 0/1 scores of the same mean.
    None without a standard error, as for what is no mean over items, and where unbounded scores all agree.

    Source: Wilson 1927, `scipy.stats.binomtest(...).proportion_ci(method="wilson")`.
    """
    if mean is None or stderr is None or n is None or n < 2:
        return None
    low, high = bounds or (-math.inf, math.inf)
    if stderr <= 1e-12 * max(1.0, abs(mean)):  # rounding alone
        if not (math.isfinite(low) and math.isfinite(high) and low <= mean <= high):
            return None
        ends = _wilson((mean - low) / (high - low), n)
        return low + (high - low) * ends[0], low + (high - low) * ends[1]
    if (
        bounds == (0, 1)
        and stderr <= 1
        and math.isclose(stderr**2 * (n - 1), mean * (1 - mean), rel_tol=1e-6, abs_tol=1e-12)
    ):
        return _wilson(mean, n)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975)) * stderr
    return min(mean, max(low, mean - half)), max(mean, min(high, mean + half))


def _wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share; the ends of none and of all are 0 and 1, also in floating point."""
    middle = (p + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
    return (max(0.0, middle - half) if p > 0 else 0.0, min(1.0, middle + half) if p < 1 else 1.0)


def paired_comparison(
    before: MaybeNumbers, after: MaybeNumbers, seed: int | np.random.Generator = 0
) -> PairedComparison:
    """The mean change of a score from one model to another on the same items, with interval and p-value.

    Items undefined in either are left out. The p-value flips the signs of the differences. Of 0/1 scores that is
    McNemar's exact test: of the items that changed, were as many gained as lost? Of others it takes all 2^n ways for
    up to 12 non-zero differences, else 9999 seeded ways, with the observed one counted (so p >= 1e-4). It
    takes items as independent, which questions about one author are not quite.

    The interval is the bootstrap's. Where all items changed alike, which leaves a bootstrap no width, it is Agresti and
    Min's for matched shares, if all scores lie from 0 to 1, and None if not.

    Args:
        before: (n,) scores under the first model.
        after: (n,) scores of the same items, in the same order, under the second.
        seed: a seed, or the generator to draw from.

    Raises:
        UserError: the lengths differ.

    Source: McNemar 1947 with the binomial distribution, `scipy.stats.binomtest`; Fisher's sign-flip test,
    `scipy.stats.permutation_test(permutation_type="samples")`; Agresti and Min 2005, section 2 (half an item is added
    to each of the four cells).
    """
    if len(before) != len(after):
        raise UserError(
            f"{len(before)} scores before and {len(after)} after",
            "compare two models on the same items, in the same order; None where one is undefined",
        )
    pairs = [(defined(x), defined(y)) for x, y in zip(before, after, strict=True)]
    differences = np.asarray([y - x for x, y in pairs if x is not None and y is not None], dtype=np.float64)
    if not differences.size:
        return PairedComparison(None, None, None, None, None, 0)
    generator = np.random.default_rng(seed)
    mean, stderr, n = mean_and_stderr(differences)
    low, high = _bootstrap_mean(differences, generator)
    if n > 1 and low is not None and high is not None and high - low <= 1e-12 * max(1.0, abs(high)):
        shares = all(0 <= value <= 1 for pair in pairs for value in pair if value is not None)
        low, high = _matched_shares(mean, n) if shares and mean is not None else (None, None)
    moved = differences[differences != 0]
    if np.all(np.abs(moved) == 1):
        p_value, test = _mcnemar_p(int((moved > 0).sum()), int((moved < 0).sum())), TESTS[0]
    else:
        p_value, test = _sign_flip_p(moved, generator), TESTS[1 if moved.size <= _EXACT_UP_TO else 2]
    return PairedComparison(mean, stderr, low, high, p_value, n, test)


def _bootstrap_mean(values: FloatArray, generator: np.random.Generator) -> tuple[float | None, float | None]:
    """The ends of `bootstrap(np.mean, values, seed=generator)`, with the same draws a hundred at a time."""
    if values.size < 2:
        return None, None
    means = [values[generator.integers(values.size, size=(100, values.size))].mean(axis=1) for _ in range(10)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _matched_shares(change: float, n: int) -> tuple[float, float]:
    """Agresti and Min's interval where all of n items changed by `change`, from -1 to 1."""
    gained, lost, total = n * max(change, 0.0) + 0.5, n * max(-change, 0.0) + 0.5, n + 2
    middle = (gained - lost) / total
    half = _Z * math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def _mcnemar_p(n_gained: int, n_lost: int) -> float:
    """The probability of a split at least as uneven, were gains and losses equally likely; 1 without any."""
    from scipy.stats import binomtest

    n = n_gained + n_lost
    return float(binomtest(n_gained, n).pvalue) if n else 1.0


def _sign_flip_p(moved: FloatArray, generator: np.random.Generator) -> float:
    n = int(moved.size)
    # Sums in another order differ in the last bits; a tie must still count as one.
    threshold = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if n <= _EXACT_UP_TO:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * patterns) @ moved) >= threshold).mean())
    extreme = 0
    for start in range(0, _SIGN_FLIPS, _FLIPS_AT_ONCE):
        rows = min(_FLIPS_AT_ONCE, _SIGN_FLIPS - start)
        signs = 1 - 2 * generator.integers(2, size=(rows, n), dtype=np.int8)
        extreme += int((np.abs(signs @ moved) >= threshold).sum())
    return (1 + extreme) / (1 + _SIGN_FLIPS)
