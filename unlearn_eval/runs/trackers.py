"""Experiment trackers: each finished result becomes a run of W&B, MLflow or Trackio, by their own calls."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

from unlearn_eval.results.schema import Result
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.provenance import redact

PROJECT = "unlearn-eval"
_MOST_AT_ONCE = 100  # parameters or metrics in one request to an MLflow server
_MOST_CHARACTERS = 500  # of a parameter, which MLflow may refuse to store if it is longer
_ODD = re.compile(r"[^\w./ -]")  # in names that MLflow refuses

Log = Callable[[Result, str], None]


def tracker(name: str, say: Callable[[str], Any]) -> Log:
    """What logs a result and its name as a run of a tracker.

    A run has the metrics with standard errors and numbers of items, the settings, and the path of the result file. It
    is logged after the result is written: what a tracker refuses is a warning.

    Args:
        name: "wandb", "mlflow" or "trackio".
        say: Told what the tracker refuses.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    if name not in _LOGGERS:
        raise unknown_name("tracker", name, _LOGGERS)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--tracker {name} needs a package that is not installed: {error}", f"pip install {name}"
        ) from error

    def log(result: Result, run: str) -> None:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for data
                _LOGGERS[name](module, run, settings_of(result), metrics_of(result))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            say(f"warning: {name} did not log {run} ({type(error).__name__}: {reason}); the result is in {result.path}")

    return log


def metrics_of(result: Result) -> dict[str, float]:
    """The defined metrics by `TASK/NAME`, with `/stderr` and `/n`."""
    found: dict[str, float] = {}
    for task, metrics in result.metrics.items():
        for name, metric in metrics.items():
            key = _ODD.sub("_", f"{task}/{name}")
            values = {key: metric.value, f"{key}/stderr": metric.stderr, f"{key}/n": metric.n}
            if metric.value is not None:
                found |= {own: float(value) for own, value in values.items() if value is not None}
    return found


def settings_of(result: Result) -> dict[str, Any]:
    """What a result was made with, as flat names and plain values, and where its file is."""
    edit = result.edit or {}
    requests = edit.get("requests") or {}
    settings = {
        "kind": result.kind,
        "status": result.status,
        "model": result.model.get("id"),
        "editor": edit.get("editor"),
        "edit": edit.get("config") or {},
        "requests": {key: requests.get(key) for key in ("n", "forget_set", "target", "merge", "chat")},
        "eval": result.config_as_passed,
        "cell": result.config.get("cell") or {},
        "seed": result.seed,
        "result_file": None if result.path is None else str(result.path.resolve()),
    }
    return {key: value for key, value in _flat(redact(settings)) if value is not None}


# Details ---------------------------------------------------------------------------------------------------


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield _ODD.sub("_", f"{before}{key}"), str(value) if isinstance(value, list | tuple) else value


def _as_wandb(module: Any, run: str, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """W&B's calls, which are Trackio's too."""
    module.init(project=os.environ.get(f"{module.__name__.upper()}_PROJECT") or PROJECT, name=run, config=settings)
    try:
        module.log(metrics)
    finally:
        module.finish()


def _as_mlflow(module: Any, run: str, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    module.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
    with module.start_run(run_name=run):
        for part in _parts({key: str(value)[:_MOST_CHARACTERS] for key, value in settings.items()}):
            module.log_params(part)
        for part in _parts(metrics):
            module.log_metrics(part)
        module.set_tag("result_file", settings.get("result_file", ""))


def _parts(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """As much of a dictionary at a time as one request may hold."""
    pairs = iter(values.items())
    while part := dict(islice(pairs, _MOST_AT_ONCE)):
        yield part


_LOGGERS: Mapping[str, Callable[[Any, str, dict[str, Any], dict[str, float]], None]] = {
    "wandb": _as_wandb,
    "mlflow": _as_mlflow,
    "trackio": _as_wandb,
}
