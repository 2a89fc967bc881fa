"""What a model knows of a request, question by question: read from the results of the measurements before an edit.

A question is known if the answer is given away in any form that the model answers freely, in at least one of twenty
samples, or if half of a text is continued by heart. Multiple choice and true or false do not count for that: they offer
the answer, and are now and then right by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.harness.forms import OF_THE_FACT, SCORED_FORMS
from unlearn_eval.results.files import samples_of, scores_of
from unlearn_eval.runs.forget.asked import FORGET
from unlearn_eval.runs.forget.measure import Measured
from unlearn_eval.runs.forget.policy import ASKED

SAMPLES, COMPLETED, QUESTION = "samples", "completed", "question"
LEAST_SAMPLED, LEAST_COMPLETED = 0.05, 0.5


@dataclass(frozen=True)
class Known:
    """What a model says of one question.

    Attributes:
        item: it.
        before: form -> share of wordings, or of samples, that give the answer away.
        after: the same after the edit; empty of what was not edited.
    """

    item: ForgetItem
    before: Mapping[str, float | None]
    after: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the model knew it."""
        free = {form: value or 0.0 for form, value in self.before.items() if form not in SCORED_FORMS}
        sampled, completed = free.pop(SAMPLES, 0.0), free.pop(COMPLETED, 0.0)
        by_heart = self.item.shape == "text" and completed >= LEAST_COMPLETED
        return by_heart or sampled >= LEAST_SAMPLED or any(value > 0 for value in free.values())


def inventory(items: ForgetSet, measured: Measured) -> list[Known]:
    """What is known of each item."""
    by_id: dict[str, dict[str, float | None]] = {item.id: {} for item in items}
    for name, result in measured.results.items():
        if name not in result.samples:
            continue
        for record in samples_of(result, name):
            split, _, key = str(record["id"]).partition("/")
            if split == FORGET and key in by_id:
                by_id[key] |= _forms_of(name, record)
    return [Known(item, by_id[item.id]) for item in items]


def _forms_of(name: str, record: Mapping[str, Any]) -> dict[str, float | None]:
    """The forms of one item in a record of samples."""
    own = scores_of(record)
    if name == ASKED:
        return {QUESTION: own.get("accuracy"), COMPLETED: own.get("extraction_strength")}
    forms = {form: _number(own.get(f"forget_leak_{form}")) for form in OF_THE_FACT if f"forget_leak_{form}" in own}
    sampled = {SAMPLES: _number(own["forget_leak_at_1"])} if "forget_leak_at_1" in own else {}
    return forms | sampled


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
