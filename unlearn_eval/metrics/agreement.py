"""How far two raters agree, beyond what chance brings: Cohen's kappa, plain and weighted."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn_eval.utils.errors import UserError


def cohen_kappa(one: Sequence[object], other: Sequence[object], scale: Sequence[object] | None = None) -> float | None:
    """1 is full agreement, 0 what chance brings; None where chance alone agrees fully, or without ratings.

    Args:
        one, other: Ratings of the same things by two people, in the same order.
        scale: Of ordered ratings all values in order: disagreements then weigh by the square of their distance.

    Raises:
        UserError: The lengths differ, or a rating is not on the scale.

    Source: Cohen 1960; weighted: Cohen 1968; `sklearn.metrics.cohen_kappa_score`.
    """
    if len(one) != len(other):
        raise UserError(f"{len(one)} ratings by one and {len(other)} by the other", "give those of the same answers")
    values = list(scale) if scale is not None else sorted({*one, *other}, key=str)
    if unknown := [value for value in (*one, *other) if value not in values]:
        raise UserError(f"the rating {unknown[0]!r} is not on the scale", f"use {', '.join(map(str, values))}")
    if len({*one, *other}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score

    weights = None if scale is None else "quadratic"
    numbers = [[values.index(value) for value in own] for own in (one, other)]
    return float(cohen_kappa_score(*numbers, labels=range(len(values)), weights=weights))
