"""The results of a study over its seeds: for each method one row of means, and how far the seeds lie apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.plan import Cell

# Of a cell's timing, what a method costs: finding where to edit, and editing.
SECONDS = {"localization_seconds": "locating, seconds", "editing_seconds": "editing, seconds"}
Column = tuple[str, str]  # task, metric; of seconds the task is empty


@dataclass(frozen=True)
class Spread:
    """One number over seeds.

    Attributes:
        mean: over the seeds that have it; None without any.
        deviation: sample standard deviation (n − 1); None below two seeds.
        n: seeds that have it.
    """

    mean: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One method on one set.

    Attributes:
        cell: that of its first seed.
        n: cells, one for each seed.
        values: column -> the number over seeds.
    """

    cell: Cell
    n: int
    values: Mapping[Column, Spread]


def over_seeds(cells: Sequence[Cell], results: Mapping[str, Result], columns: Sequence[Column]) -> list[Row]:
    """One row for each part, model, method, recipe, set, size and back end, in the order of the cells.

    Args:
        cells: of a plan.
        results: by key; what is not complete is left out.
        columns: what is wanted of each.
    """
    groups: dict[Any, list[tuple[Cell, Result]]] = {}
    for cell in cells:
        result = results.get(cell.key)
        if result is not None and result.status == "complete":
            groups.setdefault(_same(cell), []).append((cell, result))
    return [
        Row(
            own[0][0], len(own), {column: spread([value_of(result, column) for _, result in own]) for column in columns}
        )
        for own in groups.values()
    ]


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of those that are defined."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return Spread(mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def value_of(result: Result, column: Column) -> float | None:
    """A metric's value, or one of the seconds; None where there is none."""
    task, name = column
    if not task:
        seconds = result.timing.get(name)
        return None if result.edit is None or seconds is None else float(seconds)
    metric = result.metrics.get(task, {}).get(name)
    return None if metric is None else metric.value


def _same(cell: Cell) -> Any:
    editor, recipe = (None if own is None else own.name for own in (cell.editor, cell.recipe))
    return cell.part, cell.model.name, editor, recipe, cell.forget, cell.size, cell.backend
