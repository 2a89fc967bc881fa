"""A policy's bounds held against results, each with the metric's interval, the items behind it, and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_eval.edits.base import Edit
from unlearn_eval.metrics.catalogue import interval
from unlearn_eval.metrics.edit_checks import LEAST_FORGOTTEN, LEAST_TAKEN, MOST_HARMED, took
from unlearn_eval.results.certificate import Row
from unlearn_eval.results.requirements import check_metrics
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.runs.forget.policy import LEFT, PRICE, Bound

Metrics = Mapping[str, Mapping[str, Metric]]


def judged(bounds: Sequence[Bound], result: Result, base: Metrics) -> list[Row]:
    """The bounds on one result; a metric that could not be measured fails, unless the policy lets it be missing."""
    rows = []
    for bound in bounds:
        name, metrics = bound.measurement, result.metrics
        if result.status == "partial" and bound.metric not in metrics[name]:
            metrics = {name: {bound.metric: Metric(None, reason="; ".join(result.notes))}}
        verdict = check_metrics(metrics, bound.requirement, base)
        metric = metrics[name][bound.metric]
        low, high = interval(bound.metric, metric) or (None, None)
        before = base.get(name, {}).get(bound.metric)
        missing = verdict.value is None or verdict.bound is None
        rows.append(
            Row(
                require=bound.require,
                side=bound.side,
                words=bound.words,
                because=bound.because,
                value=verdict.value,
                low=low,
                high=high,
                n=metric.n,
                before=None if before is None else before.value,
                bound=verdict.bound,
                holds=None if missing and bound.may_be_missing else verdict.holds,
                reason=verdict.reason,
            )
        )
    return rows


def sound_rows(edit: Edit) -> list[Row]:
    """Whether an edit took and did no harm, by its own self-check, as bounds that every policy has."""
    check = edit.info.self_check
    if check is None:
        return []
    rows, notes = [], edit.info.notes
    if check.n and check.n_took < LEAST_TAKEN * check.n and "training" in notes and check.answer_probability_before:
        share = (check.answer_probability_after or 0.0) / check.answer_probability_before
        words, bound = "probability of the answers, as a share of what it was", 1 - LEAST_FORGOTTEN
        rows.append(_row(f"edit:answers<={bound:g}", LEFT, words, share, bound, check.n, took(notes) is not False))
    elif check.n:
        words, share = "targets that are now the most likely answer", check.n_took / check.n
        rows.append(_row(f"edit:took>={LEAST_TAKEN:g}", LEFT, words, share, LEAST_TAKEN, check.n, share >= LEAST_TAKEN))
    if check.unrelated:
        n, worse = check.unrelated["n"], check.unrelated["worse"]
        words = "unrelated questions that are refused, answered in circles or no longer right"
        rows.append(
            _row(f"edit:harmed<{MOST_HARMED:g}", PRICE, words, worse / n, MOST_HARMED, n, worse < MOST_HARMED * n)
        )
    return rows


def _row(require: str, side: Any, words: str, value: float, bound: float, n: int, holds: bool) -> Row:
    return Row(
        require=require,
        side=side,
        words=words,
        because="An edit that did not take, or did harm, is no result of its method.",
        value=value,
        low=None,
        high=None,
        n=n,
        before=None,
        bound=bound,
        holds=holds,
        reason="",
    )
