"""Policies: what is measured, between which bounds it has to be, and what is tried; from the shipped files or a user's.

A policy names measurements, each a task of ours, an attack, or `asked` (the questions themselves, see `asked.py`), and
bounds on their metrics, written as `check` takes them: `unlearn_forms:forget_leak_worst_form<=0.2`,
`unlearn_utility:random_accuracy>=0.9*base`. The base is the model before the edit. A bound says on which side it is,
since the search goes the other way for each: `left` is what the model still tells, `price` what else has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from unlearn_eval.data.registry import is_ours
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.results.requirements import Requirement, parse_requirement
from unlearn_eval.runs.study.file import Counted, Settings, Table, Text
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import read_text
from unlearn_eval.utils.schemas import validated
from unlearn_eval.utils.yaml_text import parse_yaml

SHIPPED = ("standard", "strict")
LEFT, PRICE = "left", "price"
ASKED = "asked"  # the measurement that is neither a task nor an attack
_FOLDER = files("unlearn_eval.runs.forget")
_HINT = "see docs/guides/forget.md for what a policy holds"


class Measurement(Table):
    """One thing that is measured.

    Attributes:
        name: of the measurement, and of its metrics' task in a bound.
        task, attack: what measures it; none of them is the questions themselves.
        metadata: of a task.
        controls: how many retained facts a task asks in the same ways.
        settings: of an attack.
    """

    name: Text
    task: Text | None = None
    attack: Text | None = None
    metadata: dict[str, Any] = {}
    controls: Counted = 4
    settings: Settings = {}

    @model_validator(mode="after")
    def one_way(self) -> Self:
        """A measurement has one way to be measured, and is called as its metrics' task."""
        if self.task and self.attack:
            raise UserError(f"the measurement {self.name} names a task and an attack", "give it one of the two")
        if self.task and not is_ours(self.task):
            raise UserError(f"the measurement {self.name} names {self.task}", "name a task of ours (ls tasks)")
        wanted = self.task or (f"attack_{self.attack}" if self.attack else ASKED)
        if self.name != wanted:
            raise UserError(f"the measurement {self.name} measures {wanted}", f"call it {wanted}")
        return self


class Bound(Table):
    """What is required of one metric.

    Attributes:
        require: as `check` takes it, with the measurement's name: `MEASUREMENT:METRIC<=NUMBER`.
        side: `left` or `price`.
        words: what the metric is, in plain words.
        because: why the bound is where it is.
        may_be_missing: whether a metric that cannot be measured (of a memory edit, say) is said and not failed.
    """

    require: Text
    side: Literal["left", "price"]
    words: Text
    because: Text
    may_be_missing: bool = False

    @property
    def requirement(self) -> Requirement:
        """What it says."""
        return parse_requirement(self.require)

    @property
    def measurement(self) -> str:
        """The measurement that its metric is of."""
        return self.requirement.metric.partition(":")[0]

    @property
    def metric(self) -> str:
        """The name of its metric."""
        return self.requirement.metric.partition(":")[2]


class Strength(Table):
    """The setting of a method that makes it gentler or stronger.

    Attributes:
        setting: its name.
        values: from gentle to strong.
        start: the one that is tried first.
    """

    setting: Text
    values: list[Text]
    start: Text

    @model_validator(mode="after")
    def begins_inside(self) -> Self:
        """The first value is one of them."""
        if self.start not in self.values:
            raise unknown_name(f"start of {self.setting}", self.start, self.values)
        return self


class Suits(Table):
    """Requests that a method can hold: with at most so many items, of at most so many words in an answer."""

    most_items: Counted | None = None
    most_words: Counted | None = None


class Candidate(Table):
    """A method with its settings, and how it is made gentler or stronger."""

    editor: Text
    settings: Settings = {}
    strength: Strength | None = None
    suits: Suits = Suits()


class Policy(Table):
    """A policy file.

    Attributes:
        name, description: of the policy.
        kinds: kinds of edit that may pass.
        measurements: in the order in which they are made; a trial that fails one is not measured further.
        bounds: all of them have to hold.
        candidates: what is tried, in this order; without any, the shipped list.
    """

    name: Text
    description: Text
    kinds: list[Literal["low_rank", "dense", "memory"]] = ["low_rank", "dense", "memory"]
    measurements: list[Measurement]
    bounds: list[Bound]
    candidates: list[Candidate] = []

    @model_validator(mode="after")
    def measured(self) -> Self:
        """Every bound is on a metric that is measured."""
        names = [own.name for own in self.measurements]
        for bound in self.bounds:
            if bound.measurement not in names:
                raise unknown_name(f"measurement in the bound '{bound.require}':", bound.measurement, names)
        if not any(bound.side == LEFT for bound in self.bounds):
            raise UserError("the policy bounds nothing that is left", "give it a bound with side: left")
        return self

    def bounds_of(self, measurement: str) -> list[Bound]:
        """The bounds on one measurement."""
        return [bound for bound in self.bounds if bound.measurement == measurement]


def read_policy(name: str) -> Policy:
    """The shipped policy of that name, or the one in a YAML file.

    Raises:
        UserError: there is none, or something in it does not fit.
    """
    if name in SHIPPED:
        text, where = (_FOLDER / "policies" / f"{name}.yaml").read_text(encoding="utf-8"), name
    elif name.endswith((".yaml", ".yml")):
        text, where = read_text(Path(name).expanduser(), "policy"), name
    else:
        raise unknown_name("policy", name, [*SHIPPED, "a .yaml file"])
    return validated(Policy, parse_yaml(text, where), where, "is no policy", _HINT)


def shipped_candidates() -> list[Candidate]:
    """What is tried if the policy does not say."""
    text = (_FOLDER / "candidates.yaml").read_text(encoding="utf-8")
    return [validated(Candidate, own, "candidates.yaml", "is damaged", "") for own in parse_yaml(text, "candidates")]


def suited(candidates: Sequence[Candidate], n_items: int, most_words: int) -> tuple[list[Candidate], list[str]]:
    """The candidates that suit a request, and why the others do not.

    Args:
        candidates: all of them.
        n_items: how many items the request has.
        most_words: of its longest answer.
    """
    found, reasons = [], []
    for own in candidates:
        items, words, name = own.suits.most_items, own.suits.most_words, get_editor(own.editor).title
        if items is not None and n_items > items:
            reasons.append(f"{name} is not tried: it is for {items} items at most, and these are {n_items}")
        elif words is not None and most_words > words:
            reasons.append(f"{name} is not tried: it is for answers of {words} words at most, and one has {most_words}")
        else:
            found.append(own)
    return found, reasons
