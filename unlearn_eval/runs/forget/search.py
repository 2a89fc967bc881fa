"""Which edit is tried next, and which of those that failed is nearest: decided from the trials alone.

Every trial is in files, so a run that was killed decides the same again and goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unlearn_eval.results.certificate import Row
from unlearn_eval.runs.forget.policy import LEFT, PRICE, Candidate

MOST_OF_A_METHOD = 4  # trials; then the next method is more likely to pass


@dataclass(frozen=True)
class Trial:
    """One edit that was tried.

    Attributes:
        number: from 1.
        candidate: the method's place in the list.
        value: of the setting that makes it gentler or stronger; None if it has none.
        measured: the measurements that were made.
        rows: the bounds that were held against them.
        seconds: what making and measuring it took.
        error: why there is no edit, if there is none.
    """

    number: int
    candidate: int
    value: str | None
    measured: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    error: str = ""
    failed_kind: str = field(default="")

    @property
    def failed(self) -> tuple[Row, ...]:
        """The bounds that do not hold."""
        return tuple(row for row in self.rows if row.holds is False)

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words."""
        found = [self.error] if self.error else []
        return [*found, *([self.failed_kind] if self.failed_kind else []), *map(failure_of, self.failed)]

    def passes(self, n_measurements: int) -> bool:
        """Whether everything was measured and holds."""
        return len(self.measured) == n_measurements and not self.failures


def failure_of(row: Row) -> str:
    """One bound that does not hold, in words."""
    if row.value is None:
        return f"{row.words}: not measured ({row.reason})"
    return f"{row.words}: {row.value:.3g}, and the bound is {row.bound:.3g}"


def next_try(candidates: Sequence[Candidate], trials: Sequence[Trial]) -> tuple[int, str | None] | None:
    """The method and the value of its setting that are tried next; None if everything has been.

    A method whose last trial left too much is made stronger, one whose price was too high gentler. One that failed
    both, or that has been at this value, makes room for the next.
    """
    for place, candidate in enumerate(candidates):
        own = [trial for trial in trials if trial.candidate == place]
        strength = candidate.strength
        if not own:
            return place, None if strength is None else strength.start
        if strength is None or len(own) >= MOST_OF_A_METHOD or own[-1].error or own[-1].failed_kind:
            continue
        sides = {row.side for row in own[-1].failed}
        if len(sides) != 1:
            continue
        step = {LEFT: 1, PRICE: -1}[sides.pop()]
        at = strength.values.index(str(own[-1].value)) + step
        if 0 <= at < len(strength.values) and strength.values[at] not in {trial.value for trial in own}:
            return place, strength.values[at]
    return None


def nearest(trials: Sequence[Trial]) -> Trial | None:
    """Of the trials that made an edit, the one that came furthest, then fails least; None if there is none."""
    made = [trial for trial in trials if not trial.error]
    return min(made, key=_distance, default=None)


def _distance(trial: Trial) -> tuple[float, ...]:
    failed = trial.failed
    missed = (abs(row.value - row.bound) for row in failed if row.value is not None and row.bound is not None)
    return bool(trial.failed_kind), -len(trial.measured), len(failed), sum(missed), trial.number
