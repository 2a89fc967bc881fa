"""The schema of a result file: one JSON per run, written whole or not at all, per-sample JSONL beside it.

What is undefined is null with a reason, never 0. JSON is strict (no NaN). Reading checks everything: a file
that is half written, of another version, or parted from its samples is an error that says which.
"""

from __future__ import annotations
from unlearn_eval.metrics.metric import Metric


import dataclasses
import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import Record, dumps, parse, plain, read_jsonl, read_text, write_all
from unlearn_eval.utils.provenance import redact, sha256_of_file

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Metric",
    "Result",
    "compare",
    "few_digits",
    "load_frame",
    "read_jsonl",
    "read_result",
    "read_samples",
    "result_from",
    "samples_of",
    "scores_by_layer",
    "utc_now",
    "write_result",
]

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


_FIELDS = tuple(f.name for f in dataclasses.fields(Result) if f.name != "path")
_OPTIONAL = {"robustness"}  # results of other kinds are written without them
_MEASURED = {"metrics", "samples", "robustness"}  # numbers and hashes of ours, in which there is nothing to redact


def utc_now() -> str:
    """The time now, as `Result.created` wants it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# Writing ---------------------------------------------------------------------------------------------------


def write_result(
    result: Result, path: str | Path, samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> Path:
    """Writes the samples as `<stem>.<task>.samples.jsonl`, then the result; returns its path.

    Every file is written beside its place and synced before any is moved there, the result last: whatever
    happens, `path` holds the old file or the whole new one. Home folder and tokens are redacted.

    Raises:
        UserError: if it cannot be saved; the same files are then in a temporary folder, which the message
            names, or the JSON is on standard error.
        ValueError: if a number is NaN or infinite or an object is not JSON: our mistake, which the message
            locates; a rescue copy is in a temporary folder.
    """
    path = Path(path).expanduser()
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"a result is a .json file, not {path}", "name a file, such as results/run.json")
    try:
        files = _files(result, path.name, samples or {})
    except ValueError as error:
        raise ValueError(f"internal error: {error}; {_rescue(result, path.name, samples or {})}") from error
    try:
        write_all(files, path.parent)
    except OSError as error:
        raise _saved_elsewhere(files, path, error) from error
    return path


def _files(result: Result, name: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """The texts to write by file name, the result last."""
    files, entries = {}, dict(result.samples)
    for task, records in samples.items():
        lines = (dumps(plain(record, f"sample {i} of {task}")) for i, record in enumerate(records, 1))
        text = "".join(line + "\n" for line in lines)
        file = f"{name.removesuffix('.json')}.{_file_part(task)}.samples.jsonl"
        files[file] = text
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        entries[task] = {"file": file, "sha256": sha256, "n": len(records)}
    result = dataclasses.replace(result, samples=entries)
    content: Record = {"schema_version": SCHEMA_VERSION}
    for key in _FIELDS:
        value = plain(getattr(result, key), key)
        if key in _OPTIONAL and not value:
            continue
        content[key] = value if key in _MEASURED else redact(value)
    return files | {name: dumps(content, indent=2) + "\n"}


def _file_part(task: str) -> str:
    safe = re.sub(r"[^\w.-]+", "_", task)[:100]  # file systems allow 255 bytes
    return safe if safe == task else f"{safe}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def _saved_elsewhere(files: Mapping[str, str], path: Path, error: OSError) -> UserError:
    """Saves the files in a fresh temporary folder; the error that says so."""
    failed = f"could not save {path}: {error.strerror or error}"
    try:
        folder = Path(tempfile.mkdtemp(prefix="unlearn-eval-"))
        write_all(files, folder)
    except OSError as second:
        print(files[path.name], file=sys.stderr, flush=True)
        lost = f" ({len(files) - 1} files of samples are lost)" if len(files) > 1 else ""
        return UserError(
            f"{failed}; nor could a copy be saved in the temporary folder: {second.strerror or second}",
            f"the result is the JSON above, on standard error{lost}: keep it in a file",
        )
    return UserError(
        f"{failed}; nothing is lost: the same files are in {folder}",
        f"make room, or choose another place, and move them: mv {folder}/* {path.parent}/",
    )


def _rescue(result: Result, name: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Saves what was computed although it is not strict JSON; where."""
    content = {"result": dataclasses.asdict(result), "samples": dict(samples)}
    try:
        folder = Path(tempfile.mkdtemp(prefix="unlearn-eval-"))
        write_all({f"rescue-{name}": json.dumps(redact(content), default=repr, skipkeys=True)}, folder)
    except (OSError, ValueError) as error:
        return f"no rescue copy could be saved: {error}"
    return f"a rescue copy is in {folder}"


