"""From observations to metrics: what is known before and after an attack, and how much of it has come back.

Means are over items; intervals are from a bootstrap that draws clusters of items (those that share a subject or a
group) and seeds with replacement, the same ones for every model, so that a ratio keeps what its models have in common.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearn_eval.attacks.base import FULL, NO_REFERENCE, REFERENCE, UNDER_ATTACK, UNLEARNED, Attack, Observation
from unlearn_eval.attacks.folds import clusters
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.metrics import contains_answer
from unlearn_eval.metrics.intervals import percentile_interval, resample_counts
from unlearn_eval.metrics.robustness import (
    Score,
    above_chance,
    curve_area,
    durability,
    first_reaching,
    recovery,
    symmetric_quantization,
    symmetric_relearning,
)
from unlearn_eval.results.schema import Metric

RESAMPLES = 500
NO_LEVEL = "any level"  # in the place of the headline's where nothing was measured
SHIFTS = 20  # how many other items' answers each item is compared with for the rate of guessing
Cell = tuple[str, str, Any]  # model, condition, level
Mean = Callable[[Cell, str], float]


@dataclass(frozen=True)
class Summary:
    """Metrics, their 95 % intervals, and the value of each metric for each item, where it is a mean over items."""

    metrics: dict[str, Metric]
    intervals: dict[str, list[float]]
    by_item: dict[str, dict[str, float]]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        value: how it follows from means.
        better: whether higher is better; None if neither is.
        cell: the mean that it is, if it is one.
        resampled: whether it changes with the items that are drawn, so that it has an interval.
    """

    value: Callable[[Mean], Score]
    better: bool | None
    cell: tuple[Cell, str] | None = None
    resampled: bool = True


class Resamples:
    """The means over resampled clusters of items, and seeds if there are several: the same draws for every metric."""

    def __init__(self, cells: Mapping[tuple[Cell, str], Any], parts: Sequence[Sequence[int]], n_seeds: int) -> None:
        self.cells = cells
        drawn = resample_counts(len(parts), *([n_seeds] if n_seeds > 1 else []), n_resamples=RESAMPLES)
        self.items = np.empty((RESAMPLES, sum(map(len, parts))))  # how often each item counts
        for own, counts in zip(parts, drawn[0].T, strict=True):
            self.items[:, own] = counts[:, None]
        self.seeds = drawn[1] if n_seeds > 1 else np.ones((RESAMPLES, 1))
        self.means: dict[tuple[Cell, str], list[float]] = {}

    def mean(self, row: int, cell: Cell, name: str) -> float:
        """`Table.mean` of one resample."""
        key = cell, name
        if key not in self.cells:
            return math.nan
        if key not in self.means:
            known = ~np.isnan(self.cells[key])
            total, n = (
                ((self.seeds @ of) * self.items).sum(axis=1) for of in (np.where(known, self.cells[key], 0.0), known)
            )
            self.means[key] = np.divide(total, n, out=np.full(RESAMPLES, math.nan), where=n > 0).tolist()
        return self.means[key][row]


class Table:
    """Values by model, condition and level: (seeds, items), NaN where an item was not tested."""

    def __init__(self, items: ForgetSet, observations: Sequence[Observation]) -> None:
        self.items = items
        self.place = {item.id: i for i, item in enumerate(items)}
        self.seeds = list(dict.fromkeys(one.seed for one in observations))
        self.cells: dict[tuple[Cell, str], Any] = {}
        for one in observations:
            for score in one.scores:
                for name, value in score.values.items():
                    key = ((one.model, one.condition, one.at), name)
                    if key not in self.cells:
                        self.cells[key] = np.full((len(self.seeds), len(items)), np.nan)
                    if value is not None and math.isfinite(value):
                        self.cells[key][self.seeds.index(one.seed), self.place[score.id]] = value

    def mean(self, cell: Cell, name: str) -> float:
        """The mean over items and seeds; NaN where nothing was measured."""
        values = self.cells.get((cell, name))
        if values is None:
            return math.nan
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else math.nan

    def levels(self, model: str = UNLEARNED, condition: str = UNDER_ATTACK) -> list[Any]:
        """The levels of a curve in the order in which they were measured, without that before the attack."""
        found = (cell[2] for cell, _ in self.cells if cell[:2] == (model, condition) and cell[2] is not None)
        return list(dict.fromkeys(found))

    def add_worst(self) -> Cell:
        """The cell in which an item's accuracy is its best at any level of the attack, by any seed."""
        cell: Cell = (UNLEARNED, UNDER_ATTACK, NO_LEVEL)
        found = [self.cells[(UNLEARNED, UNDER_ATTACK, at), "accuracy"] for at in self.levels()]
        if found:
            best = np.concatenate(found).copy()
            best[np.isnan(best)] = -1.0
            worst = best.max(axis=0, keepdims=True)
            self.cells[cell, "accuracy"] = np.repeat(np.where(worst < 0, np.nan, worst), len(self.seeds), axis=0)
        return cell

    def by_item(self, cell: Cell, name: str) -> dict[str, float]:
        """Each item's mean over seeds."""
        values = self.cells.get((cell, name))
        if values is None:
            return {}
        return {
            item.id: float(known.mean())
            for i, item in enumerate(self.items)
            if (known := values[:, i][~np.isnan(values[:, i])]).size
        }

    def estimate(self, name: str, wanted: MetricSpec) -> tuple[Metric, list[float] | None]:
        """A metric with its standard error, and its interval."""
        score = _guarded(wanted.value, self.mean)
        n = self._n(wanted)
        if score.value is None:
            return Metric(None, None, 0, n, score.reason, wanted.better), None
        if self.drawn is None or not wanted.resampled:
            return Metric(score.value, None, n, 0, None, wanted.better), None
        means = [functools.partial(self.drawn.mean, row) for row in range(RESAMPLES)]
        found = percentile_interval([_guarded(wanted.value, mean).value for mean in means])
        ends = None if found.low is None or found.high is None else [found.low, found.high]
        return Metric(score.value, found.stderr, n, 0, None, wanted.better), ends

    @functools.cached_property
    def drawn(self) -> Resamples | None:
        """What `bootstrap` would draw of the clusters of items, and of seeds; None with less than two clusters."""
        parts = clusters(self.items)
        return Resamples(self.cells, parts, len(self.seeds)) if len(parts) > 1 else None

    def _n(self, wanted: MetricSpec) -> int:
        return len(self.by_item(*wanted.cell)) if wanted.cell else len(self.items)


