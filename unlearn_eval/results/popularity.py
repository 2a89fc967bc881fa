"""Does what a model knew best leak most? Each forgotten item's popularity, and what an edit left of it.

The popularity of an item is a number that its set gives (`popularity`), or how certain the unedited model was of its
answer, where a result of it has that: nothing is measured for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_eval.metrics.correlation import RankCorrelation, rank_correlation
from unlearn_eval.results.files import samples_of, scores_of
from unlearn_eval.results.schema import Result
from unlearn_eval.utils.json_files import Record

GIVEN, CERTAINTY = "popularity", "certainty"
CERTAIN = ("forget_cloze_probability", "forget_probability")  # of the answer, the first that there is
LEAKS = (("forget_accuracy", "forget_paraphrase_accuracy"), ("forget_leak_mean",), ("forget_leak_at_1",))
Read = Callable[[Result, str], list[Record]]


@dataclass(frozen=True)
class Popularity:
    """The popularity of a task's forgotten items beside what leaks of them.

    Attributes:
        source: `popularity` as the set gives it, or `certainty` of the unedited model.
        points: id -> (popularity, leak).
        correlation: of the two.
    """

    source: str
    points: Mapping[str, tuple[float, float]]
    correlation: RankCorrelation


def certainties(base: Result, read: Read = samples_of) -> dict[str, float]:
    """Id of a forgotten item -> the probability of its answer, from any task of a result that has it."""
    found: dict[str, float] = {}
    for task in base.samples:
        for record in read(base, task):
            value = next((own for name in CERTAIN if (own := number_of(record, name)) is not None), None)
            if value is not None:
                found.setdefault(str(record.get("id")), value)
    return found


def popularity(edited: Result, task: str, certain: Mapping[str, float], read: Read = samples_of) -> Popularity | None:
    """What a result's task says of the items to forget, by their popularity; None where there are no two numbers.

    Args:
        edited: of the edited model.
        task: with samples.
        certain: as `certainties` gives it.
        read: gives the samples of a result's task.
    """
    given: dict[str, tuple[float, float]] = {}
    known: dict[str, tuple[float, float]] = {}
    for record in read(edited, task):
        leak = leak_of(record)
        if leak is None:
            continue
        key, own = str(record.get("id")), number_of(record.get("doc") or {}, GIVEN)
        if own is not None:
            given[key] = own, leak
        if key in certain:
            known[key] = certain[key], leak
    points = given or known
    if not points:
        return None
    x, y = zip(*points.values(), strict=True)
    return Popularity(GIVEN if given else CERTAINTY, points, rank_correlation(x, y))


def leak_of(record: Record) -> float | None:
    """What a sample says of how far its item leaks: the mean over wordings, or over forms."""
    for names in LEAKS:
        own = [value for name in names if (value := number_of(record, name)) is not None]
        if own:
            return sum(own) / len(own)
    return None


def number_of(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record, or of its metrics."""
    value = scores_of(record).get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
