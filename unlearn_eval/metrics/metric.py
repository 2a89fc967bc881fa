"""One number of a result, with what is known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number of a result.

    Attributes:
        value: the number, or None with a `reason`.
        stderr: its standard error, or None if it has none.
        n: the items that it rests on.
        n_unscored: the items that were asked and could not be scored.
        reason: why there is no value; None if there is one.
        higher_is_better: None if neither direction is.
    """

    value: float | None
    stderr: float | None = None
    n: int = 0
    n_unscored: int = 0
    reason: str | None = None
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"a metric has a value or a reason, not both or neither: {self}")
        if self.value is None and self.stderr is not None:
            raise ValueError(f"a metric without a value has no standard error: {self}")
        if not all(number is None or math.isfinite(number) for number in (self.value, self.stderr)):
            raise ValueError(f"a metric's value is finite, or None with a reason: {self}")
        if (self.stderr or 0) < 0 or self.n < 0 or self.n_unscored < 0:
            raise ValueError(f"standard error and counts are not negative: {self}")
