"""The commands that look at result files: `unlearn-eval report | view | check`, and what `compare --format` prints."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from unlearn_eval.cli.options import JsonOption
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import new_console, put, say

PathsArgument = Annotated[list[str] | None, typer.Argument(help="Result files, or folders of them. [default: results]")]


def report(
    paths: PathsArgument = None,
    output: Annotated[str, typer.Option("--output", "-o", help="The page to write (.html).")] = "report.html",
    title: Annotated[str, typer.Option(help="Title of the page. [default: the study's name]")] = "",
    base: Annotated[
        str | None, typer.Option("--base", help="Compare with this result, where no unedited run is found by itself.")
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="A folder for frontier and bars as SVG and PDF; needs matplotlib.")
    ] = None,
) -> None:
    """Write one page about all results (view: serve it)."""
    from unlearn_eval.results.report.page import write_page
    from unlearn_eval.results.runs import read_runs
    from unlearn_eval.utils.folders import check_output

    if figures:
        from unlearn_eval.results.report.figures import (
            write_figures,  # first, because it says when matplotlib is missing
        )
    check_output(output, "page")
    runs = read_runs(paths or ["results"], base)
    _tell(runs.notes, runs.n_skipped, len(runs.runs))
    put(write_page(runs, output, title, say))
    if figures:
        for path in write_figures(runs, figures):
            put(path)


def view(
    folder: Annotated[str, typer.Argument(help="A folder of result files, or one file.")] = "results",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
) -> None:
    """Show that page on this machine, in a browser."""
    from unlearn_eval.results.report.serve import server

    with server(folder, port, say) as serving:
        put(f"http://127.0.0.1:{serving.server_port}/")
        say("a reload shows what has changed; stop with Ctrl-C")
        with suppress(KeyboardInterrupt):
            serving.serve_forever()


def check(
    result: Annotated[str, typer.Argument(help="Result file.")],
    require: Annotated[
        list[str] | None, typer.Option("--require", "-r", help="'forget_rouge<0.2', 'model_utility>0.9*base', ...")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Result file that 'base' stands for.")] = None,
    trust: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Refuse required metrics of less measured trust than this, such as 0.8."),
    ] = None,
    meta: Annotated[
        str | None, typer.Option("--meta", help="The meta.json that says what metrics are worth. [default: ours]")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Fail unless a result is as required; for CI.

    Exit codes: 0 all of it holds, 1 something does not, 2 wrong input.
    """
    from unlearn_eval.results.badges import badges
    from unlearn_eval.results.files import read_result
    from unlearn_eval.results.report.table import verdict_table
    from unlearn_eval.results.requirements import check_result, check_trust, parse_requirement

    try:
        if not require:
            raise UserError("nothing is required", "for example --require 'forget_rouge<0.2'")
        requirements = [parse_requirement(text) for text in require]
        first = None if base is None else read_result(base, check_samples=False)
        verdicts = check_result(read_result(result, check_samples=False), requirements, first)
        if trust is not None:
            verdicts += check_trust(requirements, trust, badges(meta))
    except (UserError, OSError) as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    failed = sum(not verdict.holds for verdict in verdicts)
    if json_:
        put(dumps({"holds": not failed, "requirements": [verdict.as_json for verdict in verdicts]}, indent=2))
        raise typer.Exit(1 if failed else 0)
    new_console(width=140).print(verdict_table(verdicts))
    put(f"{len(verdicts) - failed} of {len(verdicts)} hold" + (f", {failed} failed" if failed else ""))
    if failed:
        raise typer.Exit(1)


def _tell(notes: tuple[str, ...], n_skipped: int, n_read: int) -> None:
    for line in notes:
        say(line)
    if n_skipped:
        say(f"{n_skipped} skipped, {n_read} read")
