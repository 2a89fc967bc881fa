"""What a report's page holds, as plain data: runs, metrics with their changes, and answers question by question.

Everything that a model wrote is data here and stays data: `page.py` encodes it, the page shows it as text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from unlearn_eval.metrics.catalogue import axes, headline, interval, is_ratio, meaning
from unlearn_eval.results.comparison import Comparison, compare
from unlearn_eval.results.files import samples_of
from unlearn_eval.results.report.answers import Answers, Record, shortened
from unlearn_eval.results.report.attacked import add_attacked
from unlearn_eval.results.report.robustness import attack_entries, edit_numbers, headline_level, maps
from unlearn_eval.results.runs import Run, Runs, cost, same_data
from unlearn_eval.results.schema import Result
from unlearn_eval.utils.errors import UserError

Say = Callable[[str], Any]
MOST_OF_A_ROW = 20_000  # characters: settings are long, notes of megabytes are no notes

# The page --------------------------------------------------------------------------------------------------


def page_data(runs: Runs, say: Say = lambda line: None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary (runs, metrics, values with intervals and changes) and the answers of all runs."""
    names = [run.name for run in runs.runs]
    columns = _columns(runs)
    at = {(column["task"], column["name"]): i for i, column in enumerate(columns)}
    answers, cells, lines = Answers(), [], list(runs.notes)
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
    summary = {
        "runs": [
            {**_run_entry(run, names), "edit": edit} for run, edit in zip(runs.runs, edit_numbers(runs), strict=True)
        ],
        "columns": columns,
        "tasks": _tasks(columns),
        "cells": {key: [cell.get(key) for cell in cells] for key in _CELL_KEYS},
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


def _columns(runs: Runs) -> list[dict[str, Any]]:
    """Every metric of every task, in the files' order."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs.runs:
        for task, metrics in run.result.metrics.items():
            for name, metric in metrics.items():
                column = found.setdefault((task, name), {"task": task, "name": name, "higher": None})
                if column["higher"] is None:
                    column["higher"] = metric.higher_is_better
    for column in found.values():
        column["meaning"] = meaning(column["name"]).text
    order = list(dict.fromkeys(task for task, _ in found))
    return sorted(found.values(), key=lambda column: order.index(column["task"]))


def _tasks(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tasks = []
    for task in dict.fromkeys(column["task"] for column in columns):
        names = [column["name"] for column in columns if column["task"] == task]
        forgets, keeps = axes(names)
        tasks.append({"name": task, "headline": headline(names), "forgets": forgets, "keeps": keeps})
    return tasks


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
