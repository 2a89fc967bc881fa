"""Runs that differ in nothing but their seed, as one row: means, how far the seeds lie apart, and a rank.

A row is a method with its recipe and settings on one model and one forget set. Runs of one seed are never averaged: two
of them are two rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from unlearn_eval.metrics.catalogue import candidate_axes, meaning
from unlearn_eval.results.runs import NO_EDIT, Run
from unlearn_eval.results.schema import Metric

# What a seed changes beside itself: which items are drawn, where files lie, and what was measured.
_OF_A_SEED = ("seed", "key", "code", "ids", "kept", "tasks")
_RECIPE = ("target", "merge", "merge_size", "per_step", "chat")
_MOST_SETTINGS = 3


@dataclass(frozen=True)
class Spread:
    """One number over seeds.

    Attributes:
        mean: over the seeds that have it; None without any.
        deviation: sample standard deviation (n − 1); None below two seeds.
        n: seeds that have it.
    """

    mean: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """One row of a leaderboard.

    Attributes:
        runs: one for each seed, in the order of the files.
        label: the method, with its recipe and whatever else tells it from the other rows.
        editor: the method alone, or `NO_EDIT`.
    """

    runs: tuple[Run, ...]
    label: str
    editor: str

    @property
    def is_unedited(self) -> bool:
        """Whether it is the model before any edit."""
        return self.editor == NO_EDIT

    @property
    def title(self) -> str:
        """The label as readers see it: a model before any edit is called unedited."""
        return self.label.replace(NO_EDIT, "unedited", 1) if self.is_unedited else self.label

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it is not to be read as a result of its method: the faults of its runs, each once."""
        return tuple(dict.fromkeys(fault for run in self.runs for fault in run.faults))

    def value(self, task: str, metric: str) -> Spread:
        """A metric over the seeds."""
        return spread([_value(run, task, metric) for run in self.runs])


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of those that are defined."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return Spread(mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """One group for each method, recipe and settings on a model and a forget set, in the order of the runs.

    Runs that would be together but share a seed stay apart, each a group of its own.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(_same(run), []).append(run)
    found: list[tuple[Run, ...]] = []
    for own in together.values():
        seeds = [run.result.seed for run in own]
        averaged = len(set(seeds)) == len(seeds) and None not in seeds
        found += [tuple(own)] if averaged else [(run,) for run in own]
    places = {run.name: i for i, run in enumerate(runs)}
    found.sort(key=lambda own: places[own[0].name])
    names = _labels([own[0] for own in found])
    return [Group(own, name, editor_of(own[0])) for own, name in zip(found, names, strict=True)]


def run_labels(groups: Sequence[Group]) -> dict[str, str]:
    """What readers call each run of some groups, by its name: the group's title, of several runs with the seed."""
    return {
        run.name: group.title if len(group.runs) == 1 else f"{group.title}, seed {run.result.seed}"
        for group in groups
        for run in group.runs
    }


def editor_of(run: Run) -> str:
    """The method without its recipe, the same untuned and tuned."""
    cell = _cell(run)
    return (
        run.method
        if run.method == NO_EDIT
        else str((cell.get("trial") or {}).get("of") or cell.get("editor") or run.method)
    )


def frontier_axes(groups: Sequence[Group], task: str) -> tuple[str | None, str | None]:
    """The metric of forgetting and that of keeping which show a task's groups best.

    Each is the first of its kind in the order of `catalogue.candidate_axes` of which the edited groups differ: where
    all have the same value there is nothing to see. If none differs, the first that they have.
    """
    names = list(dict.fromkeys(name for own in groups for run in own.runs for name in run.result.metrics.get(task, ())))
    edited = [own for own in groups if not own.is_unedited] or list(groups)

    def best(candidates: Sequence[str]) -> str | None:
        known = {name: [v for own in edited if (v := own.value(task, name).mean) is not None] for name in candidates}
        measured = [name for name, values in known.items() if values]
        return next((n for n in measured if max(known[n]) - min(known[n]) > 1e-9), next(iter(measured), None))

    forgets, keeps = candidate_axes(names)
    return best(forgets), best(keeps)


def scores(groups: Sequence[Group], task: str, forgets: str | None, keeps: str | None) -> list[float | None]:
    """By which groups are ranked: the harmonic mean of how much each forgets and keeps, from 0 to 1.

    Forgetting is 1 minus a metric of which less is better, keeping the metric itself. None where one of the two is
    missing, or is no share from 0 to 1; and for unedited models, which are not ranked.
    """
    return [None if own.is_unedited else _score(own, task, forgets, keeps) for own in groups]


