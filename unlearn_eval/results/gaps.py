"""How far an unlearned model is from one that never knew, metric by metric, and on which side.

The third result is the reference: a retain-only model's, or for facts of pretraining the unedited model's on invented
subjects in the same templates (`forget=invented(facts)`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unlearn_eval.metrics.meta_evaluation import as_knowledge, gap, is_of_forgetting
from unlearn_eval.results.schema import Metric, Result


@dataclass(frozen=True)
class Gap:
    """One metric of three results.

    Attributes:
        task, metric: Which.
        before, after, reference: Its values; None where a result has none.
        gap: 1 - |after - reference| / |before - reference|: 1 is a model that never knew; None with a reason.
        signed: after - reference, turned so that more is more knowledge: below 0 is over-forgetting.
        reason: Why there is no gap.
    """

    task: str
    metric: str
    before: float | None
    after: float | None
    reference: float | None
    gap: float | None
    signed: float | None
    reason: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def gaps(before: Result, after: Result, reference: Result) -> list[Gap]:
    """One row for each metric of what was forgotten that the second result has."""
    found = []
    for task, metrics in after.metrics.items():
        for name, metric in metrics.items():
            if is_of_forgetting(name):
                three = [own.metrics.get(task, {}).get(name) for own in (before, after, reference)]
                found.append(_gap(task, name, three, metric.higher_is_better))
    return found


def _gap(task: str, name: str, three: list[Metric | None], higher: bool | None) -> Gap:
    values = [None if own is None else own.value for own in three]
    turned = [as_knowledge(name, value, higher) for value in values]
    missing = [which for which, value in zip(("before", "after", "reference"), values, strict=True) if value is None]
    if missing:
        return Gap(task, name, values[0], values[1], values[2], None, None, f"no value: {', '.join(missing)}")
    score, signed = gap(turned[1] or 0.0, turned[0] or 0.0, turned[2] or 0.0)
    return Gap(task, name, values[0], values[1], values[2], score.value, signed, score.reason)
