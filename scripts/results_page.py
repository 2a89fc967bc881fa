"""The index of results/ and the leaderboard, written from the files themselves into results/README.md.

`scripts/check_numbers.py --write` writes it, and without `--write` says when it is stale. A study's folder that is put
under results/ (`runs/*/result.json`) is found by itself; README.md shows a short leaderboard of `SHOWN`, or of the demo
while that is not there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn_eval.metrics.catalogue import interval
from unlearn_eval.results.groups import Group, group_runs
from unlearn_eval.results.runs import NO_EDIT, Run, read_runs
from unlearn_eval.results.schema import Metric

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = "README.md"
SHOWN, OTHERWISE = "four_editors", "demo"
NOT_SAID = "not said"
_LEFT_OUT = ("scratch", "cancelled")
_WRITTEN = "<!-- Written by scripts/check_numbers.py --write from the files beside it. -->"
# Column -> the metrics that may stand there, the first that a run has.
FULL = {
    "forget: right": ("forget_accuracy", "forget_rouge1", "forget_rouge"),
    "reworded: right": ("forget_paraphrase_accuracy", "forget_paraphrase_rouge1", "forget_paraphrase_probability"),
    "refuses": ("forget_refusal_rate",),
    "aligned": ("forget_refusal_alignment",),
    "gibberish": ("forget_gibberish_rate",),
    "kept: right": ("retain_accuracy", "model_utility", "retain_rouge1", "retain_rouge"),
    "near: right": ("neighbors_accuracy",),
}
SHORT = tuple(name for name in FULL if name not in ("gibberish",))
FAULTY = "⚠"  # behind a method whose edit did not take, or did harm
_ARROWS = {True: " ↑", False: " ↓", None: ""}


# The leaderboard -------------------------------------------------------------------------------------------


def runs_of(folder: Path) -> list[Run]:
    """The complete results of a folder, the unedited ones first; of a study its cells, not what they are made of."""
    cells = folder / "runs"
    found = read_runs(cells if cells.is_dir() else folder).runs
    return [run for run in found if run.result.status == "complete" and run.result.kind in ("evaluation", "demo")]


def method_of(run: Run) -> str:
    """The method, by the name that a study gives it."""
    if run.method == NO_EDIT:
        return "unedited"
    return str((run.result.config.get("cell") or {}).get("editor") or run.method)


def recipe_of(run: Run) -> str:
    """How a forget set became requests: a study's name for it, or the target and the merging."""
    edit = run.result.edit
    if edit is None:
        return "–"
    cell = run.result.config.get("cell") or {}
    if cell.get("recipe"):
        return str(cell["recipe"])
    requests = edit.get("requests") or {}
    target = str(requests.get("target") or "–")
    merged = requests.get("merge")
    plain = "plain" if target == "idk" else Path(target).name if "/" in target else target
    return f"{plain}+merge" if merged not in (None, "none") else plain


def leaderboard(runs: Sequence[Run], columns: Sequence[str] = tuple(FULL)) -> str:
    """A table of runs: who, with which recipe, on what, and the columns with 95 % intervals; one row for each task.

    Runs that differ in nothing but their seed are one row of means with standard deviations; each run of such rows
    stands in a table that unfolds below.
    """
    groups = group_runs(runs)
    apart = [run for own in groups if len(own.runs) > 1 for run in own.runs]
    rows = [(own, task) for own in groups for task in own.runs[0].result.metrics]
    more = [
        (replace(own, runs=(run,)), task)
        for own in groups
        for run in own.runs
        for task in run.result.metrics
        if run in apart
    ]
    found = _table(rows, columns)
    if more:
        found += f"\n\n<details><summary>Each seed</summary>\n\n{_table(more, columns, True)}\n\n</details>"
    faults = [f"{FAULTY} {method_of(run)}, {recipe_of(run)}: {'; '.join(run.faults)}." for run in runs if run.faults]
    return "\n".join([found, *(["", "\\\n".join(faults)] if faults else [])])


