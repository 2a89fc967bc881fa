"""What is known at each level of an attack, or at each layer, with an interval: the curves that a report draws.

A curve is of one model, condition and value; its points are means over items and seeds. The band is a 95 % percentile
interval of a bootstrap that draws clusters of items (those that share a subject or a group) and seeds with replacement,
the same clusters for every point. Where all items agree on 0 or 1 there is no spread to draw from: the interval is then
Wilson's, of as many items as there are clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.attacks.base import Observation
from unlearn_eval.attacks.folds import clusters
from unlearn_eval.attacks.summary import RESAMPLES, Table
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.metrics import summary_interval

Numbers = npt.NDArray[np.float64]

DIGITS = 6  # as many as an interval of 500 resamples can use, and many


def curves(items: ForgetSet, observations: Sequence[Observation]) -> list[dict[str, Any]]:
    """The curves of an attack, in the order in which they were measured.

    Each is `{"model", "condition", "value", "at", "mean", "low", "high", "n"}`: lists with an entry for each level, the
    one before the attack (null) first. A level at which nothing is known is left out; `low` and `high` are null below
    two clusters of items.
    """
    table = Table(items, observations)
    parts = clusters(items)
    drawn = _drawn(len(parts))
    found: dict[tuple[str, str, str], dict[Any, Any]] = {}
    for ((model, condition, at), name), values in table.cells.items():
        found.setdefault((model, condition, name), {})[at] = values
    made = []
    for (model, condition, name), levels in found.items():
        order = sorted(levels, key=lambda at: at is not None)  # stable: None to the front, the rest as measured
        points = [(at, *_point(levels[at], parts, drawn)) for at in order if not np.isnan(levels[at]).all()]
        if points:
            at, mean, low, high, n = (list(column) for column in zip(*points, strict=True))
            curve = {"at": at, "mean": mean, "low": low, "high": high, "n": n}
            made.append({"model": model, "condition": condition, "value": name, **curve})
    return made


def _drawn(n: int) -> Any:
    """How often each of n things is drawn in each resample, (B, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def _point(values: Numbers, parts: list[list[int]], drawn: Numbers) -> tuple[float, float | None, float | None, int]:
    """Mean, ends of the interval and number of items, of values (seeds, items) with NaN where none was measured."""
    values = values[~np.isnan(values).all(axis=1)]
    known = ~np.isnan(values)
    sums = np.stack([np.nansum(values[:, part], axis=1) for part in parts], axis=1)  # (S, C)
    counts = np.stack([known[:, part].sum(axis=1) for part in parts], axis=1).astype(float)
    mean, n = float(sums.sum() / counts.sum()), int(known.any(axis=0).sum())
    if len(parts) < 2:
        return round(mean, DIGITS), None, None, n
    seeds = _drawn(len(values)) if len(values) > 1 else np.ones((RESAMPLES, 1))
    totals = [np.einsum("bs,sc,bc->b", seeds, one, drawn) for one in (sums, counts)]
    means = totals[0][totals[1] > 0] / totals[1][totals[1] > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    if mean in (0.0, 1.0) and low == high:
        low, high = summary_interval(mean, 0.0, int((counts.sum(axis=0) > 0).sum()), (0.0, 1.0)) or (low, high)
    return round(mean, DIGITS), round(float(low), DIGITS), round(float(high), DIGITS), n
