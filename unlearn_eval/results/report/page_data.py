"""What a report's page holds, as plain data: runs, metrics with their changes, and answers question by question.

Everything that a model wrote is data here and stays data: `page.py` encodes it, the page shows it as text.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from unlearn_eval import __version__
from unlearn_eval.metrics.catalogue import interval, is_ratio, leaderboard_columns, meaning, plain
from unlearn_eval.results.badges import badges, by_trust
from unlearn_eval.results.comparison import Comparison, compare
from unlearn_eval.results.files import samples_of
from unlearn_eval.results.groups import Group, frontier_axes, group_runs, metric_of, ranked, run_labels, scores, spread
from unlearn_eval.results.popularity import certainties, popularity
from unlearn_eval.results.report.answers import Answers, shortened
from unlearn_eval.results.report.attacked import add_attacked
from unlearn_eval.results.report.outcome import Number, outcome
from unlearn_eval.results.report.robustness import attack_entries, edit_numbers, headline_level, maps
from unlearn_eval.results.runs import Run, Runs, cost, same_data
from unlearn_eval.results.schema import Result
from unlearn_eval.results.sequences import sequences
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record

Say = Callable[[str], Any]
Cell = dict[str, Any]
Cells = dict[tuple[int, int], Cell]  # by run and column
MOST_OF_A_ROW = 20_000  # characters: settings are long, notes of megabytes are no notes

# The page --------------------------------------------------------------------------------------------------


def page_data(runs: Runs, say: Say = lambda line: None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary (runs, metrics, values with intervals and changes) and the answers of all runs."""
    names = [run.name for run in runs.runs]
    columns = _columns(runs)
    at = {(column["task"], column["name"]): i for i, column in enumerate(columns)}
    answers, cells, lines = Answers(), [], list(runs.notes)
    popular: list[Cell] = []
    kept = _Kept({run.base for run in runs.runs if run.base}, {run.name: run for run in runs.runs})
    for i, run in enumerate(runs.runs):
        if len(names) > 20 and i % 20 == 0:
            say(f"{i} of {len(names)} results")
        for task in run.result.samples:
            try:
                _add(answers, run, task, kept.read(run.result, task))
            except UserError as error:
                lines.append(f"no answers of {run.name}: {error.message}")
        changes = _changes(run, kept)
        popular += _popularity(i, run, kept)
        for task, metrics in run.result.metrics.items():
            for name, metric in metrics.items():
                low, high = _ends(run.result, task, name) or (None, None)
                cells.append(
                    {
                        "run": i,
                        "column": at[task, name],
                        "value": metric.value,
                        "low": low,
                        "high": high,
                        "stderr": metric.stderr,
                        "n": metric.n,
                        "unscored": metric.n_unscored,
                        "reason": metric.reason and shortened(metric.reason),
                        **changes.get((task, name), {}),
                    }
                )
        kept.drop(run)
    by_place = {(cell["run"], cell["column"]): cell for cell in cells}
    groups = group_runs(runs.runs)
    labels = run_labels(groups)
    summary = {
        "version": __version__,
        "dates": _dates(runs),
        "groups": _group_entries(groups, names),
        "means": _means(groups, names, columns, by_place),
        "runs": [
            {**_run_entry(run, names), "label": labels[run.name], "edit": edit}
            for run, edit in zip(runs.runs, edit_numbers(runs), strict=True)
        ],
        "columns": columns,
        "tasks": _tasks(columns, groups, names, by_place, runs.show),
        "trials": _trials(runs.trials, groups, at),
        "tuned": _tuned(groups),
        "cells": {key: [cell.get(key) for cell in cells] for key in _CELL_KEYS},
        "popularity": popular,
        "sequences": _sequences(runs, names, labels),
        "attacks": attack_entries(runs),
        "maps": maps(runs),
        "notes": lines,
        "skipped": runs.n_skipped,
    }
    return summary, answers.content()


_CELL_KEYS = "run column value low high stderr n unscored reason change change_low change_high p test why".split()


def _add(answers: Answers, run: Run, task: str, records: list[Record]) -> None:
    part = run.result.robustness.get(task)
    if part is None:
        answers.add(run.name, task, records)
    else:
        add_attacked(answers, run.name, task, records, headline_level(part))