def ranked(groups: Sequence[Group], task: str, forgets: str | None, keeps: str | None) -> list[int]:
    """The places of the groups: unedited ones first, then the best; edits with faults after all sound ones."""
    found = scores(groups, task, forgets, keeps)

    def order(i: int) -> tuple[bool, bool, bool, float, int]:
        own, score = groups[i], found[i]
        return not own.is_unedited, bool(own.faults), score is None, -(score or 0.0), i

    return sorted(range(len(groups)), key=order)


def metric_of(group: Group, task: str, name: str) -> Metric | None:
    """The first of a group's runs that has a metric, for its direction."""
    return next((m for run in group.runs if (m := run.result.metrics.get(task, {}).get(name)) is not None), None)


def _score(group: Group, task: str, forgets: str | None, keeps: str | None) -> float | None:
    parts = []
    for name in (forgets, keeps):
        metric = None if name is None else metric_of(group, task, name)
        value = None if name is None else group.value(task, name).mean
        if metric is None or value is None or metric.higher_is_better is None or meaning(name or "").bounds != (0, 1):
            return None
        parts.append(value if metric.higher_is_better else 1 - value)
    return 2 * parts[0] * parts[1] / sum(parts) if sum(parts) else 0.0


def _value(run: Run, task: str, name: str) -> float | None:
    metric = run.result.metrics.get(task, {}).get(name)
    return None if metric is None else metric.value


def _cell(run: Run) -> Mapping[str, Any]:
    cell = run.result.config.get("cell")
    return cell if isinstance(cell, dict) else {}


def _same(run: Run) -> str:
    """What runs of one group have in common."""
    result, cell = run.result, _cell(run)
    edit = result.edit or {}
    requests = edit.get("requests") or {}
    own: list[Any] = [run.model, run.method, result.kind, sorted(result.metrics)]
    if cell:
        own.append({key: value for key, value in cell.items() if key not in _OF_A_SEED})
    else:
        own += [{key: value for key, value in (edit.get("config") or {}).items() if key not in ("seed", "folder")}]
        own += [requests.get("forget_set"), requests.get("n"), [requests.get(key) for key in _RECIPE]]
    return json.dumps(own, sort_keys=True, default=str)


def _labels(runs: Sequence[Run]) -> list[str]:
    """What is told of each run: its method, and of those of one method what tells them apart."""
    names = [run.method for run in runs]
    for of in (_asked, _set, lambda run: f"on {run.model}", _settings):
        names = _told_apart(names, [of(run) for run in runs])
    return _told_apart(names, [run.name for run in runs], anyway=True)


def _told_apart(names: list[str], more: Sequence[Any], anyway: bool = False) -> list[str]:
    """The names, those that are alike with what differs among them; of settings, only those that do."""
    times = Counter(names)
    made = list(names)
    for name in (name for name, n in times.items() if n > 1):
        places = [i for i, other in enumerate(names) if other == name]
        if isinstance(more[places[0]], dict):
            keys = list(dict.fromkeys(key for i in places for key in more[i]))
            differ = [key for key in keys if len({json.dumps(more[i].get(key), default=str) for i in places}) > 1]
            texts = {i: ", ".join(f"{key}={more[i].get(key)}" for key in differ[:_MOST_SETTINGS]) for i in places}
        else:
            texts = {i: str(more[i] or "") for i in places}
        if anyway or len(set(texts.values())) > 1:
            for i in places:
                made[i] = f"{name}, {texts[i]}" if texts[i] else name
    return made


def _asked(run: Run) -> str:
    """The target and the merging, where no recipe's name says them."""
    requests = (run.result.edit or {}).get("requests") or {}
    target, merge = str(requests.get("target") or ""), requests.get("merge")
    target = target.rpartition("/")[2]
    if _cell(run).get("recipe") not in (None, "plain"):
        return ""  # its name is in the method's
    return ", ".join(part for part in (target, "" if merge in (None, "none") else f"merged by {merge}") if part)


def _set(run: Run) -> str:
    return run.forget_set or ""


def _settings(run: Run) -> dict[str, Any]:
    own = dict(_cell(run)) or dict((run.result.edit or {}).get("config") or {})
    settings = own.pop("settings", None)
    flat = {**own, **settings} if isinstance(settings, dict) else own
    return {key: value for key, value in flat.items() if key not in _OF_A_SEED}