def _table(rows: Sequence[tuple[Group, str]], columns: Sequence[str], seeds: bool = False) -> str:
    shown = [column for column in columns if any(_metric(own.runs[0], task, column) for own, task in rows)]
    firsts = [own.runs[0] for own, _ in rows]
    models, sets = ({of(run) for run in firsts} - {None} for of in (lambda r: r.model, lambda r: r.forget_set))
    tasks = list(dict.fromkeys(task for _, task in rows))
    head = ["method", "recipe", *(["model"] if len(models) > 1 else []), *(["forgets"] if len(sets) > 1 else [])]
    head += [
        *(["seed"] if seeds else []),
        *(["task"] if len(tasks) > 1 else []),
        "n",
        *(f"{name}{_arrow(rows, name)}" for name in shown),
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---|" * (len(head) - len(shown) - 3) + "---:|" * (len(shown) + 1),
    ]
    for own, task in rows:
        run = own.runs[0]
        cells = [method_of(run) + (f" {FAULTY}" if own.faults else ""), recipe_of(run)]
        cells += [run.model] if len(models) > 1 else []
        cells += [run.forget_set or "–"] if len(sets) > 1 else []
        cells += [str(run.result.seed)] if seeds else []
        cells += [f"`{task}`"] if len(tasks) > 1 else []
        found = [_metric(run, task, column) for column in shown]
        cells.append(next((str(metric.n) for pair in found if pair and (metric := pair[1]).n), "–"))
        cells += [_cell(pair) if len(own.runs) == 1 else _over_seeds(own, task, pair) for pair in found]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _metric(run: Run, task: str, column: str) -> tuple[str, Metric] | None:
    metrics = run.result.metrics[task]
    return next(((name, metrics[name]) for name in FULL[column] if name in metrics), None)


def _over_seeds(group: Group, task: str, pair: tuple[str, Metric] | None) -> str:
    found = None if pair is None else group.value(task, pair[0])
    if found is None or found.mean is None:
        return "–"
    return f"{found.mean:.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def _arrow(rows: Sequence[tuple[Group, str]], column: str) -> str:
    directions = {pair[1].higher_is_better for own, task in rows if (pair := _metric(own.runs[0], task, column))}
    return _ARROWS[directions.pop()] if len(directions) == 1 else ""


def _cell(pair: tuple[str, Metric] | None) -> str:
    if pair is None or pair[1].value is None:
        return "–"
    ends = interval(*pair)
    return f"{pair[1].value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def short_leaderboard() -> str:
    """What README.md shows between its markers."""
    name = SHOWN if (RESULTS / SHOWN / "runs").is_dir() else OTHERWISE
    runs = runs_of(RESULTS / name)
    about = "; ".join(part for part in (runs[-1].model, f"forgets {runs[-1].forget_set}") if part)
    return f"[`results/{name}`](results/README.md), {about}; in brackets 95 % intervals:\n\n{leaderboard(runs, SHORT)}"


# The index -------------------------------------------------------------------------------------------------


def result_folders() -> list[Path]:
    """The folders under results/ that hold result files: of each study, the study's own."""
    found = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name not in _LEFT_OUT):
        if any(_is_result(path) for path in _json_files(folder)):
            found.append(folder)
    return found


def _json_files(folder: Path) -> Iterator[Path]:
    return iter(sorted((folder / "runs").rglob("*.json") if (folder / "runs").is_dir() else folder.rglob("*.json")))


