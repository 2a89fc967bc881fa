"""`unlearn-eval run`: studies."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearn_eval.cli.options import (
    DryRunOption,
    JsonOption,
    RayOption,
    RetryOption,
    StudyFolderOption,
    TrackerOption,
    TrustOption,
)
from unlearn_eval.cli.worth import tell_worth
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import new_console, printable, put, say


def run(
    study: Annotated[str, typer.Argument(help="A study file, or the name of one that is shipped.")],
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE over the file's, as in sizes=[10].")] = None,
    output: StudyFolderOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    trust: TrustOption = False,
    ray: RayOption = None,
    tracker: TrackerOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a study: models x editors x forget sets x tasks.

    The same command goes on where it was cut off. A study is a program: it may name editors and tasks that are code,
    which also --dry-run executes.
    """
    from unlearn_eval.runs.meta.expand import study_in
    from unlearn_eval.runs.study.read import study_file

    path = study_file(study)  # before torch is imported
    wanted, meta = study_in(path, settings or ())

    from unlearn_eval.harness.patching import quiet_libraries, within_a_study
    from unlearn_eval.runs.study.plan import plan
    from unlearn_eval.runs.study.run import DiskFull, Options, made_otherwise, run_study, states_of
    from unlearn_eval.runs.study.show import (
        Board,
        plan_lines,
        plan_summary,
        plan_table,
        result_tables,
        search_lines,
        study_summary,
    )
    from unlearn_eval.runs.study.store import FILES, Store
    from unlearn_eval.runs.study.trust import check_trust
    from unlearn_eval.runs.study.tune import searches_of
    from unlearn_eval.runs.trackers import tracker as tracker_of
    from unlearn_eval.utils.folders import check_output

    log = None if tracker is None else tracker_of(tracker, say)
    on_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if code := check_trust(wanted, path, trust, _confirm if on_terminal else None):
        say(code)
    store = Store(Path(output) if output else Path("results") / "scratch" / wanted.name)
    console, data = _console(sys.stderr), _console(sys.stdout)
    if not dry_run:
        check_output(store.folder / "runs", "study")
    remembered = store.read(FILES)
    say(f"planning {path}")
    with quiet_libraries(), within_a_study():
        planned = plan(wanted, remembered)
        states, results = states_of(planned, store)
        there = list(store.results())
        costs = _costs(planned, there, wanted.device)
        searches = searches_of(planned)
        target = data if dry_run and not json_ else console
        target.print(plan_table(planned, states, costs))
        for line in plan_lines(planned, states, costs, made_otherwise(planned, there, states)):
            target.print(line, soft_wrap=True, highlight=False)
        on_validation = replace(planned, cells=tuple(search.untuned for search in searches))
        for line in search_lines(searches, _costs(on_validation, there, wanted.device)):
            target.print(line, soft_wrap=True, highlight=False)
        if dry_run:
            if json_:
                put(dumps(plan_summary(planned.cells, states, costs), indent=2))
            return
        board = Board(console, planned.cells, states, wanted.show, costs, results, log=log)
        options = Options(list(sys.argv), retry_failed, remembered)
        run_cells = None if ray is None else _on_ray(ray, planned, store, board, options, costs)
        try:
            planned = run_study(planned, store, board, options, run_cells)
        except (KeyboardInterrupt, DiskFull) as error:
            if isinstance(error, DiskFull):
                say(f"error: {error}")
                say("hint: free some space; what was finished is kept. Go on with:")
            else:
                say("\ninterrupted; what was finished is kept. Go on with:")
            say(f"  {_command(study, settings, output, retry_failed, ray, tracker)}")
            raise typer.Exit(1 if isinstance(error, DiskFull) else 130) from error
    if meta is not None:
        ordered = [board.results[cell.key] for cell in planned.cells if cell.key in board.results]
        tell_worth(ordered, len(planned.cells), meta, store.folder, data, json_)
    elif json_:
        put(dumps({"folder": str(store.folder), **study_summary(planned.cells, board.states, board.results)}, indent=2))
    else:
        for table in result_tables(planned.cells, board.results, wanted.show):
            data.print(table)
    _tell_failed(board, _command(study, settings, output, True, ray, tracker))
    if not json_:
        data.print(f"results: {store.folder}/runs, one folder for each cell", soft_wrap=True, highlight=False)
    if "failed" in board.states.values():
        raise typer.Exit(1)


def _on_ray(address: str, planned: Any, store: Any, board: Any, options: Any, costs: Any) -> Any:
    """What runs cells on a Ray cluster."""
    from unlearn_eval.runs.study.on_ray import connect, run_on_ray

    cluster = connect(address)
    return lambda cells: run_on_ray(cluster, cells, planned, store, board, options, costs)


def _confirm(question: str) -> bool:
    return bool(typer.confirm(printable(question), default=False, err=True))


def _tell_failed(board: Any, command: str) -> None:
    from unlearn_eval.runs.study.show import line_of

    failed = [cell for cell in board.cells if board.states[cell.key] == "failed"]
    for cell in failed:
        say(f"failed: {line_of(cell)}: {board.results[cell.key].notes[0]}")
    if failed:
        say(f"hint: what failed is run again by\n  {command}")


def _costs(planned: Any, there: Any, device: str | None) -> dict[str, Any]:
    """The estimate for each cell."""
    import torch

    from unlearn_eval.runs.study.cells.told import forget_set
    from unlearn_eval.runs.study.costs import Costs, shared_by

    costs = Costs(there, device != "cpu" and torch.cuda.is_available())
    whole = {name: len(forget_set(name)) for name in {cell.forget for cell in planned.cells}}
    sizes = {cell.key: cell.n_edited or whole[cell.forget] for cell in planned.cells}
    first = shared_by(planned.cells)
    largest_first = sorted(planned.cells, key=lambda cell: -sizes[cell.key])
    found = {cell.key: costs.of(cell, sizes[cell.key], first[cell.key]) for cell in largest_first}
    return {cell.key: found[cell.key] for cell in planned.cells}


def _console(stream: Any) -> Any:
    return new_console(stream, 140)


def _command(
    study: str,
    settings: list[str] | None,
    output: str | None,
    retry_failed: bool,
    ray: str | None,
    tracker: str | None,
) -> str:
    """The command that goes on."""
    named = {"--output": output, "--ray": ray, "--tracker": tracker}
    options = [word for name, value in named.items() if value for word in (name, value)]
    options += ["--retry-failed"] if retry_failed else []
    return shlex.join(["unlearn-eval", "run", study, *(settings or []), *options])