# Reading ---------------------------------------------------------------------------------------------------


def read_result(path: str | Path, check_samples: bool = True) -> Result:
    """The result in a file, with its samples' SHA-256 checked.

    Raises:
        UserError: if the file is missing, cut off, of another version or shape, or parted from its samples.
    """
    path = Path(path).expanduser()
    content = parse(read_text(path, "result file"), path, "the run was cut off, or it was edited: run it again")
    return result_from(content, path, check_samples)


def result_from(content: Any, path: Path, check_samples: bool = True) -> Result:
    """The result that the JSON of the file at `path` holds; raises as `read_result` does."""
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UserError(f"{path} is not a result file: it has no schema_version", "name a file that a run wrote")
    content = dict(content)
    version = content.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r}; this unlearn-eval reads {SCHEMA_VERSION}",
            "read it with the version of unlearn-eval that wrote it (see its provenance)",
        )
    _same_fields(content, _FIELDS, str(path), _OPTIONAL)
    try:
        content["metrics"] = {
            task: {name: _metric(m, f"{path}: metrics.{task}.{name}") for name, m in metrics.items()}
            for task, metrics in content["metrics"].items()
        }
        result = Result(**content, path=path)
        for task in result.samples if check_samples else ():
            _samples_file(result, path, task)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is not a sound result file: {error}", "it was edited: run it again") from error
    return result


def _metric(content: Any, where: str) -> Metric:
    _same_fields(content, tuple(f.name for f in dataclasses.fields(Metric)), where)
    return Metric(**content)


def _same_fields(content: Any, names: Iterable[str], where: str, optional: Iterable[str] = ()) -> None:
    got, wanted = set(content) | set(optional), set(names)
    hint = "it was edited, or written by another version of unlearn-eval"
    if missing := sorted(wanted - got):
        raise UserError(f"{where} lacks the field {', '.join(missing)}", hint)
    if unknown := sorted(got - wanted):
        raise UserError(f"{where} has the unknown field {', '.join(unknown)}", hint)


def read_samples(path: str | Path, task: str) -> list[Record]:
    """The per-sample records of one task of the result at `path`."""
    return samples_of(read_result(path, check_samples=False), task)


def samples_of(result: Result, task: str) -> list[Record]:
    """The per-sample records of one task of a result that was read from a file."""
    assert result.path is not None
    if task not in result.samples:
        raise unknown_name("task with samples", task, result.samples)
    file = _samples_file(result, result.path, task)
    return read_jsonl(file) if result.samples[task]["n"] else []


def _samples_file(result: Result, path: Path, task: str) -> Path:
    """The file of a task's samples, whole and unchanged."""
    entry = result.samples[task]
    file = path.parent / Path(entry["file"]).name
    if not file.is_file():
        raise UserError(f"{path} lacks its samples {file.name}", "keep the .jsonl files beside the result")
    if sha256_of_file(file) != entry["sha256"]:
        raise UserError(f"{file} has changed since {path.name} was written", "bring both files from the same run")
    return file


