"""The metrics of many results as one table: a row for each metric of each run, or of each method over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unlearn_eval.metrics.edit_checks import took
from unlearn_eval.results.badges import badges
from unlearn_eval.results.groups import group_runs, run_labels, spread
from unlearn_eval.results.runs import Place, Runs, cost, read_runs
from unlearn_eval.results.schema import DIRECTIONS
from unlearn_eval.utils.notebooks import data_frame

if TYPE_CHECKING:
    import pandas


def load_frame(paths: Place | Iterable[Place], over_seeds: bool = False) -> pandas.DataFrame:
    """The metrics of many results as one pandas DataFrame, one row for each metric of each run.

    Args:
        paths: result files, folders of them, or results; lm-eval's and OpenUnlearning's files are read, too.
        over_seeds: whether runs that differ in nothing but their seed are one row, with mean and standard deviation.

    Raises:
        UserError: a path is not there, no result is left, or pandas is not installed. The columns are those of
            `unlearn_eval.results.frames.frame`; files that were skipped are named in `frame.attrs["notes"]`.
    """
    return frame(read_runs(paths), over_seeds)


def frame(runs: Runs, over_seeds: bool = False) -> pandas.DataFrame:
    """One row for each metric of each run, in the order of the files; or, over seeds, of each method with its recipe.

    Columns: run, label (the method with what tells it from the others), model, method, forget_set, base, task, metric,
    value, low, high (95 % interval), stderr, n, n_unscored, direction ("higher" or "lower" is better, or None), reason
    (why there is no value), seed, status, created, edit_seconds, evaluation_seconds, peak_memory_bytes (of the edit),
    took (whether the edit took by its own self-check, or None), faults (why the edit is not to be read as a result, or
    ""), file, and faithfulness, robustness and supports (what the metric was measured to be worth, and which claims a
    low value supports, or None: see `results/badges.py`). The lines on skipped files are in `frame.attrs["notes"]`.

    Over seeds the columns are: method (with what tells it from the others), model, forget_set, task, metric, value (the
    mean), deviation (sample standard deviation; None below two seeds), n_seeds (that have a value), seeds, direction,
    faithfulness, robustness and supports as above, edit_seconds (mean), faults, runs (their names).

    Raises:
        UserError: pandas is not installed.
    """
    made = data_frame(_rows_over_seeds(runs) if over_seeds else _rows(runs), "load_frame")
    made.attrs["notes"] = list(runs.notes)
    return made


def _rows(runs: Runs) -> list[dict[str, Any]]:
    rows, labels = [], run_labels(group_runs(runs.runs))
    for run in runs.runs:
        result = run.result
        about: dict[str, Any] = {"run": run.name, "label": labels[run.name], "model": run.model, "method": run.method}
        about |= {"forget_set": run.forget_set, "base": run.base}
        rest = {"seed": result.seed, "status": result.status, "created": result.created, **cost(result)}
        rest |= {"took": took((result.edit or {}).get("notes")), "faults": "; ".join(run.faults)}
        rows += [
            about | row | rest | {"file": str(result.path)} | _worth(row["metric"]) for row in result.metric_rows()
        ]
    return rows


def _worth(metric: str) -> dict[str, Any]:
    """What a metric was measured to be worth; None where it was not."""
    badge = badges().get(metric)
    return {
        "faithfulness": badge and badge.faithfulness,
        "robustness": badge and badge.robustness,
        "supports": badge and ", ".join(badge.supports),
    }


def _rows_over_seeds(runs: Runs) -> list[dict[str, Any]]:
    rows = []
    for group in group_runs(runs.runs):
        first = group.runs[0]
        names = {
            (task, name): m for run in group.runs for task, own in run.result.metrics.items() for name, m in own.items()
        }
        seconds = spread([cost(run.result)["edit_seconds"] for run in group.runs]).mean
        about: dict[str, Any] = {"method": group.label, "model": first.model, "forget_set": first.forget_set}
        rest: dict[str, Any] = {
            "edit_seconds": seconds,
            "faults": "; ".join(group.faults),
            "runs": [run.name for run in group.runs],
        }
        for (task, name), metric in names.items():
            found = group.value(task, name)
            rows.append(
                about
                | {"task": task, "metric": name, "value": found.mean, "deviation": found.deviation, "n_seeds": found.n}
                | {"seeds": [run.result.seed for run in group.runs], "direction": DIRECTIONS[metric.higher_is_better]}
                | _worth(name)
                | rest
            )
    return rows
