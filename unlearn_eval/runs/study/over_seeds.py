"""The results of a study over its seeds: for each method one row of means, and how far the seeds lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_eval.results.groups import Spread, spread
from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.plan import Cell

# Of a cell's timing, what a method costs: finding where to edit, and editing.
SECONDS = {"localization_seconds": "locating, seconds", "editing_seconds": "editing, seconds"}
Column = tuple[str, str]  # task, metric; of seconds the task is empty


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
    then = None if cell.then is None else cell.then.name
    stage = None if cell.stage is None else cell.stage.name
    return cell.part, cell.model.name, editor, recipe, then, cell.forget, cell.size, cell.backend, stage