def _ends(result: Result, task: str, name: str) -> Sequence[float] | None:
    """A metric's interval: of a ratio under attack the bootstrap's of its file, of a mean that of its standard error.

    The latter has a width also where all items agree.
    """
    own = result.robustness.get(task, {}).get("intervals", {}).get(name)
    return own if own and is_ratio(name) else interval(name, result.metrics[task][name])


class _Kept:
    """Samples as they are read: those of the runs that others are compared with are read once."""

    def __init__(self, bases: set[str], runs: dict[str, Run]) -> None:
        self._bases = {runs[name].result.path for name in bases}
        self.runs = runs
        self._records: dict[Any, list[Record]] = {}

    def read(self, result: Result, task: str) -> list[Record]:
        key = result.path, task
        if key not in self._records:
            self._records[key] = samples_of(result, task)
        return self._records[key]

    def drop(self, run: Run) -> None:
        if run.result.path not in self._bases:
            self._records = {key: records for key, records in self._records.items() if key[0] != run.result.path}


def _changes(run: Run, kept: _Kept) -> dict[tuple[str, str], dict[str, Any]]:
    """The change of each metric against the run's base, by (task, metric)."""
    if run.base is None:
        return {}
    base = kept.runs[run.base].result
    return {
        (row.task, row.metric): _change(row)
        for row in compare(base, run.result, read=kept.read)
        if row.after is not None and same_data(base, run.result, row.task)
    }


def _change(row: Comparison) -> dict[str, Any]:
    paired = row.paired
    if row.difference is None or paired is None:
        return {"change": row.difference, "why": row.reason}
    ends = {"change_low": paired.low, "change_high": paired.high}
    return {"change": row.difference, **ends, "p": paired.p_value, "test": paired.test}


def _popularity(i: int, run: Run, kept: _Kept) -> list[Cell]:
    """What leaks of each item beside its popularity, by task; nothing of unedited models."""
    if run.result.edit is None:
        return []
    found = []
    for task in run.result.samples:
        try:
            certain = certainties(kept.runs[run.base].result, kept.read) if run.base else {}
            own = popularity(run.result, task, certain, kept.read)
        except UserError:  # the answers say that they cannot be read
            continue
        if own is not None:
            of = own.correlation
            numbers = {
                "value": of.value,
                "low": of.low,
                "high": of.high,
                "p": of.p_value,
                "n": of.n,
                "reason": of.reason,
            }
            points = [[shortened(key, 200), x, y] for key, (x, y) in own.points.items()]
            found.append({"run": i, "task": task, "source": own.source, "points": points, **numbers})
    return found


def _columns(runs: Runs) -> list[dict[str, Any]]:
    """Every metric of every task, in the files' order."""
    known = badges()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs.runs:
        for task, metrics in run.result.metrics.items():
            for name, metric in metrics.items():
                column = found.setdefault((task, name), {"task": task, "name": name, "higher": None})
                if column["higher"] is None:
                    column["higher"] = metric.higher_is_better
    for column in found.values():
        found_meaning = meaning(column["name"])
        column["meaning"], bounds = found_meaning.text, found_meaning.bounds
        column["bounds"] = list(bounds) if bounds and all(map(math.isfinite, bounds)) else None
        column["group"], column["of"], column["plain"] = plain(column["name"])
        if badge := known.get(column["name"]):
            column["badge"] = badge.text
            column["meaning"] += f" {badge.words}"
    order = list(dict.fromkeys(task for task, _ in found))
    return sorted(found.values(), key=lambda column: order.index(column["task"]))


def _tasks(
    columns: list[Cell], groups: list[Group], names: list[str], cells: Cells, shown: Sequence[str]
) -> list[Cell]:
    """Each task: what its leaderboard and frontier show, its rows from the best, and what came of each of them."""
    tasks = []
    for task in dict.fromkeys(column["task"] for column in columns):
        own = [column["name"] for column in columns if column["task"] == task]
        forgets, keeps = leaderboard_columns(own, shown)
        forgets = forgets if shown else by_trust(forgets)
        y, x = frontier_axes(groups, task)
        there = [g for g, group in enumerate(groups) if any(task in run.result.metrics for run in group.runs)]
        some = [groups[g] for g in there]
        found = scores(some, task, y, x)
        tasks.append(
            {
                "name": task,
                "headline": [*forgets, *keeps],
                "forget_columns": forgets,
                "keep_columns": keeps,
                "forgets": y,
                "keeps": x,
                "order": [there[i] for i in ranked(some, task, y, x)],
                "scores": {str(there[i]): score for i, score in enumerate(found) if score is not None},
                "outcomes": {
                    str(g): _outcome(groups[g], task, names, columns, cells, (forgets, keeps))
                    for g in there
                    if not groups[g].is_unedited
                },
            }
        )
    return tasks


