"""Many result files at once: find them, read them, say which were skipped, and name what each run is."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.metrics.edit_checks import edit_faults
from unlearn_eval.results.badges import META
from unlearn_eval.results.files import read_result, result_from
from unlearn_eval.results.foreign import OPEN_UNLEARNING, kind_of, read_content
from unlearn_eval.results.schema import SCHEMA_VERSION, Metric, Result
from unlearn_eval.results.stored import Localization
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import parse, read_text
from unlearn_eval.utils.schemas import validated

Place = str | Path | Result
NO_EDIT = "no edit"
_CELL = re.compile(r"(?:.*/)?([^/]+)-[0-9a-f]{12}/result")


@dataclass(frozen=True)
class Run:
    """One result and what it is, in a reader's words.

    Attributes:
        name: its path below the folder that all were read from, without `.json`; of a study's cell the cell's name,
            if no other has it; unique.
        result: what the file holds.
        model: the base model.
        method: the editor, with a study's recipe if it is not the plain one, or `NO_EDIT`.
        forget_set: what was to be forgotten, with the number of requests; None without an edit.
        base: the name of the run that it is compared with, or None.
    """

    name: str
    result: Result
    model: str
    method: str
    forget_set: str | None
    base: str | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the run is not to be read as a result of its method: its edit did not take, or did harm."""
        return result_faults(self.result)


@dataclass(frozen=True)
class Runs:
    """The results of some files and folders.

    Attributes:
        runs: the unedited ones first, then by name.
        notes: one line for each file that was skipped or migrated.
        n_skipped: how many were skipped.
        files: everything that was looked at.
        localizations: (path, content) of each file of `unlearn-eval localize` that stood among them.
        trials: runs by which a study has chosen settings; they are not among `runs`.
        study: the name of the study that all results are cells of, or None.
        show: the metrics that the study shows, if it says which.
    """

    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    n_skipped: int = 0
    files: tuple[Path, ...] = ()
    localizations: tuple[tuple[Path, dict[str, Any]], ...] = ()
    study: str | None = None
    show: tuple[str, ...] = ()
    trials: tuple[Run, ...] = ()


def read_runs(paths: Place | Iterable[Place], base: str | Path | None = None) -> Runs:
    """All results in files and folders (searched recursively); what cannot be read is skipped and named.

    JSON files in folders that are no result files at all are passed over in silence.

    Args:
        paths: files and folders, or results that were read or written.
        base: a result that edited runs on the same questions are compared with, where they are of its model or
            none is found for them by itself.

    Raises:
        UserError: a path is not there, no result is left, or `base` cannot be read or shares no questions with a run.
    """
    roots = [_place(own) for own in ([paths] if isinstance(paths, str | Path | Result) else paths)]
    named_base = None if base is None else Path(base).expanduser()
    if named_base is not None:
        read_result(named_base, check_samples=False)  # the one file that may not be skipped
        roots.append(named_base)
    files = json_files_in(roots)
    results: dict[Path, Result] = {}
    localizations: list[tuple[Path, dict[str, Any]]] = []
    notes, n_skipped = [], 0
    for path in files:
        try:
            content = read_content(path)
            if is_localization(content):
                validated(Localization, content, path, "is not a sound localization", "")
                localizations.append((path, content))
                continue
            result, note = _read(content, path, named=path in roots)
        except UserError as error:
            n_skipped += 1
            notes.append(f"skipped: {error.message}")
            continue
        if result is not None:
            results[path] = result
        if note:
            notes.append(note)
    if not results:
        places = ", ".join(map(str, roots)) or "no path"
        why = f"{n_skipped} could not be read: {notes[0]}" if n_skipped else f"{len(files)} JSON files, none a result"
        raise UserError(
            f"no result file in {places} ({why})",
            "write one with: unlearn-eval eval --tasks unlearn_facts --output results/base.json",
        )
    runs = _named(results, roots)
    if named_base is not None:
        runs = _with_base(runs, named_base)
    trials = tuple(run for run in runs if is_trial(run.result))
    runs = tuple(run for run in runs if run not in trials) or runs
    return Runs(runs, tuple(notes), n_skipped, tuple(files), tuple(localizations), *_study(results), trials)


def runs_of(results: Iterable[Result]) -> tuple[Run, ...]:
    """Results that were read from files as runs: the unedited ones first, then by name."""
    known = {_place(result): result for result in results}
    return _named(known, list(known))


def is_trial(result: Result) -> bool:
    """Whether a result is one by which a study has chosen settings."""
    cell = result.config.get("cell")
    trial = cell.get("trial") if isinstance(cell, dict) else None
    return isinstance(trial, dict) and trial.get("state") == "trial"


