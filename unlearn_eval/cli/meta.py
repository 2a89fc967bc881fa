"""`unlearn-eval meta`: what is each metric worth?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearn_eval.cli import study as cli_study
from unlearn_eval.cli.options import JsonOption
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.terminal import new_console, put, say

if TYPE_CHECKING:
    from unlearn_eval.runs.study.file import MetaEntry

NAMES = "meta.json", "meta.md", "meta.html"


def meta(
    study: Annotated[str, typer.Argument(help="A study file with meta:, or the name of one that is shipped.")] = "meta",
    settings: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE over the file's, as in meta.rates=[1e-4,2e-4].")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder. [default: results/scratch/NAME]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan with its cost, and run nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells that failed again.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that it names, though it is not below this folder or not yours.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="Run nothing: read the results in this folder of an earlier run.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Run on Ray: local, auto (this machine's cluster), or an address.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure what each metric is worth, by models that know or not.

    The same command goes on where it was cut off, and writes meta.json, meta.md and meta.html.
    """
    if source is None:
        cli_study.run(study, settings, output, dry_run, retry_failed, trust, ray, None, json_)
        return
    from unlearn_eval.runs.meta.expand import study_in
    from unlearn_eval.runs.study.read import study_file
    from unlearn_eval.runs.study.store import STUDY, Store

    path, store = study_file(study), Store(Path(source))
    _, entry = study_in(path, settings or ())
    if entry is None:
        raise UserError(f"{path} has no meta:", "name a study that has, or leave the name out")
    cells = store.read(STUDY).get("cells", {})
    results = store.results_of(cells)
    there = [results[key] for key in cells if key in results]
    tell_worth(there, len(cells), entry, Path(output or source), new_console(sys.stdout, 140), json_)


def tell_worth(results: Sequence[Any], n_cells: int, meta: MetaEntry, folder: Path, console: Any, json_: bool) -> None:
    """Write what was found into the folder, and show it."""
    from unlearn_eval.results.report.meta import meta_markdown, meta_page
    from unlearn_eval.runs.meta.summary import summary
    from unlearn_eval.utils.provenance import redact

    content = redact(summary(results, n_cells, meta, list(sys.argv)))
    text = meta_markdown(content)
    write_all(dict(zip(NAMES, (dumps(content, indent=2) + "\n", text, meta_page(content)), strict=True)), folder)
    if json_:
        put(dumps(content, indent=2))
        return
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    for name in NAMES:
        say(f"{folder / name}")
