"""Two results compared metric by metric, on the same items where there are samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearn_eval.results.files import samples_of, scores_of
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record
from unlearn_eval.utils.notebooks import data_frame, html_table

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "task metric direction before before_stderr after after_stderr change change_stderr change_low change_high "
    "p_value test n reason"
).split()


@dataclass(frozen=True)
class Comparison:
    """One metric in two results.

    Attributes:
        task: the task.
        metric: the metric's name.
        before: None if the first result lacks it.
        after: None if the second does.
        direction: "↑" or "↓" for the better direction, "" if there is none.
        difference: after minus before, or None.
        paired: difference, stderr, low, high, p_value, n over the items of both; or None.
        reason: why `difference` or `paired` is None.
    """

    task: str
    metric: str
    before: Metric | None
    after: Metric | None
    direction: str
    difference: float | None
    paired: Any = None
    reason: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Every number in full, by the names of `COLUMNS`; what is undefined is None."""
        paired, known = self.paired, self.after or self.before
        cells = [
            self.task,
            self.metric,
            {"↑": "higher", "↓": "lower", "": ""}[self.direction],
            *_numbers(self.before),
            *_numbers(self.after),
            self.difference,
            *((paired.stderr, paired.low, paired.high, paired.p_value, paired.test) if paired else [None] * 5),
            known.n if known else None,
            self.reason,
        ]
        return dict(zip(COLUMNS, cells, strict=True))


def _numbers(metric: Metric | None) -> tuple[float | None, float | None]:
    return (None, None) if metric is None else (metric.value, metric.stderr)


class Comparisons(list[Comparison]):
    """What `compare` found: a list with a row for each metric, which a notebook shows as a table."""

    def __repr__(self) -> str:
        tested = sum(row.paired is not None for row in self)
        return f"Comparisons({len(self)} metrics, {tested} compared item by item)"

    def _repr_html_(self) -> str:
        names = ("task", "metric", "before", "after", "change", "p_value", "n", "reason")
        return html_table(repr(self), names, [[row.record[name] for name in names] for row in self])

    def to_frame(self) -> pandas.DataFrame:
        """One row for each metric, with the columns `COLUMNS`.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame([row.record for row in self], "to_frame", COLUMNS)


def compare(
    before: Result, after: Result, seed: int = 0, read: Callable[[Result, str], list[Record]] = samples_of
) -> Comparisons:
    """One row for each metric of either result, in the order of the first; paired where samples allow it.

    `read` gives the samples of a result's task; who compares many results with one may keep what it has read.
    """
    rows = Comparisons()
    for task in dict.fromkeys([*before.metrics, *after.metrics]):
        first, second = before.metrics.get(task, {}), after.metrics.get(task, {})
        samples = _paired_samples(before, after, task, read)
        for name in dict.fromkeys([*first, *second]):
            rows.append(_compare_metric(task, name, first.get(name), second.get(name), samples, seed))
    return rows


def _compare_metric(
    task: str,
    name: str,
    before: Metric | None,
    after: Metric | None,
    samples: list[tuple[Record, Record]] | str,
    seed: int,
) -> Comparison:
    known = after or before
    direction = {True: "↑", False: "↓", None: ""}[known.higher_is_better if known else None]
    for which, metric in (("first", before), ("second", after)):
        if metric is None or metric.value is None:
            reason = f"the {which} result lacks it" if metric is None else f"{which}: {metric.reason}"
            return Comparison(task, name, before, after, direction, None, None, reason)
    assert before is not None and before.value is not None  # noqa: PT018
    assert after is not None and after.value is not None  # noqa: PT018
    difference = after.value - before.value
    paired, why = _paired(name, difference, samples, seed)
    return Comparison(task, name, before, after, direction, difference, paired, why)


def _paired(
    name: str, difference: float, samples: list[tuple[Record, Record]] | str, seed: int
) -> tuple[Any, str | None]:
    """The paired comparison of a metric, or the reason why there is none."""
    if isinstance(samples, str):
        return None, samples
    scores = [(_score(first, name), _score(second, name)) for first, second in samples]
    if not any(a is not None and b is not None for a, b in scores):
        return None, "the samples hold no score of this name"
    try:
        from unlearn_eval.metrics import paired_comparison
    except ImportError:
        return None, "unlearn_eval.metrics cannot be imported"
    paired = paired_comparison([a for a, _ in scores], [b for _, b in scores], seed=seed)
    if paired.difference is None or not math.isclose(paired.difference, difference, rel_tol=1e-6, abs_tol=1e-9):
        return (
            None,
            "the metric is not the mean of its samples' scores, or the two runs share only some items",
        )
    return paired, None


def _score(record: Record, name: str) -> float | None:
    value = scores_of(record).get(name)
    return float(value) if isinstance(value, int | float) else None


def _paired_samples(
    before: Result, after: Result, task: str, read: Callable[[Result, str], list[Record]]
) -> list[tuple[Record, Record]] | str:
    """The records of the same items, or the reason why there are none."""
    keyed: list[dict[Any, Record]] = []
    for which, result in (("first", before), ("second", after)):
        if result.path is None or task not in result.samples:
            return f"the {which} result has no samples of this task"
        try:
            records = read(result, task)
        except UserError as error:
            return error.message
        keyed.append({(r.get("id", r.get("doc_id")), r.get("doc_hash")): r for r in records})
        if len(keyed[-1]) != len(records) or (None, None) in keyed[-1]:
            return f"the samples of the {which} result have no unique ids"
    shared = [(record, keyed[1][key]) for key, record in keyed[0].items() if key in keyed[1]]
    return shared or "the two results share no items"
