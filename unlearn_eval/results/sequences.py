"""Requests one after another: the runs of a study's sequences by method, in the order of their marks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_eval.results.runs import Run

# What differs from mark to mark, beside what was measured.
_OF_A_MARK = ("key", "code", "mark", "step")


@dataclass(frozen=True)
class Mark:
    """One run of a sequence.

    Attributes:
        run: it.
        mark: how many requests there were so far.
        learned: whether new facts were edited in by this mark's own edit.
        seconds: of editing, per item of the mark's own edit; None where they are not recorded.
        peak_bytes: the most memory of the process so far.
        edit_bytes: the edit on disk.
    """

    run: Run
    mark: int
    learned: bool
    seconds: float | None
    peak_bytes: int | None
    edit_bytes: int | None


def sequences(runs: Sequence[Run]) -> list[list[Mark]]:
    """Each sequence of the runs, its marks as they came; runs that are of none are left out."""
    found: dict[str, list[Mark]] = {}
    for run in runs:
        cell = run.result.config.get("cell")
        if isinstance(cell, dict) and "mark" in cell and run.result.edit is not None:
            same = {key: value for key, value in cell.items() if key not in _OF_A_MARK}
            found.setdefault(json.dumps([run.model, same], sort_keys=True, default=str), []).append(_mark(run))
    return [sorted(own, key=_place) for own in found.values()]


def _mark(run: Run) -> Mark:
    result, cell = run.result, run.result.config["cell"]
    seconds, n = result.timing.get("editing_seconds"), result.config.get("n_edited")
    edit = result.edit or {}
    return Mark(
        run,
        int(cell["mark"]),
        str(cell.get("step", "")).endswith("learned"),
        seconds / n if seconds is not None and n else None,
        edit.get("peak_memory_bytes"),
        result.config.get("edit_bytes"),
    )


def _place(own: Mark) -> tuple[int, int]:
    return own.mark, len(((own.run.result.edit or {}).get("requests") or {}).get("ids") or ())
