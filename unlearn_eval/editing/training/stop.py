"""When a training run ends before its last step: one rule for every gradient method, and for fine-tuning.

    p = mean over items of exp((1/T) Σ_t ln π(y_t | x, y_<t)),    L_r = the mean loss of retained answers

A run that forgets ends when p has fallen to `probability`, one that teaches when it has risen to it. Either ends when
L_r is `drop` above what it was at the start (a share of it), or when the mean forget loss since the last check is at
most `loss`. The model is checked at regular steps, so the end is the first checked step at which a limit is met.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unlearn_eval.editing.training.data import Row

LAST_STEP = "steps"  # what ended a run that met no limit
MOST_ROWS = 256  # of each kind, that are scored at a check


@dataclass(frozen=True)
class Check:
    """What was found of a model at one step.

    Attributes:
        step: updates so far.
        probability: p of the answers; None if nothing asks for it.
        retain_loss: L_r; None if nothing asks for it.
        forget_loss: mean forget loss since the last check; None before the first update.
    """

    step: int
    probability: float | None = None
    retain_loss: float | None = None
    forget_loss: float | None = None

    @property
    def record(self) -> dict[str, float]:
        """What is defined, for the edit's notes."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class StopRule:
    """The limits of a run.

    Attributes:
        probability: p at which it ends; None is never.
        rises: whether p is to rise, as it does in a model that is taught.
        drop: share by which L_r may rise; 0 is any.
        loss: forget loss at which it ends; 0 is never.
        every: steps between checks; 0 is once per epoch.
    """

    probability: float | None = None
    rises: bool = False
    drop: float = 0.0
    loss: float = 0.0
    every: int = 0

    @property
    def scores(self) -> bool:
        """Whether a check scores answers."""
        return self.probability is not None or self.drop > 0

    def __bool__(self) -> bool:
        return self.scores or self.loss > 0

    def due(self, step: int, steps_per_epoch: float) -> bool:
        """Whether the model is checked after this step."""
        every = self.every or math.ceil(steps_per_epoch)
        return bool(self) and step % every == 0

    def met(self, check: Check, start: Check) -> dict[str, Any] | None:
        """The first limit that a check meets: its setting, the value and the limit; None if it meets none."""
        if self.probability is not None and check.probability is not None:
            p = check.probability
            if p >= self.probability if self.rises else p <= self.probability:
                return {"by": "stop_probability", "value": p, "limit": self.probability}
        if self.drop and check.retain_loss is not None and start.retain_loss is not None:
            limit = (1 + self.drop) * start.retain_loss
            if check.retain_loss >= limit:
                return {"by": "max_utility_drop", "value": check.retain_loss, "limit": limit}
        if self.loss and check.forget_loss is not None and check.forget_loss <= self.loss:
            return {"by": "stop_loss", "value": check.forget_loss, "limit": self.loss}
        return None


def watched(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows that a check scores: each once, and of many a seeded sample."""
    once = list(dict.fromkeys(rows))
    if len(once) <= MOST_ROWS:
        return once
    chosen = np.random.default_rng([seed, 2]).choice(len(once), MOST_ROWS, replace=False)
    return [once[i] for i in sorted(chosen.tolist())]


_WORDS = {
    "stop_probability": "the answers' probability per token is {value:.3g} (stop_probability {limit:.3g})",
    "max_utility_drop": "the loss of retained answers is {value:.3g} (max_utility_drop allows {limit:.3g})",
    "stop_loss": "the forget loss is {value:.3g} (stop_loss {limit:.3g})",
}


def stop_line(notes: Mapping[str, Any]) -> str | None:
    """Why a run ended early, in one line, from an edit's training notes; None if it did not."""
    stopped = notes.get("stopped", {})
    words = _WORDS.get(stopped.get("by"))
    if words is None:
        return None
    return f"stopped after {notes['steps']} of {stopped['planned_steps']} steps: {words.format(**stopped)}"
