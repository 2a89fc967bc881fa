"""Results on the Hugging Face hub, as a dataset: the files as they are, a table of all metrics, and a card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from unlearn_eval.results.runs import Run, read_runs
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.hub import CARD, check_repository, upload
from unlearn_eval.utils.json_files import dumps

METRICS = "metrics.jsonl"


def push_results(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload the results of a folder as a dataset with a card; returns the repository's address.

    Result files and their samples go up as they are, in their places below the folder; samples hold the questions and
    the model's outputs. `metrics.jsonl` has one row for each metric of each result, and is what the hub shows.

    Args:
        folder: Folder of result files, or one file.
        repository: ORG/NAME; it is created if it does not exist. What an earlier upload left there is replaced.
        private: Whether a new repository is private.

    Raises:
        UserError: there is no result, one has lost its samples, or the hub refuses or cannot be reached.
    """
    check_repository(repository)
    root = Path(folder)
    runs = read_runs(root).runs
    root = root if root.is_dir() else root.parent
    with tempfile.TemporaryDirectory(prefix="unlearn-eval-") as place:
        target = Path(place)
        for run in runs:
            for file in _files(run):
                own = target / file.resolve().relative_to(root.resolve())
                if own.name in (METRICS, CARD):
                    raise UserError(f"{file} has the name of a file that the dataset needs", "give it another name")
                own.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, own)
        rows = [row for run in runs for row in _rows(run, root)]
        (target / METRICS).write_text("".join(dumps(row) + "\n" for row in rows), encoding="utf-8")
        (target / CARD).write_text(_card(runs, repository, root), encoding="utf-8")
        return upload(target, repository, "dataset", METRICS, private, "Upload results")


# Details ---------------------------------------------------------------------------------------------------


def _files(run: Run) -> Iterator[Path]:
    path = run.result.path
    assert path is not None
    yield path
    for task, entry in run.result.samples.items():
        file = path.parent / Path(entry["file"]).name
        if not file.is_file():
            raise UserError(f"{path} lacks its samples of {task}", "keep the .jsonl files beside the result")
        yield file


def _place(run: Run, root: Path) -> str:
    assert run.result.path is not None
    return run.result.path.resolve().relative_to(root.resolve()).as_posix()


def _rows(run: Run, root: Path) -> list[dict[str, Any]]:
    result = run.result
    about = {"file": _place(run, root), "model": result.model.get("id"), "editor": (result.edit or {}).get("editor")}
    return [about | row for row in result.metric_rows()]


def _card(runs: Sequence[Run], repository: str, root: Path) -> str:
    about = {
        "tags": ["unlearn-eval", "machine-unlearning", "evaluation"],
        "configs": [{"config_name": "metrics", "data_files": METRICS, "default": True}],
    }
    lines = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
        f"# {repository.rpartition('/')[2]}\n",
        f"{len(runs)} results of unlearn-eval. `{METRICS}` has one row for each metric of each result, with its 95 % "
        "interval and the number of items. The JSON files are the results themselves, with settings, hashes and "
        "versions; the `.samples.jsonl` files beside them hold every question and output.\n",
        "| file | model | method | tasks | date | status |\n| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        result = run.result
        method = (result.edit or {}).get("editor") or "unedited"
        tasks = ", ".join(result.metrics) or "–"
        model = result.model.get("id") or "–"
        lines.append(
            f"| `{_place(run, root)}` | {model} | {method} | {tasks} | {result.created[:10]} | {result.status} |"
        )
    code = f"from datasets import load_dataset\n\nmetrics = load_dataset({repository!r}, split='train')"
    lines.append(f"\n```python\n{code}\n```\n")
    return "\n".join(lines)
