"""Does the order matter? The ends of sequences that learn and forget in different orders, compared item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from unlearn_eval.results.comparison import Comparison, compare
from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.plan import Cell


@dataclass(frozen=True)
class OrderEffect:
    """Two orders of one method on one selection.

    Attributes:
        first, second: the cells at the ends of both sequences.
        rows: each metric of both with its change from the first to the second, and the paired test.
    """

    first: Cell
    second: Cell
    rows: Sequence[Comparison]


def order_effects(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[OrderEffect]:
    """Every pair of orders of each method, in the order of the cells; what is not complete is left out."""
    ends: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        result = results.get(cell.key)
        ordered = cell.stage is not None and cell.stage.is_last and cell.stage.order
        if ordered and result is not None and result.status == "complete":
            ends.setdefault(_same(cell), []).append(cell)
    pairs = [pair for own in ends.values() for pair in combinations(own, 2)]
    return [OrderEffect(a, b, compare(results[a.key], results[b.key])) for a, b in pairs]


def _same(cell: Cell) -> tuple[object, ...]:
    """What the ends of two orders have in common."""
    names = [None if own is None else own.name for own in (cell.model, cell.editor, cell.recipe, cell.then)]
    return cell.part, *names, cell.forget, cell.size, cell.seed, cell.backend
