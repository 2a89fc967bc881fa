"""The schema of a result file: one JSON per run, written whole or not at all, per-sample JSONL beside it.

What is undefined is null with a reason, never 0. JSON is strict (no NaN). Reading checks everything: a file
that is half written, of another version, or parted from its samples is an error that says which.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from unlearn_eval.utils.notebooks import data_frame, html_table
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance

if TYPE_CHECKING:
    import pandas

__all__ = ["SCHEMA_VERSION", "STATUSES", "Metric", "Result", "utc_now"]

SCHEMA_VERSION = 1
DIRECTIONS = {True: "higher", False: "lower", None: None}  # which is better, in words, by `higher_is_better`
STATUSES = ("complete", "partial", "failed")


@dataclass(frozen=True)
class Metric:
    """One number of a result.

    Attributes:
        value: the number, or None with a `reason`.
        stderr: its standard error, or None if it has none.
        n: the items that it rests on; None if that is not known.
        n_unscored: the items that were asked and could not be scored.
        reason: why there is no value; None if there is one.
        higher_is_better: None if neither direction is.
    """

    value: float | None
    stderr: float | None = None
    n: int | None = 0
    n_unscored: int = 0
    reason: str | None = None
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"a metric has a value or a reason, not both or neither: {self}")
        if self.value is None and self.stderr is not None:
            raise ValueError(f"a metric without a value has no standard error: {self}")
        if not all(number is None or math.isfinite(number) for number in (self.value, self.stderr)):
            raise ValueError(f"a metric's value is finite, or None with a reason: {self}")
        if (self.stderr or 0) < 0 or (self.n or 0) < 0 or self.n_unscored < 0:
            raise ValueError(f"standard error and counts are not negative: {self}")


class Contents(TypedDict, total=False):
    """What a run has to say for itself; attributes as in `Result`."""

    status: str
    config_as_passed: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    edit: dict[str, Any] | None
    data: dict[str, Any]
    metrics: dict[str, dict[str, Metric]]
    seed: int | None
    timing: dict[str, float]
    robustness: dict[str, Any]


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

    def __repr__(self) -> str:
        tasks = ", ".join(f"{task} ({len(own)} metrics)" for task, own in self.metrics.items())
        edit = f", {self.edit['editor']}" if self.edit and "editor" in self.edit else ""
        return f"Result({self.kind}, {self.status}{edit}: {tasks or 'no tasks'})"

    def _repr_html_(self) -> str:
        rows = [
            (task, name, metric.value, metric.stderr, metric.n, metric.reason)
            for task, metrics in self.metrics.items()
            for name, metric in metrics.items()
        ]
        return html_table(repr(self), ("task", "metric", "value", "stderr", "n", "reason"), rows)

    def metric_rows(self) -> list[dict[str, Any]]:
        """A row for each metric, its columns those of `frames.frame`.

        The direction is "higher" or "lower", which is better, or None; low and high are the 95 % interval.
        """
        from unlearn_eval.metrics.catalogue import interval

        rows = []
        for task, metrics in self.metrics.items():
            for name, metric in metrics.items():
                low, high = interval(name, metric) or (None, None)
                rows.append(
                    {"task": task, "metric": name, "value": metric.value, "low": low, "high": high}
                    | {"stderr": metric.stderr, "n": metric.n, "n_unscored": metric.n_unscored}
                    | {"direction": DIRECTIONS[metric.higher_is_better]}
                    | {"reason": metric.reason}
                )
        return rows

    def to_frame(self) -> pandas.DataFrame:
        """The metrics as a pandas DataFrame, as `metric_rows` has them.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame(self.metric_rows(), "to_frame")

    @classmethod
    def new(
        cls,
        kind: str,
        created: str,
        *,
        command: Sequence[str] | None = None,
        device: object = None,
        notes: Sequence[str] = (),
        peak: str = "",
        **contents: Unpack[Contents],
    ) -> Self:
        """The result of a run of this process, which ends now; complete unless its `status` says otherwise.

        Args:
            kind: of the run.
            created: when it began, of `utc_now`.
            command: the command line; None is that of this process.
            device: where the model is, for the provenance.
            notes: sentences for the reader.
            peak: what the last note calls the most memory that this process held; "" leaves it out.
            contents: the rest.
        """
        said = [*notes, f"{peak} {peak_memory_bytes()} bytes"] if peak else list(notes)
        own = sys.argv if command is None else list(command)
        return cls.part(kind, created, notes=said, command=own, provenance=provenance(device), **contents)

    @classmethod
    def part(
        cls,
        kind: str,
        created: str,
        *,
        notes: Sequence[str] = (),
        command: list[str] | None = None,
        provenance: dict[str, Any] | None = None,
        **contents: Unpack[Contents],
    ) -> Self:
        """The result of a part of a run, which leaves command and provenance to the whole; arguments as in `new`."""
        rest: Contents = {"status": "complete", **contents}
        return cls(
            kind=kind, created=created, command=command or [], provenance=provenance or {}, notes=list(notes), **rest
        )


FIELDS = tuple(f.name for f in dataclasses.fields(Result) if f.name != "path")
OPTIONAL = {"robustness"}  # results of other kinds are written without them
MEASURED = {"metrics", "samples", "robustness"}  # numbers and hashes of ours, in which there is nothing to redact


def utc_now() -> str:
    """The time now, as `Result.created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
