"""How two numbers of the same items rank together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unlearn_eval.metrics.arrays import FloatArray, MaybeNumbers, defined
from unlearn_eval.metrics.intervals import bootstrap
from unlearn_eval.utils.errors import UserError

FEWEST = 4  # items below which ranks say nothing
TOO_FEW, ALL_ALIKE = (
    f"it needs at least {FEWEST} items with both numbers",
    "one of the two numbers is the same for all items",
)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation; None where it is undefined, with the reason.

    Attributes:
        value: in -1..1.
        low, high, stderr: bootstrap interval of 95 % over items, and its standard deviation.
        p_value: two-sided test of no monotone relation.
        n: items with both numbers.
        reason: why there is no value.
    """

    value: float | None
    low: float | None
    high: float | None
    stderr: float | None
    p_value: float | None
    n: int
    reason: str | None = None


def rank_correlation(x: MaybeNumbers, y: MaybeNumbers, seed: int | np.random.Generator = 0) -> RankCorrelation:
    """Spearman's rank correlation of two numbers of the same items, ties with their mean rank.

    Items without one of the two are left out; resamples in which one number is the same for all are dropped.

    Args:
        x: (n,) numbers.
        y: (n,) numbers of the same items, in the same order.
        seed: a seed, or the generator to draw from.

    Raises:
        UserError: the lengths differ.

    Source: Spearman 1904, as `scipy.stats.spearmanr`. No known difference.
    """
    from scipy.stats import rankdata, spearmanr

    if len(x) != len(y):
        raise UserError(f"{len(x)} numbers and {len(y)}", "give both of the same items, None where one is undefined")
    pairs = [(defined(a), defined(b)) for a, b in zip(x, y, strict=True)]
    known = np.array([(a, b) for a, b in pairs if a is not None and b is not None], dtype=np.float64).reshape(-1, 2)
    n = len(known)
    if n < FEWEST or _alike(known):
        return RankCorrelation(None, None, None, None, None, n, TOO_FEW if n < FEWEST else ALL_ALIKE)
    found = spearmanr(known[:, 0], known[:, 1])

    def again(rows: FloatArray) -> float | None:
        return None if _alike(rows) else float(np.corrcoef(rankdata(rows, axis=0).T)[0, 1])

    drawn = bootstrap(again, known, n_resamples=400, seed=seed)
    return RankCorrelation(float(found.statistic), drawn.low, drawn.high, drawn.stderr, float(found.pvalue), n)


def _alike(rows: FloatArray) -> bool:
    return bool((rows == rows[0]).all(0).any()) if len(rows) else True