# Comparing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One metric in two results.

    Attributes:
        task: the task.
        metric: the metric's name.
        before: None if the first result lacks it.
        after: None if the second does.
        direction: "↑" or "↓" for the better direction, "" if there is none.
        difference: after minus before, or None.
        paired: difference, stderr, low, high, p_value, n over the items of both; or None.
        reason: why `difference` or `paired` is None.
    """

    task: str
    metric: str
    before: Metric | None
    after: Metric | None
    direction: str
    difference: float | None
    paired: Any = None
    reason: str | None = None


def compare(
    before: Result, after: Result, seed: int = 0, read: Callable[[Result, str], list[Record]] = samples_of
) -> list[Comparison]:
    """One row for each metric of either result, in the order of the first; paired where samples allow it.

    `read` gives the samples of a result's task; who compares many results with one may keep what it has read.
    """
    rows = []
    for task in dict.fromkeys([*before.metrics, *after.metrics]):
        first, second = before.metrics.get(task, {}), after.metrics.get(task, {})
        samples = _paired_samples(before, after, task, read)
        for name in dict.fromkeys([*first, *second]):
            rows.append(_compare_metric(task, name, first.get(name), second.get(name), samples, seed))
    return rows


def _compare_metric(
    task: str,
    name: str,
    before: Metric | None,
    after: Metric | None,
    samples: list[tuple[Record, Record]] | str,
    seed: int,
) -> Comparison:
    known = after or before
    direction = {True: "↑", False: "↓", None: ""}[known.higher_is_better if known else None]
    for which, metric in (("first", before), ("second", after)):
        if metric is None or metric.value is None:
            reason = f"the {which} result lacks it" if metric is None else f"{which}: {metric.reason}"
            return Comparison(task, name, before, after, direction, None, None, reason)
    assert before is not None and before.value is not None  # noqa: PT018
    assert after is not None and after.value is not None  # noqa: PT018
    difference = after.value - before.value
    paired, why = _paired(name, difference, samples, seed)
    return Comparison(task, name, before, after, direction, difference, paired, why)


def _paired(
    name: str, difference: float, samples: list[tuple[Record, Record]] | str, seed: int
) -> tuple[Any, str | None]:
    """The paired comparison of a metric, or the reason why there is none."""
    if isinstance(samples, str):
        return None, samples
    scores = [(_score(first, name), _score(second, name)) for first, second in samples]
    if not any(a is not None and b is not None for a, b in scores):
        return None, "the samples hold no score of this name"
    try:
        from unlearn_eval.metrics import paired_comparison
    except ImportError:
        return None, "unlearn_eval.metrics cannot be imported"
    paired = paired_comparison([a for a, _ in scores], [b for _, b in scores], seed=seed)
    if paired.difference is None or not math.isclose(paired.difference, difference, rel_tol=1e-6, abs_tol=1e-9):
        return (
            None,
            "the metric is not the mean of its samples' scores, or the two runs share only some items",
        )
    return paired, None


def _score(record: Record, name: str) -> float | None:
    nested = record.get("metrics")
    value = nested.get(name) if isinstance(nested, dict) else record.get(name)
    return float(value) if isinstance(value, int | float) else None


def _paired_samples(
    before: Result, after: Result, task: str, read: Callable[[Result, str], list[Record]]
) -> list[tuple[Record, Record]] | str:
    """The records of the same items, or the reason why there are none."""
    keyed: list[dict[Any, Record]] = []
    for which, result in (("first", before), ("second", after)):
        if result.path is None or task not in result.samples:
            return f"the {which} result has no samples of this task"
        try:
            records = read(result, task)
        except UserError as error:
            return error.message
        keyed.append({(r.get("id", r.get("doc_id")), r.get("doc_hash")): r for r in records})
        if len(keyed[-1]) != len(records) or (None, None) in keyed[-1]:
            return f"the samples of the {which} result have no unique ids"
    shared = [(record, keyed[1][key]) for key, record in keyed[0].items() if key in keyed[1]]
    return shared or "the two results share no items"


# What results and reports have of a localization -----------------------------------------------------------


def scores_by_layer(ranking: Iterable[Mapping[str, Any]], n_layers: int) -> dict[str, list[Any]]:
    """Kind of unit -> its score in every layer, None where it has none.

    Args:
        ranking: `{"kind", "layer", "score"}` of each unit.
        n_layers: of the model.
    """
    scores: dict[str, list[Any]] = {}
    for unit in ranking:
        scores.setdefault(unit["kind"], [None] * n_layers)[unit["layer"]] = unit["score"]
    return scores


def few_digits(value: Any) -> Any:
    """The same with four significant digits of every float in it."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: few_digits(own) for key, own in value.items()}
    return [few_digits(own) for own in value] if isinstance(value, list | tuple) else value


# Many results ----------------------------------------------------------------------------------------------


def load_frame(paths: str | Path | Iterable[str | Path]) -> Any:
    """The metrics of many results as one pandas DataFrame; see `unlearn_eval.results.runs.frame` for its columns."""
    from unlearn_eval.results.runs import frame, read_runs

    return frame(read_runs(paths))
