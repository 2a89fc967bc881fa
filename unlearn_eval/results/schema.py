"""The schema of a result file: one JSON per run, written whole or not at all, per-sample JSONL beside it.

What is undefined is null with a reason, never 0. JSON is strict (no NaN). Reading checks everything: a file
that is half written, of another version, or parted from its samples is an error that says which.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from unlearn_eval.metrics.metric import Metric

__all__ = ["SCHEMA_VERSION", "STATUSES", "Metric", "Result", "utc_now"]

SCHEMA_VERSION = 1
STATUSES = ("complete", "partial", "failed")


@dataclass(frozen=True)
class Result:
    """One run, in the order of its file's keys (`schema_version` comes first there).

    Attributes:
        kind: "evaluation", "demo", "edit" ...
        status: one of `STATUSES`.
        created: when the run began, UTC, ISO 8601.
        command: the command line, redacted.
        config_as_passed: what the user set.
        config: all of it, as resolved.
        model: id, revision, hashes of the weights ...
        edit: what was applied to the model, or None.
        data: by name: hash and number of items.
        metrics: by task, then name.
        samples: by task: file beside this one, SHA-256, number of records. Set by `write_result`.
        provenance: see `unlearn_eval.utils.provenance`.
        seed: the run's seed, or None.
        timing: names end in `_seconds`.
        notes: sentences for the reader.
        robustness: by attack: levels, curves, intervals, what was skipped; not written if empty.
        path: the file that it was read from; not written.
    """

    kind: str
    status: str
    created: str
    command: list[str] = field(default_factory=list)
    config_as_passed: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    timing: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    robustness: dict[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status '{self.status}' is not one of {', '.join(STATUSES)}")
        if datetime.fromisoformat(self.created).utcoffset() != timedelta(0):
            raise ValueError(f"created '{self.created}' is not a time in UTC")
        if wrong := [name for name in self.timing if not name.endswith("_seconds")]:
            raise ValueError(f"timing '{wrong[0]}' does not end in _seconds")


FIELDS = tuple(f.name for f in dataclasses.fields(Result) if f.name != "path")
OPTIONAL = {"robustness"}  # results of other kinds are written without them
MEASURED = {"metrics", "samples", "robustness"}  # numbers and hashes of ours, in which there is nothing to redact


def utc_now() -> str:
    """The time now, as `Result.created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
