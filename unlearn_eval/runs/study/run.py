"""Runs a plan: cell after cell, each result kept as it comes, whatever happens to the others."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.runs.study.plan import Cell, Plan
from unlearn_eval.runs.study.show import Board
from unlearn_eval.runs.study.store import FILES, RESULT, STUDY, Store
from unlearn_eval.utils.locks import locked
from unlearn_eval.utils.provenance import hash_json

_LOOKS = "part model editor recipe forget size seed tasks step".split()  # what people take for the same
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_LEAST_BYTES = 2**20  # with less than this, a cell that fails has failed for want of room


class DiskFull(Exception):
    """There is no room for a result; nothing that was written is damaged."""


@dataclass(frozen=True)
class Options:
    """How a plan is run.

    Attributes:
        command: the command line, for the results.
        retry_failed: whether cells that have failed are run again.
        remembered: hashes of files, kept for the next plan.
    """

    command: list[str]
    retry_failed: bool
    remembered: dict[str, Any]


def states_of(plan: Plan, store: Store) -> tuple[dict[str, str], dict[str, Result]]:
    """By key: `done`, `failed` or `to do`; and the results that are there."""
    results = store.results_of(cell.key for cell in plan.cells)
    states = {"complete": "done", "failed": "failed"}
    return {
        cell.key: states[results[cell.key].status] if cell.key in results else "to do" for cell in plan.cells
    }, results


def made_otherwise(plan: Plan, results: Iterable[Result], states: Mapping[str, str]) -> list[str]:
    """Warnings about results of the folder that look like what is to be done, and are not used."""
    from unlearn_eval.runs.study.cells.result import describe_cell

    def looks(cell: dict[str, Any]) -> str:
        return hash_json({key: value for key, value in cell.items() if key in _LOOKS})

    there: dict[str, set[Any]] = {}
    for result in results:
        if result.status == "complete" and "cell" in result.config:
            there.setdefault(looks(result.config["cell"]), set()).add(result.config["cell"].get("code"))
    wanted = [(looks(describe_cell(cell)), cell.code) for cell in plan.cells if states[cell.key] == "to do"]
    same = [(there[look], code) for look, code in wanted if look in there]
    n_code = sum(code not in codes for codes, code in same)
    found = []
    if n_code:
        found.append(f"{n_code} cells have results by another version of the code; they are kept, and not used")
    if len(same) > n_code:
        found.append(f"{len(same) - n_code} cells have results from other data, models or settings; they are not used")
    return found


def left_to_do(plan: Plan, store: Store, states: dict[str, str], retry_failed: bool) -> list[Cell]:
    """The cells to run, in the plan's order; those that were begun twice and never ended come last."""
    wanted = ("to do", "failed") if retry_failed else ("to do",)
    left = [cell for cell in plan.cells if states[cell.key] in wanted]
    folders = store.run_folders()
    return sorted(left, key=lambda cell: store.attempts(cell.name, cell.key, folders) >= 2)


def run_study(
    plan: Plan, store: Store, board: Board, options: Options, run_cells: Callable[[list[Cell]], Any] | None = None
) -> Plan:
    """Run what is left of a plan; the plan, with the cells of settings that were chosen on the way.

    Args:
        plan: the plan.
        store: its folder.
        board: shows how far it is.
        options: how.
        run_cells: runs cells in another way than one after another in this process.

    Raises:
        UserError: another run writes to the folder, or it is no study's.
        DiskFull: there is no room.
        KeyboardInterrupt: Ctrl-C, or the process was asked to end.
    """
    run_cells = run_cells or _here(plan, store, board, options)
    try:
        store.open()
        with locked(store.folder), _ended_softly():
            store.clear_left_overs()
            store.write(STUDY, {"study": asdict(plan.study), "cells": {cell.key: cell.name for cell in plan.cells}})
            store.write(FILES, options.remembered)
            states, board.results = states_of(plan, store)
            board.states.update(states)
            with board.live():
                run_cells(left_to_do(plan, store, states, options.retry_failed))
                if any(part.tune for part in plan.study.parts):
                    plan = _tuned(plan, store, board, options, run_cells)
    except DiskFull:
        raise
    except Exception as error:
        if not no_room(error):
            raise
        raise DiskFull(" ".join(str(getattr(error, "message", error)).split())) from error
    return plan


def _tuned(plan: Plan, store: Store, board: Board, options: Options, run_cells: Callable[[list[Cell]], Any]) -> Plan:
    """The plan with the cells of the settings that a search has chosen, run."""
    from unlearn_eval.runs.study.tune import tune_all

    def run_missing(cells: list[Cell]) -> None:
        new = {cell.key: cell for cell in cells}
        states, results = states_of(replace(plan, cells=tuple(new.values())), store)
        board.add(list(new.values()), states, results)
        left = left_to_do(replace(plan, cells=tuple(new.values())), store, states, options.retry_failed)
        if left:
            run_cells(left)

    chosen = tune_all(plan, store, run_missing, board.say, board.note)
    run_missing(chosen)
    known = {cell.key for cell in plan.cells}
    plan = replace(plan, cells=(*plan.cells, *(cell for cell in chosen if cell.key not in known)))
    store.write(STUDY, {"study": asdict(plan.study), "cells": {cell.key: cell.name for cell in plan.cells}})
    return plan


def _here(plan: Plan, store: Store, board: Board, options: Options) -> Callable[[list[Cell]], Any]:
    """What runs cells one after another in this process; the model stays loaded between calls."""
    from unlearn_eval.runs.study.cells.worker import Worker

    study = plan.study
    worker = Worker(store, study.batch_size, study.device, study.keep_edits, options.command)

    def run(cells: list[Cell]) -> None:
        for cell in cells:
            board.begin(cell)
            worker.say = lambda text, cell=cell: board.step(cell, text)  # type: ignore[misc]
            worker.progress = lambda what, done, total, cell=cell: board.progress(cell, what, done, total)  # type: ignore[misc]
            board.done(cell, run_cell(cell, worker, store, options.command))

    return run


def run_cell(cell: Cell, worker: Any, store: Store, command: list[str]) -> Result:
    """The result of a cell; of one that fails, a result that says so.

    Raises:
        DiskFull: there is no room, whatever the error says.
        Exception: what is wrong is the disk.
    """
    store.attempt(cell.name, cell.key)
    try:
        result: Result = worker.run(cell)
    except Exception as error:
        if no_room(error):
            raise
        if shutil.disk_usage(store.folder).free < _LEAST_BYTES:  # torch says "failed writing", and not why
            raise DiskFull(f"the disk of {store.folder} is full ({type(error).__name__}: {error})") from error
        result = record_failure(cell, error, store, command)
    return result


def record_failure(cell: Cell, error: Exception, store: Store, command: list[str]) -> Result:
    """Write that a cell has failed, and why."""
    from unlearn_eval.runs.study.cells.result import failed_result

    trace = "".join(traceback.format_exception(error))
    result = failed_result(cell, error, trace, utc_now(), command)
    write_result(result, store.run_folder(cell.name, cell.key) / RESULT)
    return result


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full or write-protected disk."""
    while error is not None:
        if isinstance(error, DiskFull) or isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        if "os error 28)" in str(error) or os.strerror(errno.ENOSPC) in str(error):  # safetensors, tokenizers
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _ended_softly() -> Iterator[None]:
    """SIGTERM, as schedulers send it before they kill, is like Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
