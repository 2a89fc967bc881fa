"""Result files: one JSON for each run, whole or not at all, with the samples beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from unlearn_eval.results.foreign import WRITERS, foreign_result, foreign_samples, kind_of, read_content
from unlearn_eval.results.schema import FIELDS, MEASURED, OPTIONAL, SCHEMA_VERSION, Result
from unlearn_eval.results.stored import AttackedSample, Sample, StoredResult
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import Record, dumps, placed_records, plain, write_all
from unlearn_eval.utils.provenance import redact, sha256_of_file
from unlearn_eval.utils.schemas import validated
from unlearn_eval.utils.terminal import say


def name_of_run(what: str) -> str:
    """A file name for a result that nobody has named; runs that start in the same second have different ones."""
    return f"{what}_{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}.json"


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
    for key in FIELDS:
        value = plain(getattr(result, key), key)
        if key in OPTIONAL and not value:
            continue
        content[key] = value if key in MEASURED else redact(value)
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
        say(files[path.name])
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


def read_result(path: str | Path, check_samples: bool = True) -> Result:
    """The result in a file, with its samples' SHA-256 checked.

    Args:
        path: The file: one of ours, lm-eval's `results_*.json` (its `samples_*.jsonl` lie beside it), or
            OpenUnlearning's `*_EVAL.json`.
        check_samples: Whether files of samples are looked at.

    Raises:
        UserError: if the file is missing, cut off, of another version or shape, or parted from its samples.
    """
    path = Path(path).expanduser()
    return result_from(read_content(path), path, check_samples)


def result_from(content: object, path: Path, check_samples: bool = True) -> Result:
    """The result that the JSON of the file at `path` holds; raises as `read_result` does."""
    if isinstance(content, dict) and (kind := kind_of(content)) is not None:
        return foreign_result(content, kind, path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UserError(f"{path} is not a result file: it has no schema_version", "name a file that a run wrote")
    content = dict(content)
    version = content.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r}; this unlearn-eval reads {SCHEMA_VERSION}",
            "read it with the version of unlearn-eval that wrote it (see its provenance)",
        )
    stored = validated(
        StoredResult,
        {"schema_version": version, **content},
        path,
        "is not a sound result file",
        "it was edited: run it again",
    )
    result = Result(**{**content, "metrics": stored.read_metrics()}, path=path)
    for task in result.samples if check_samples else ():
        _samples_file(result, path, task)
    return result


def read_samples(path: str | Path, task: str) -> list[Record]:
    """The per-sample records of one task of the result at `path`."""
    return samples_of(read_result(path, check_samples=False), task)


def samples_of(result: Result, task: str) -> list[Record]:
    """The per-sample records of one task of a result that was read from a file."""
    assert result.path is not None
    if task not in result.samples:
        raise unknown_name("task with samples", task, result.samples)
    file = _samples_file(result, result.path, task)
    if result.kind in WRITERS:
        return foreign_samples(result, task, file)
    schema = AttackedSample if task in result.robustness else Sample
    read = placed_records(file) if result.samples[task]["n"] else []
    for where, record in read:
        validated(schema, record, where, "is not a sound sample", "it was edited: run it again")
    return [record for _, record in read]


def scores_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a sample scores: under `metrics`, or, as others write it, in the record itself."""
    nested = record.get("metrics")
    return nested if isinstance(nested, Mapping) else record


def _samples_file(result: Result, path: Path, task: str) -> Path:
    """The file of a task's samples, whole and unchanged."""
    entry = result.samples[task]
    file = path.parent / Path(entry["file"]).name
    if not file.is_file():
        raise UserError(f"{path} lacks its samples {file.name}", "keep the .jsonl files beside the result")
    if sha256_of_file(file) != entry["sha256"]:
        raise UserError(f"{file} has changed since {path.name} was written", "bring both files from the same run")
    return file
