"""Popularity within a task: the number that an item brings, or how certain the unedited model was of its answer.

The certainty comes from the unedited model's result (`{"unedited": RESULT}`), where a task has measured it already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.task import Document, OverAll, Scores
from unlearn_eval.metrics.correlation import rank_correlation
from unlearn_eval.results.files import read_result
from unlearn_eval.results.popularity import certainties

POPULARITY, LEAK = "popularity", "leak_of_item"
METRIC = "forget_popularity_correlation"
UNKNOWN = "the item has no popularity, and no result of the unedited model says how certain it was"


def certainties_in(place: object) -> dict[str, float]:
    """Id of a document -> the unedited model's certainty, from its result; nothing without one."""
    return {} if not place else certainties(read_result(Path(str(place)).expanduser()))


def popularity_scores(document: Document, certain: Mapping[str, float], leaks: Sequence[float | None]) -> Scores:
    """An item's popularity, and the mean of what leaks of it."""
    known = [value for value in leaks if value is not None]
    own = document.get(POPULARITY)
    own = certain.get(document["id"]) if own is None else own
    reasons = {} if own is not None else {POPULARITY: UNKNOWN}
    return {POPULARITY: own, LEAK: sum(known) / len(known) if known else None, REASONS: reasons}


def popularity_metric() -> OverAll:
    """Spearman's correlation of popularity and leak over what is to be forgotten."""
    return OverAll(("forget",), (POPULARITY, LEAK), _correlated, None)


def _correlated(items: list[Scores]) -> tuple[float | None, float | None, str | None]:
    found = rank_correlation([item[POPULARITY] for item in items], [item[LEAK] for item in items])
    return found.value, found.stderr, found.reason