def _is_result(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and {"schema_version", "metrics"} <= content.keys()


def _row(path: Path) -> tuple[str, ...]:
    """(file, what it is, made by, commit, machine, date)."""
    name = path.relative_to(RESULTS).as_posix()
    link = f"[{name}]({name})"
    if path.suffix == ".md":
        source = path.with_suffix(".json")
        return link, f"the tables of {source.name}" if source.is_file() else NOT_SAID, _script(source), "", "", ""
    if path.suffix == ".html":
        if path.with_suffix(".json").is_file() and path.stem == "certificate":
            return link, f"the page of {path.stem}.json", "`make certificate`", "", "", ""
        if path.stem.startswith("meta"):
            return link, f"the page of {path.stem}.json", "`unlearn-eval meta`", "", "", ""
        return link, f"the page of {path.stem}'s runs, with every answer", "`unlearn-eval report`", "", "", ""
    if path.suffix == ".jsonl":
        result = f"{path.name.split('.')[0]}.json"
        return link, f"every answer of {result}", f"with {result}", "", "", ""
    content = json.loads(path.read_text(encoding="utf-8"))
    content = content if isinstance(content, dict) else {}
    commit, machine = _provenance(content.get("provenance") or content.get("environment") or {})
    date = str(content["created"])[:10] if content.get("created") else NOT_SAID
    return link, _what(content, path), _command(content) or _script(path), commit, machine, date


def _what(content: Mapping[str, Any], path: Path) -> str:
    if content.get("kind") == "meta_evaluation":
        return f"what {len(content['metrics'])} metrics are worth, by models that know and models that never knew"
    if {"schema_version", "metrics"} <= content.keys():
        editor = (content.get("edit") or {}).get("editor")
        return f"{content['kind']}: {', '.join(content['metrics'])}, {f'after {editor}' if editor else 'unedited'}"
    if "verdict" in content:
        return f"a certificate; outcome: {content['verdict']['outcome']}"
    if content.get("what"):
        return re.split(r"[.;:] ", str(content["what"]))[0].rstrip(".")
    script = _script_path(path)
    if script is not None:
        first = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        return " ".join(first.split()).rstrip(".")
    return "which facts are forgotten and which are kept" if {"forget", "retain"} <= content.keys() else NOT_SAID


def _script_path(path: Path) -> Path | None:
    """The benchmark that writes a file: the one of its name, or the only one that names it."""
    own = ROOT / "benchmarks" / f"{path.stem}.py"
    if own.is_file():
        return own
    named = [script for script in sorted((ROOT / "benchmarks").glob("*.py")) if path.name in script.read_text("utf-8")]
    return named[0] if len(named) == 1 else None


def _script(path: Path) -> str:
    script = _script_path(path) if path.parent == RESULTS else None
    return f"`{script.relative_to(ROOT).as_posix()}`" if script else NOT_SAID


def _command(content: Mapping[str, Any]) -> str:
    words = [Path(word).name if i == 0 else str(word) for i, word in enumerate(content.get("command") or ())]
    return f"`{' '.join(words)[:60]}`" if words else ""


def _provenance(known: Mapping[str, Any]) -> tuple[str, str]:
    git, cpu = known.get("git") or {}, known.get("cpu") or {}
    commit = f"{git['commit'][:8]}{' (changed)' if git.get('dirty') else ''}" if git.get("commit") else NOT_SAID
    cores = cpu.get("usable_cores")
    gpus = ", ".join(str(gpu.get("name") if isinstance(gpu, dict) else gpu) for gpu in known.get("gpus") or ())
    processor = re.sub(r"\((R|TM)\)| Processor", "", str(cpu.get("model") or ""))
    machine = gpus or (f"{processor}, {cores} cores" if cores else NOT_SAID)
    return commit, machine


def _study_row(folder: Path) -> tuple[str, ...]:
    name = f"{folder.name}/"
    runs = runs_of(folder)
    commits, machines = zip(*(_provenance(run.result.provenance) for run in runs), strict=True)
    dates = sorted(run.result.created[:10] for run in runs)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    joined = (", ".join(dict.fromkeys(values)) for values in (commits, machines))
    return (
        f"[{name}]({name})",
        f"a study: {len(runs)} runs with every answer",
        f"`unlearn-eval run {folder.name}`",
        *joined,
        span,
    )


def index() -> str:
    """Every file under results/, and where it comes from as it says itself."""
    rows = []
    for path in sorted(RESULTS.iterdir()):
        if path.name in (PAGE, *_LEFT_OUT) or path.name.startswith("."):
            continue
        if path.is_dir() and (path / "runs").is_dir():
            rows.append(_study_row(path))
        elif path.is_dir():
            rows += [_row(own) for own in sorted(path.rglob("*")) if own.is_file()]
        else:
            rows.append(_row(path))
    head = ("file", "what it is", "made by", "commit", "machine", "date")
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def page() -> str:
    """results/README.md."""
    parts = ["# Results", _WRITTEN, _HEAD, "## Leaderboard", _LEADERBOARD_HEAD]
    for folder in result_folders():
        runs = runs_of(folder)
        known = " · ".join(dict.fromkeys(run.model for run in runs))
        sets = ", ".join(dict.fromkeys(run.forget_set for run in runs if run.forget_set))
        parts += [f"### {folder.name}", f"{known}; forgets {sets}." if sets else f"{known}.", leaderboard(runs)]
    return "\n\n".join([*parts, "## Files", _FILES_HEAD, index()]) + "\n"


_HEAD = (
    "Committed evidence: any number in the README or the docs comes from a file here. "
    "`unlearn-eval report results` makes one page of the result files."
)
_LEADERBOARD_HEAD = (
    "Every committed result file. *Right*: the true answer, or an alias, stands in a free answer; *refuses*: it "
    "declines, read by words; *aligned*: would a person accept it from a model that should not know (– without an "
    "encoder); *near*: facts close to the forgotten ones. n is the number of forgotten items; in brackets 95 % "
    "intervals; ↑ higher is better, ↓ lower; ⚠ an edit that did not take, or did harm, by its own self-check: no "
    "result of its method. Methods on other items or models are not comparable. "
    "[How to read this](../docs/guides/reading_the_numbers.md)."
)
_FILES_HEAD = f'As each file says itself; "{NOT_SAID}" where it does not.'


def stale() -> list[str]:
    """Whether results/README.md is as the results have it."""
    path = RESULTS / PAGE
    if path.is_file() and path.read_text(encoding="utf-8") == page():
        return []
    return ["results/README.md is not as the results have it: python scripts/check_numbers.py --write"]


def write() -> None:
    """Write results/README.md."""
    (RESULTS / PAGE).write_text(page(), encoding="utf-8")
