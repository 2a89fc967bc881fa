"""The results of a study's cells: what was done, of several parts one, and of one that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.harness.backends import model_type
from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.plan import Cell
from unlearn_eval.utils.folders import files_below
from unlearn_eval.utils.provenance import peak_memory_bytes

if TYPE_CHECKING:
    import torch


def describe_cell(cell: Cell) -> dict[str, Any]:
    """What a cell is, for its result."""
    return {
        "key": cell.key,
        "code": cell.code,
        "part": cell.part,
        "model": cell.model.name,
        "editor": None if cell.editor is None else cell.editor.name,
        "settings": {} if cell.editor is None else dict(cell.editor.settings),
        "recipe": None if cell.recipe is None else cell.recipe.name,
        "forget": cell.forget,
        "size": cell.size,
        "seed": cell.seed,
        "known": cell.known,
        "retain": cell.retain,
        "backend": cell.backend,
        "finetune": None if cell.finetune is None else asdict(cell.finetune),
        "tasks": [ask.task.task for ask in cell.asks],
        **({"attacks": [asdict(own.attack) for own in cell.tries]} if cell.tries else {}),
        **({} if cell.then is None else {"then": asdict(cell.then)}),
        **({} if cell.trial is None else {"trial": asdict(cell.trial)}),
        **({} if cell.sequence is None else {"sequence": asdict(cell.sequence)}),
        **({} if cell.stage is None else {"mark": cell.stage.mark, "order": cell.stage.order, "step": cell.stage.name}),
        **({} if cell.published is None else {"published": asdict(cell.published)}),
    }


def whole_result(
    cell: Cell,
    chosen: Chosen,
    edit: Mapping[str, Any] | None,
    parts: Sequence[Result],
    device: torch.device,
    timing: Mapping[str, float],
    created: str,
    command: list[str],
) -> Result:
    """The results of a cell's tasks and attacks as one.

    Args:
        cell: what was done.
        chosen: what was forgotten and kept.
        edit: its description and folder; None of the unedited model.
        parts: the results.
        device: on which the model is.
        timing: seconds of loading and editing.
        created, command: when it began, and how.
    """
    seconds = {name: round(value, 2) for name, value in timing.items()}
    seconds["evaluation_seconds"] = round(sum(part.timing["evaluation_seconds"] for part in parts), 2)
    if edit is not None and edit["seconds"] is not None:
        seconds["editing_seconds"] = edit["seconds"]  # also where the edit was made by an earlier run
    located = ((edit or {}).get("notes", {}).get("components") or {}).get("seconds")
    if located is not None:
        seconds["localization_seconds"] = located  # also where it was kept from an earlier edit
    return Result.new(
        "evaluation",
        created,
        command=command,
        device=device,
        config_as_passed=describe_cell(cell),
        config={
            "model_type": model_type(cell.backend, edit is not None),
            "cell": describe_cell(cell) | {"ids": [item.id for item in chosen.forget], "kept": list(chosen.kept)},
            "tasks": {name: config for part in parts for name, config in part.config["tasks"].items()},
            "peak_memory_bytes": _peak(device),
            **_of_stage(cell, chosen, edit),
        },
        model=parts[0].model,
        edit=None if edit is None else dict(edit),
        data={name: data for part in parts for name, data in part.data.items()},
        metrics={task: metrics for part in parts for task, metrics in part.metrics.items()},
        seed=cell.seed,
        timing=seconds,
        robustness={task: own for part in parts for task, own in part.robustness.items()},
        notes=[note for part in parts for note in part.notes],
    )


def _of_stage(cell: Cell, chosen: Chosen, edit: Mapping[str, Any] | None) -> dict[str, int]:
    """Of a cell of a sequence how many items its own edit added, and how large the whole edit is on disk."""
    if cell.stage is None or edit is None:
        return {}
    n = sum(map(len, chosen.requests[cell.stage.start : cell.stage.mark]))
    n += len(chosen.learned) if cell.stage.learns and chosen.learned is not None else 0
    return {"n_edited": n, "edit_bytes": sum(path.stat().st_size for path in files_below(Path(edit["folder"])))}


def failed_result(cell: Cell, error: BaseException, trace: str, created: str, command: list[str]) -> Result:
    """The result of a cell that did not work."""
    return Result.new(
        "evaluation",
        created,
        command=command,
        status="failed",
        config_as_passed=describe_cell(cell),
        config={"cell": describe_cell(cell)},
        model={"id": cell.model.model},
        seed=cell.seed,
        notes=[f"{type(error).__name__}: {error}", trace],
    )


def _peak(device: torch.device) -> int:
    """The most memory so far, on the device on which the model is."""
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_memory_bytes()
