"""What results and reports have of a localization: scores by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def scores_by_layer(ranking: Iterable[Mapping[str, Any]], n_layers: int) -> dict[str, list[Any]]:
    """Kind of unit -> its score in every layer, None where it has none.

    Args:
        ranking: `{"kind", "layer", "score"}` of each unit.
        n_layers: of the model.
    """
    scores: dict[str, list[Any]] = {}
    for unit in ranking:
        scores.setdefault(unit["kind"], [None] * n_layers)[unit["layer"]] = unit.get("score")
    return scores


def few_digits(value: object) -> Any:
    """The same with four significant digits of every float in it."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: few_digits(own) for key, own in value.items()}
    return [few_digits(own) for own in value] if isinstance(value, list | tuple) else value