def _outcome(
    group: Group, task: str, names: list[str], columns: list[Cell], cells: Cells, shown: tuple[list[str], list[str]]
) -> str:
    places = [names.index(run.name) for run in group.runs]

    def number(name: str) -> Number | None:
        column = next((i for i, own in enumerate(columns) if (own["task"], own["name"]) == (task, name)), -1)
        own = [cell for place in places if (cell := cells.get((place, column))) is not None]
        value, metric = spread([cell["value"] for cell in own]).mean, metric_of(group, task, name)
        if value is None or metric is None:
            return None
        change, p = _joint_change(own)
        return Number(
            value,
            own[0]["n"] or 0 if len(own) == 1 else 0,
            metric.higher_is_better,
            None if change is None else value - change,
            p,
        )

    return outcome(number, *shown, fault="; ".join(group.faults))


def _joint_change(cells: list[Cell]) -> tuple[float | None, float | None]:
    """The mean change over seeds, and the largest p-value of those that all changed alike; else no p-value."""
    changes = [cell.get("change") for cell in cells]
    if any(change is None for change in changes) or not changes:
        return None, None
    known = [float(change) for change in changes if change is not None]
    ps = [cell.get("p") for cell in cells]
    alike = all(change > 0 for change in known) or all(change < 0 for change in known) or len(known) == 1
    mean = spread(known).mean
    if any(p is None for p in ps):
        return mean, None
    return mean, max(float(p) for p in ps if p is not None) if alike else 1.0


def _sequences(runs: Runs, names: list[str], labels: dict[str, str]) -> list[Cell]:
    """Requests one after another: for each sequence its runs by mark, what each cost, and the unedited run."""
    found = []
    for marks in sequences(runs.runs):
        last = marks[-1].run
        cell = last.result.config["cell"]
        order = str(cell.get("order") or "").replace("_", " ")
        name = ", ".join(part for part in (last.method, order, f"seed {cell['seed']}") if part)
        found.append(
            {
                "name": name if len({run.model for run in runs.runs}) == 1 else f"{name} on {last.model}",
                "base": names.index(last.base) if last.base else None,
                "runs": [names.index(own.run.name) for own in marks],
                "marks": [own.mark for own in marks],
                "seconds": [own.seconds for own in marks],
                "peak_bytes": [own.peak_bytes for own in marks],
                "edit_bytes": [own.edit_bytes for own in marks],
            }
        )
    return found


def _group_entries(groups: list[Group], names: list[str]) -> list[Cell]:
    """The rows of leaderboards: each group with its runs, hue and mark; one hue for a method, one mark for a recipe."""
    editors = list(dict.fromkeys(group.editor for group in groups if not group.is_unedited))
    marks: dict[str, list[str]] = {}
    entries = []
    for group in groups:
        own = marks.setdefault(group.editor, [])
        own.append(group.label)
        entries.append(
            {
                "label": group.title,
                "runs": [names.index(run.name) for run in group.runs],
                "hue": None if group.is_unedited else editors.index(group.editor),
                "mark": len(own) - 1,
                "faults": list(group.faults),
            }
        )
    return entries


_MEAN_KEYS = "group column value deviation n change change_deviation p".split()


def _means(groups: list[Group], names: list[str], columns: list[Cell], cells: Cells) -> dict[str, list[Any]]:
    """The numbers of groups of several seeds, as lists by key: means, standard deviations over seeds, mean changes."""
    found = []
    for g, group in enumerate(groups):
        if len(group.runs) < 2:
            continue
        places = [names.index(run.name) for run in group.runs]
        for c in range(len(columns)):
            own = [cell for place in places if (cell := cells.get((place, c))) is not None]
            over = spread([cell["value"] for cell in own])
            if own:
                change, p = _joint_change(own)
                apart = spread([cell.get("change") for cell in own]).deviation
                found.append([g, c, over.mean, over.deviation, over.n, change, None if change is None else apart, p])
    return {key: [row[i] for row in found] for i, key in enumerate(_MEAN_KEYS)}