def summarized(table: Table, wanted: Mapping[str, MetricSpec], skipped: str | None = None) -> Summary:
    """Every wanted metric; of an attack that was skipped each is null, with the reason."""
    if skipped is not None:
        wanted = {name: MetricSpec(lambda mean: Score(None, skipped), one.better) for name, one in wanted.items()}
    found = {name: table.estimate(name, one) for name, one in wanted.items()}
    by_item = {name: table.by_item(*one.cell) for name, one in wanted.items() if one.cell}
    return Summary(
        {name: metric for name, (metric, _) in found.items()},
        {name: ends for name, (_, ends) in found.items() if ends is not None},
        by_item,
    )


def summary(
    items: ForgetSet,
    observations: Sequence[Observation],
    method: Attack,
    has_reference: bool,
    skipped: str | None = None,
) -> Summary:
    """The metrics of an attack on answers.

    Args:
        items: what was to be forgotten.
        observations: what was measured.
        method: the attack.
        has_reference: whether there is a model that never knew the items.
        skipped: why nothing was measured, if nothing was; every metric is then null with this reason.
    """
    table = Table(items, observations)
    level = headline_level(table, method)
    wanted: dict[str, MetricSpec] = {}
    for name in ("accuracy", "probability"):
        wanted |= _knowledge(table, name, level, has_reference)
        wanted |= _recoveries(table, name, level, has_reference)
    worst = table.add_worst()
    wanted["forget_worst"] = MetricSpec(_mean_of(worst, "accuracy"), False, (worst, "accuracy"))
    chance = guessing(items, _said(observations, (UNLEARNED, UNDER_ATTACK, level)))
    wanted["forget_attacked_guessing"] = MetricSpec(lambda mean: chance, None, resampled=False)
    wanted["forget_accuracy_above_chance"] = MetricSpec(
        lambda mean: (
            above_chance(mean((UNLEARNED, UNDER_ATTACK, level), "accuracy"), chance.value)
            if chance.value is not None
            else chance
        ),
        False,
    )
    return summarized(table, wanted, skipped)


def headline_level(table: Table, method: Attack) -> Any:
    """The level that stands for the attack: the last, or that at which most comes back (by accuracy, then probability).

    The worst level is chosen on the items that it is reported on: it is what an attacker who may choose would get.
    """
    found = table.levels()
    if not found:
        return NO_LEVEL
    if method.headline == "last":
        return found[-1]

    def known(at: float | str | None) -> tuple[float, ...]:
        means = (table.mean((UNLEARNED, UNDER_ATTACK, at), name) for name in ("accuracy", "probability"))
        return tuple(-1.0 if math.isnan(value) else value for value in means)

    return max(found, key=known)


