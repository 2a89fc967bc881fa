"""`unlearn-eval meta`: what is each metric worth?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unlearn_eval.cli import study as cli_study
from unlearn_eval.cli.options import DryRunOption, JsonOption, RayOption, RetryOption, StudyFolderOption, TrustOption
from unlearn_eval.cli.worth import tell_worth
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import new_console


def meta(
    study: Annotated[str, typer.Argument(help="A study file with meta:, or the name of one that is shipped.")] = "meta",
    settings: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE over the file's, as in meta.rates=[1e-4,2e-4].")
    ] = None,
    output: StudyFolderOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    trust: TrustOption = False,
    source: Annotated[
        str | None, typer.Option("--from", help="Run nothing: read the results in this folder of an earlier run.")
    ] = None,
    ray: RayOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure what each metric is worth, by models that know or not.

    The same command goes on where it was cut off, and writes meta.json, meta.md and meta.html.
    """
    from unlearn_eval.runs.meta.expand import study_in
    from unlearn_eval.runs.study.read import study_file
    from unlearn_eval.runs.study.store import STUDY, Store

    if "=" in study and not Path(study).is_file():  # settings alone
        study, settings = "meta", [study, *(settings or ())]
    path = study_file(study)
    _, entry = study_in(path, settings or ())
    if entry is None:
        raise UserError(f"{path} has no meta:", "name a study that has, or leave the name out")
    if source is None:
        cli_study.run(study, settings, output, dry_run, retry_failed, trust, ray, None, json_)
        return
    store = Store(Path(source))
    if not (store.folder / STUDY).is_file():
        raise UserError(f"{source} is no study's folder", "give --from the folder that an earlier run wrote")
    cells = store.read(STUDY).get("cells", {})
    results = store.results_of(cells)
    there = [results[key] for key in cells if key in results]
    tell_worth(there, len(cells), entry, Path(output or source), new_console(sys.stdout, 140), json_)