_TRIAL_KEYS = "group trial column value".split()


def _trials(trials: Sequence[Run], groups: list[Group], at: dict[tuple[str, str], int]) -> dict[str, list[Any]]:
    """What a search for settings has tried, as lists by key: each number with the group of what was chosen."""
    reported = {_searched(group.runs[0]): g for g, group in enumerate(groups)}
    found = []
    for i, run in enumerate(trials):
        group = reported.get((*_searched(run)[:-1], "tuned"), reported.get((*_searched(run)[:-1], "untuned")))
        if group is not None and run.result.edit is not None:
            for task, metrics in run.result.metrics.items():
                found += [[group, i, at[task, name], m.value] for name, m in metrics.items() if (task, name) in at]
    return {key: [row[i] for row in found] for i, key in enumerate(_TRIAL_KEYS)}


def _tuned(groups: list[Group]) -> list[tuple[int, int]]:
    """The groups of the same method untuned and tuned."""
    places = {_searched(group.runs[0]): g for g, group in enumerate(groups)}
    pairs = [(places.get((*key[:-1], "untuned")), g) for key, g in places.items() if key[-1] == "tuned"]
    return [(before, after) for before, after in pairs if before is not None]


def _searched(run: Run) -> tuple[Any, ...]:
    """Of which search a run is, and as what."""
    cell = run.result.config.get("cell") or {}
    trial = cell.get("trial") or {}
    place = [cell.get(key) for key in ("part", "recipe", "forget", "size", "backend")]
    return (run.model, *place, trial.get("of"), trial.get("state"))


def _dates(runs: Runs) -> list[str]:
    """The first and the last day on which results were made."""
    days = sorted(run.result.created[:10] for run in runs.runs)
    return list(dict.fromkeys([days[0], days[-1]]))


def _run_entry(run: Run, names: list[str]) -> dict[str, Any]:
    result = run.result
    return {
        "name": run.name,
        "model": run.model,
        "method": run.method,
        "forget_set": run.forget_set,
        "base": names.index(run.base) if run.base else None,
        "status": result.status,
        "created": result.created,
        "seed": result.seed,
        "faults": list(run.faults),
        **cost(result),
        "provenance": _provenance(run),
    }


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What repeats a run, as (name, text)."""
    result = run.result
    git, edit = result.provenance.get("git") or {}, result.edit or {}
    requests = edit.get("requests") or {}
    dirty = {True: ", with changes that are in no commit", False: "", None: ""}[git.get("dirty")]
    rows: list[tuple[str, Any]] = [
        ("file", result.path.name if result.path else None),
        ("written by", result.provenance.get("written_by")),
        ("kind, status", f"{result.kind}, {result.status}"),
        ("warning", "\n".join(run.faults)),
        ("created", result.created),
        ("command", shlex.join(map(str, result.command))),
        ("seed", result.seed),
        ("model", result.model.get("id")),
        ("revision", result.model.get("revision")),
        ("weights (SHA-256)", result.model.get("weights_hash")),
        ("weights as bfloat16", result.model.get("canonical_weights_hash")),
        ("type of numbers", result.model.get("dtype")),
        ("parameters", result.model.get("n_parameters")),
        ("editor's seed", edit.get("seed")),
        ("editor's settings", _json(edit.get("config"))),
        ("target", requests.get("target")),
        ("forget set", run.forget_set),
        ("forget set (SHA-256)", requests.get("forget_set_hash")),
        *((f"data of {task}", (data or {}).get("hash")) for task, data in result.data.items()),
        *((f"samples of {task}", (entry or {}).get("sha256")) for task, entry in result.samples.items()),
        ("settings as passed", _json(result.config_as_passed)),
        ("timing", _json(result.timing)),
        ("unlearn-eval", result.provenance.get("unlearn_eval")),
        ("commit", f"{git['commit']}{dirty}" if git.get("commit") else git.get("reason")),
        ("packages", ", ".join(f"{k} {v}" for k, v in (result.provenance.get("packages") or {}).items())),
        ("Python", result.provenance.get("python")),
        ("platform", result.provenance.get("platform")),
        ("device", result.provenance.get("device")),
        ("notes", "\n".join(map(str, result.notes))),
    ]
    return [(name, shortened(str(value), MOST_OF_A_ROW)) for name, value in rows if value not in (None, "", "{}")]


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False) if content else ""