def _knowledge(table: Table, name: str, level: float | str | None, has_reference: bool) -> dict[str, MetricSpec]:
    """The means of every model before and after the attack, and of the controls."""
    cells = {
        f"forget_{name}": (UNLEARNED, UNDER_ATTACK, None),
        f"forget_attacked_{name}": (UNLEARNED, UNDER_ATTACK, level),
        f"forget_unedited_{name}": (FULL, UNDER_ATTACK, None),
        f"forget_unedited_attacked_{name}": (FULL, UNDER_ATTACK, level),
    }
    if has_reference:
        cells[f"forget_reference_{name}"] = (REFERENCE, UNDER_ATTACK, None)
        cells[f"forget_reference_attacked_{name}"] = (REFERENCE, UNDER_ATTACK, level)
    for condition in dict.fromkeys(cell[1] for cell, _ in table.cells if cell[1] != UNDER_ATTACK):
        levels = table.levels(UNLEARNED, condition)
        if levels:
            cells[f"forget_{condition}_{name}"] = (UNLEARNED, condition, levels[-1])
    return {
        metric: MetricSpec(_mean_of(cell, name), metric.startswith("forget_unedited"), (cell, name))
        for metric, cell in cells.items()
        if "unedited_attacked" not in metric or (cell, name) in table.cells
    }


def _mean_of(cell: Cell, name: str) -> Callable[[Mean], Score]:
    return lambda mean: Score(mean(cell, name))


def _recoveries(table: Table, name: str, level: float | str | None, has_reference: bool) -> dict[str, MetricSpec]:
    """Ratios of the models' means, for one measure of knowledge."""
    unlearned, full, reference = ((model, UNDER_ATTACK, level) for model in (UNLEARNED, FULL, REFERENCE))
    before, full_before, reference_before = ((model, UNDER_ATTACK, None) for model in (UNLEARNED, FULL, REFERENCE))

    def recovered(mean: Mean) -> Score:
        if not has_reference:
            return Score(None, NO_REFERENCE)
        at_full = mean(full, name) if (full, name) in table.cells else mean(full_before, name)
        at_reference = mean(reference, name) if (reference, name) in table.cells else mean(reference_before, name)
        return recovery(mean(unlearned, name), at_full, at_reference)

    def alike(mean: Mean) -> Score:
        if not has_reference:
            return Score(None, NO_REFERENCE)
        own = mean(before, name), mean(unlearned, name)
        return symmetric_relearning(own, (mean(reference_before, name), mean(reference, name)))

    found = {
        f"forget_{name}_recovery": MetricSpec(recovered, False),
        f"forget_{name}_symmetric_relearning": MetricSpec(alike, True),
        f"forget_{name}_stability": MetricSpec(
            lambda mean: symmetric_quantization(mean(before, name), mean(unlearned, name)), True
        ),
        f"forget_{name}_durability": MetricSpec(
            lambda mean: durability(mean(before, name), mean(unlearned, name), mean(full_before, name)), True
        ),
    }
    steps = [at for at in table.levels() if isinstance(at, int | float)]
    if steps and steps == sorted(steps) and isinstance(level, int) and level == steps[-1] and len(steps) > 1:
        found |= _curve(name, [0, *steps])
    return found


def _curve(name: str, steps: list[Any]) -> dict[str, MetricSpec]:
    """Of the curve of a training attack: its mean height, and the step at which half of what was known is back."""

    def values(mean: Mean) -> list[float]:
        return [mean((UNLEARNED, UNDER_ATTACK, step or None), name) for step in steps]

    return {
        f"forget_{name}_curve_area": MetricSpec(lambda mean: curve_area(steps, values(mean)), False),
        f"forget_{name}_half_step": MetricSpec(
            lambda mean: first_reaching(steps, values(mean), mean((FULL, UNDER_ATTACK, None), name) / 2), True
        ),
    }


def guessing(items: ForgetSet, said: Mapping[str, str]) -> Score:
    """How often an item's answer stands in what was said to another item: the accuracy of answers dealt at random.

    Each item is compared with the answers to the (up to 20) items after it, the first coming after the last.

    Args:
        items: the items.
        said: what was said, by id.
    """
    known = [item for item in items if item.id in said]
    if len(known) < 2:
        return Score(None, "fewer than two answers: nobody can guess among one")
    shifts = range(1, min(SHIFTS, len(known) - 1) + 1)
    hits = [
        contains_answer(said[known[(i + k) % len(known)].id], item.accepted)
        for k in shifts
        for i, item in enumerate(known)
    ]
    return Score(sum(hits) / len(hits))


def _said(observations: Sequence[Observation], cell: Cell) -> dict[str, str]:
    """What one model said at one level, of the first seed that has it."""
    found: dict[str, str] = {}
    for one in observations:
        if (one.model, one.condition, one.at) == cell:
            for score in one.scores:
                if score.said is not None:
                    found.setdefault(score.id, score.said)
    return found


def _guarded(value: Callable[[Mean], Score], mean: Mean) -> Score:
    """A metric's score; None with a reason where a mean that it rests on is missing."""
    missing: list[Cell] = []

    def known(cell: Cell, name: str) -> float:
        found = mean(cell, name)
        if math.isnan(found):
            missing.append(cell)
        return found

    score = value(known)
    if missing:
        model, condition, level = missing[0]
        at = "before the attack" if level is None else f"at {level}"
        which = "" if condition == UNDER_ATTACK else f" ({condition})"
        return Score(None, score.reason or f"the {model} model was not measured {at}{which}")
    return score