def _study(results: Mapping[Path, Result]) -> tuple[str | None, tuple[str, ...]]:
    """Name and shown metrics of the one study that results are cells of; (None, ()) where they are not, or of several.

    A cell's result is DIR/runs/NAME-KEY/result.json, beside DIR/study.json if that is still there.
    """
    folders = {
        path.resolve().parents[2] if _CELL.search(path.with_suffix("").as_posix()) and "cell" in result.config else None
        for path, result in results.items()
    }
    folder = folders.pop()
    if folder is None or folders:
        return None, ()
    try:
        study = parse(read_text(folder / "study.json", "study"), folder / "study.json", "")["study"]
        return str(study["name"]), tuple(str(name).rpartition("/")[2] for name in study.get("show") or ())
    except (UserError, KeyError, TypeError, AttributeError):
        return folder.name, ()


def _place(own: Place) -> Path:
    if not isinstance(own, Result):
        return Path(own).expanduser()
    if own.path is None:
        raise UserError(f"{own!r} has no file", "write it: write_result(result, PATH)")
    return own.path


def is_localization(content: object) -> bool:
    """Whether the content of a JSON file is what `unlearn-eval localize` writes."""
    return isinstance(content, dict) and content.get("kind") == "components" and "ranking" in content


def json_files_in(roots: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named, each once and in order.

    Hidden ones are left out, and what a study keeps under `shared/`: its runs hold all of that.

    Raises:
        UserError: a path is not there.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if root.is_dir():
            below = [path for path in root.rglob("*.json") if not _is_left_out(path, root)]
        elif root.is_file():
            below = [root]
        else:
            raise UserError(f"there is no {root}", "name result files, or folders that hold them")
        for path in sorted(below):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _is_left_out(path: Path, root: Path) -> bool:
    inside = path.relative_to(root).parts
    kept_by_study = any(
        part == "shared" and root.joinpath(*inside[:i], "study.json").is_file() for i, part in enumerate(inside)
    )
    return kept_by_study or any(part.startswith(".") for part in inside)


def _read(content: object, path: Path, named: bool) -> tuple[Result | None, str | None]:
    """The result in the content of a file and a note on it; None of what is none, unless the user has named it."""
    is_meta = isinstance(content, dict) and content.get("kind") == META
    if is_meta and named:
        raise UserError(
            f"{path} is a meta-evaluation, and no result", "its page stands beside it; `check` takes it as --meta"
        )
    is_result = isinstance(content, dict) and not is_meta and {"schema_version", "metrics"} <= content.keys()
    if not is_result and not named and kind_of(content) is None:
        return None, None
    note = None
    if isinstance(content, dict) and is_result and content["schema_version"] != SCHEMA_VERSION:
        content, note = _migrated(content, path)
    return result_from(content, path, check_samples=False), note


def _migrated(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """A result of an older version that lacks only what has a default now; a note that says so.

    Raises:
        UserError: it is of a newer version, or holds fields that this version does not know.
    """
    version, hint = content["schema_version"], "read it with the version of unlearn-eval that wrote it"
    if not isinstance(version, int) or isinstance(version, bool) or version > SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version!r}, and this unlearn-eval reads {SCHEMA_VERSION}", hint)
    moved = _defaults(Result) | content | {"schema_version": SCHEMA_VERSION}
    try:
        moved["metrics"] = {
            task: {name: _defaults(Metric) | metric for name, metric in metrics.items()}
            for task, metrics in content["metrics"].items()
        }
        result_from(moved, path, check_samples=False)
    except (UserError, AttributeError, TypeError) as error:
        why = error.message if isinstance(error, UserError) else "it has another shape"
        raise UserError(f"{path} has schema version {version} and cannot be migrated: {why}", hint) from error
    return moved, f"migrated: {path} from schema version {version} to {SCHEMA_VERSION}"


def _defaults(kind: type[Result] | type[Metric]) -> dict[str, Any]:
    made = {}
    for field in dataclasses.fields(kind):
        if field.name == "path":
            continue
        if field.default_factory is not dataclasses.MISSING:
            made[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            made[field.name] = field.default
    return made


# What a run is ---------------------------------------------------------------------------------------------


def _named(results: dict[Path, Result], roots: Sequence[Path]) -> tuple[Run, ...]:
    folders = [root if root.is_dir() else root.parent for root in roots]
    top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    runs = [
        Run(
            name=path.resolve().relative_to(top).with_suffix("").as_posix(),
            result=result,
            model=model_name(result),
            method=_method(result),
            forget_set=_forget_set(result),
        )
        for path, result in results.items()
    ]
    runs = _told_apart(_shortened(runs))
    runs.sort(key=lambda run: (run.result.edit is not None, run.name))
    return tuple(dataclasses.replace(run, base=_base(run, runs)) for run in runs)


def _shortened(runs: list[Run]) -> list[Run]:
    """A study's cells by the names of their folders, without the key, where that tells them apart."""
    short = [_CELL.sub(r"\1", run.name) if "cell" in run.result.config else run.name for run in runs]
    times = Counter(short)
    return [
        dataclasses.replace(run, name=name) if times[name] == 1 else run for run, name in zip(runs, short, strict=True)
    ]


def _method(result: Result) -> str:
    """The editor, and the recipe that a study ran it with if that is not the plain one."""
    editor = (result.edit or {}).get("editor")
    if result.kind == OPEN_UNLEARNING:  # its files say only, by their folder, what the run is called
        return str(result.config.get("run") or OPEN_UNLEARNING)
    if not editor:
        return NO_EDIT
    cell = result.config.get("cell")
    named = cell if isinstance(cell, dict) else {}
    recipe = named.get("recipe")
    name = str(named.get("editor") or editor)
    return name if recipe in (None, "plain") else f"{name}, {recipe}"


def model_name(result: Result) -> str:
    """A short name of the base model: its hub id, or the last part of its folder."""
    source = result.model.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    identifier = str(name or result.model.get("id") or "unknown model")
    return Path(identifier).name if identifier[0] in "~/." else identifier


def _forget_set(result: Result) -> str | None:
    requests = (result.edit or {}).get("requests")
    if not isinstance(requests, dict):
        return None
    n = requests.get("n")
    return f"{requests.get('forget_set') or 'unnamed'}{'' if n is None else f' ({n})'}"


def _told_apart(runs: list[Run]) -> list[Run]:
    """Forget sets of one name and size but other items get the beginning of their hash."""
    hashes = {(run.forget_set, _forget_hash(run)) for run in runs if run.forget_set}
    times = Counter(name for name, _ in hashes)
    return [
        dataclasses.replace(run, forget_set=f"{run.forget_set} {_forget_hash(run)[:6]}")
        if run.forget_set and times[run.forget_set] > 1
        else run
        for run in runs
    ]


def _forget_hash(run: Run) -> str:
    requests = (run.result.edit or {}).get("requests") or {}
    return str(requests.get("forget_set_hash") or "")


def _base(run: Run, runs: Sequence[Run]) -> str | None:
    """The unedited run of the same weights on the same questions; else the first run of that model."""
    others = [other for other in runs if other is not run and _same_questions(run, other)]
    if run.result.edit is None:
        return None
    unedited = [other for other in others if other.result.edit is None]
    weights = (run.result.edit.get("base") or {}).get("canonical_hash")
    exact = [other for other in unedited if weights and weights == other.result.model.get("canonical_weights_hash")]
    alike = [other for other in unedited if other.model == run.model and not exact]
    first = [] if unedited else [o for o in others if o.model == run.model and _order(o) < _order(run)]
    candidates = sorted(exact or alike or first, key=_order)
    return candidates[0].name if candidates else None


def _with_base(runs: Sequence[Run], path: Path) -> tuple[Run, ...]:
    """The runs with the result at `path` as the base of those that it can be one of."""
    (base,) = (run for run in runs if run.result.path is not None and run.result.path.resolve() == path.resolve())
    able = [run for run in runs if run is not base and run.result.edit is not None and _same_questions(run, base)]
    if not able:
        raise UserError(
            f"no edited run was asked the questions of {path}",
            "name as --base a result of the same tasks, on the same items",
        )
    chosen = {run.name for run in able if run.base is None or run.model == base.model}
    return tuple(dataclasses.replace(run, base=base.name) if run.name in chosen else run for run in runs)


def _order(run: Run) -> tuple[str, str]:
    return run.result.created, run.name


def _same_questions(run: Run, other: Run) -> bool:
    return any(same_data(run.result, other.result, task) for task in run.result.metrics)


def same_data(one: Result, other: Result, task: str) -> bool:
    """Whether two results are of the same questions of a task, as far as their files say."""
    if task not in one.metrics or task not in other.metrics:
        return False
    first, second = one.data.get(task) or {}, other.data.get(task) or {}
    return bool(first.get("hash") == second.get("hash"))


def result_faults(result: Result) -> tuple[str, ...]:
    """The faults of the edit that a result is of, by the self-check that was made with it."""
    return edit_faults((result.edit or {}).get("notes"))


def result_summary(result: Result) -> dict[str, Any]:
    """What a command that wrote a result prints of it as JSON."""
    metrics = {
        task: {name: dataclasses.asdict(own) for name, own in metrics.items()}
        for task, metrics in result.metrics.items()
    }
    about = {"path": None if result.path is None else str(result.path), "status": result.status}
    return {**about, "faults": list(result_faults(result)), "notes": result.notes, "metrics": metrics}


def cost(result: Result) -> dict[str, float | None]:
    """What a run cost, as far as its file says: seconds of edit and evaluation, the edit's peak memory in bytes."""
    edit = result.edit or {}
    return {
        "edit_seconds": edit.get("seconds"),
        "evaluation_seconds": result.timing.get("evaluation_seconds"),
        "peak_memory_bytes": edit.get("peak_memory_bytes"),
    }
