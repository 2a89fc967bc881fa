"""Does a result hold what is required of it: `forget_rouge<0.2`, `model_utility>0.9*base`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn_eval.metrics.meta_evaluation import is_of_forgetting
from unlearn_eval.results.badges import Badge, untrusted
from unlearn_eval.results.runs import result_faults
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.errors import UserError, unknown_name

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
Metrics = Mapping[str, Mapping[str, Metric]]  # by task, then name
EXAMPLES = "write METRIC<NUMBER, METRIC>NUMBER*base, METRIC>=base-NUMBER or METRIC<=base+NUMBER"

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORM = re.compile(r"\s*(?P<metric>[^<>=!]+?)\s*(?P<operator><=|>=|<|>)\s*(?P<bound>[^<>=!]+?)\s*")
_BOUND = re.compile(
    rf"(?P<number>{_NUMBER})|(?P<factor>{_NUMBER})\s*\*\s*base|base\s*(?P<sign>[+-])\s*(?P<shift>{_NUMBER})|base"
)


@dataclass(frozen=True)
class Requirement:
    """A metric has to be on one side of `factor` · base + `shift`.

    Attributes:
        text: as the user wrote it.
        metric: its name, with `TASK:` in front where several tasks have one of this name.
        operator: one of `OPERATORS`.
        factor: of the base's value; None if the base plays no part.
        shift: what is added.
    """

    text: str
    metric: str
    operator: str
    factor: float | None
    shift: float

    def bound(self, base: float | None) -> float:
        """The number that the metric is held against."""
        return self.shift if self.factor is None or base is None else self.factor * base + self.shift


SOUND_EDIT = Requirement("an edit that took and did no harm", "", ">=", None, 0.0)


@dataclass(frozen=True)
class Verdict:
    """Whether a requirement holds, with both numbers, or the reason why there is no number."""

    requirement: Requirement
    value: float | None
    bound: float | None
    holds: bool
    reason: str = ""

    @property
    def as_json(self) -> dict[str, object]:
        """The verdict as JSON has it."""
        numbers = {"value": self.value, "bound": self.bound}
        return {"required": self.requirement.text, "holds": self.holds, **numbers, "reason": self.reason}


def parse_requirement(text: str) -> Requirement:
    """What a requirement says.

    Raises:
        UserError: it is of another form.
    """
    form = _FORM.fullmatch(text)
    bound = _BOUND.fullmatch(form["bound"]) if form else None
    if form is None or bound is None:
        what = f"'{form['bound']}' in the requirement '{text}' is no bound" if form else f"'{text}' is no requirement"
        raise UserError(what, EXAMPLES)
    if bound["number"]:
        factor, shift = None, float(bound["number"])
    elif bound["factor"]:
        factor, shift = float(bound["factor"]), 0.0
    else:
        factor, shift = 1.0, float(bound["sign"] + "1") * float(bound["shift"]) if bound["shift"] else 0.0
    return Requirement(text.strip(), form["metric"], form["operator"], factor, shift)


def check_result(result: Result, requirements: Sequence[Requirement], base: Result | None = None) -> list[Verdict]:
    """Whether each requirement holds; a metric without a value fails, with the reason.

    A result of an edit that did not take, or did harm, fails whatever its metrics are: one verdict for each fault.

    Raises:
        UserError: an unknown or ambiguous metric, or a requirement on a base that is not given.
    """
    measured, before = result.metrics, None if base is None else base.metrics
    found = [check_metrics(measured, requirement, before) for requirement in requirements]
    return found + [Verdict(SOUND_EDIT, None, None, False, fault) for fault in result_faults(result)]


def check_trust(requirements: Sequence[Requirement], least: float, known: Mapping[str, Badge]) -> list[Verdict]:
    """A verdict for each required metric of what was forgotten whose measured trust is unknown or below a bound."""
    names = [own.metric.rpartition(":")[2] for own in requirements]
    required = Requirement(f"metrics of a trust of at least {least:g}", "", ">=", None, least)
    asked = [name for name in dict.fromkeys(names) if is_of_forgetting(name)]
    return [Verdict(required, None, least, False, why) for why in untrusted(asked, least, known)]


def check_metrics(measured: Metrics, requirement: Requirement, base: Metrics | None = None) -> Verdict:
    """Whether one requirement holds of metrics by task and name; raises as `check_result`."""
    task, name = find_metric(measured, requirement.metric)
    metric = measured[task][name]
    before: float | None = None
    if requirement.factor is not None:
        if base is None:
            raise UserError(f"'{requirement.text}' needs a base", "give its result file with --base")
        first = base.get(task, {}).get(name)
        if first is None or first.value is None:
            why = "it lacks this metric" if first is None else first.reason
            return Verdict(requirement, metric.value, None, False, f"the base has no value: {why}")
        before = first.value
    bound = requirement.bound(before)
    if metric.value is None:
        return Verdict(requirement, None, bound, False, f"no value: {metric.reason}")
    return Verdict(requirement, metric.value, bound, bool(OPERATORS[requirement.operator](metric.value, bound)))


def find_metric(measured: Metrics, wanted: str) -> tuple[str, str]:
    """The task and the name of a metric; `TASK:NAME` says which task.

    Raises:
        UserError: no such metric, or several.
    """
    places: dict[str, list[tuple[str, str]]] = {}
    for task, metrics in measured.items():
        for name in metrics:
            places.setdefault(name, []).append((task, name))
            places.setdefault(f"{task}:{name}", []).append((task, name))
    if wanted not in places:
        qualified = ":" in wanted
        raise unknown_name("metric", wanted, [name for name in places if (":" in name) == qualified])
    if len(found := places[wanted]) > 1:
        raise UserError(
            f"the metric '{wanted}' is in {len(found)} tasks: {', '.join(task for task, _ in found)}",
            f"say which, as in {found[0][0]}:{wanted}",
        )
    return found[0]
