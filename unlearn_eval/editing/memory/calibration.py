"""How wide a memory should listen: radii and thresholds from reworded questions and from others near them.

Every candidate bound is weighed by the share of reworded questions that a memory answers, minus the share of other
questions that one answers (Youden's J). The edits themselves are always answered. How well a bound does on the
questions it was chosen on says little: evaluate it on others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.shapes import QUESTION, check_shape
from unlearn_eval.edits.memory.read import AnyMemoryEdit
from unlearn_eval.edits.memory.store import Store
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]


def calibrated(
    edit: AnyMemoryEdit,
    model: PreTrainedModel,
    reworded: Mapping[str, Sequence[Ids]],
    edited: Sequence[Ids],
    others: Sequence[Ids],
) -> AnyMemoryEdit:
    """The edit with the radius (GRACE) or thresholds (the others) that divide the questions best, and a note of it.

    Args:
        edit: a memory edit.
        model: the model it was made on, without it.
        reworded: request id -> prompts that its memory should answer too.
        edited: the prompts that were edited.
        others: prompts that no memory should answer.

    Raises:
        UserError: there are no reworded questions, or no others.
    """
    if not any(reworded.values()):
        raise UserError("nothing to calibrate with: the forget set has no paraphrases", "leave out calibrate=true")
    if not others:
        raise UserError("nothing to calibrate with: no other questions", "give a .jsonl with --set others=FILE")
    known = set(edited)
    mine = [(name, ids) for name, rows in reworded.items() for ids in rows if ids not in known]
    rest = [ids for ids in others if ids not in known and ids not in {ids for _, ids in mine}]
    inputs = edit.inputs(model, [*(ids for _, ids in mine), *rest])
    own, other = inputs[: len(mine)], inputs[len(mine) :]
    names = [name for name, _ in mine]
    store: Any = edit.store.calibrated(names, own, edit.inputs(model, edited), other)
    note = {
        "n_reworded": len(mine),
        "n_others": len(rest),
        "others_hash": hash_json([list(ids) for ids in rest]),
        "before": _rates(edit.store, names, own, other),
        "after": _rates(store, names, own, other),
    }
    return replace(edit, store=store, info=replace(edit.info, notes={**edit.info.notes, "calibration": note}))


def _rates(store: Store, names: Sequence[str], own: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, Any]:
    """Which shares of the questions are answered, and by the right memory, within which bounds."""
    found, silent = store.routes(own), store.routes(other)
    bounds = store.bounds
    return {
        "reworded_answered": _mean([route.answers for route in found]),
        "reworded_by_their_own": _mean([r.answers and n in r.owners for r, n in zip(found, names, strict=True)]),
        "others_answered": _mean([route.answers for route in silent]),
        "least_bound": float(bounds.min()) if len(bounds) else None,
        "largest_bound": float(bounds.max()) if len(bounds) else None,
    }


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def other_prompts(source: str, forget: ForgetSet, prompt_format: PromptFormat, seed: int) -> list[Ids]:
    """Questions that are not to be forgotten, as prompts, in an order that the seed says.

    Args:
        source: a .jsonl with `question` (and `shape`, if it is no question) in each line; empty for the shipped facts.
        forget: what is to be forgotten; its questions and their paraphrases are left out.
        prompt_format: how the model is asked.
        seed: of the order.

    Raises:
        UserError: no such file, an unknown shape, or nothing is left.
    """
    if source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"the file of other questions, {path}, does not exist", "give a .jsonl, --set others=FILE")
        records = read_jsonl(path, required_fields=("question",))
        shapes = {str(record["question"]): check_shape(str(record.get("shape") or QUESTION)) for record in records}
    else:
        shapes = {item.question: item.shape for item in facts()}
    taken = {text for item in forget for text in (item.question, *item.paraphrases)}
    rest = [question for question in shapes if question not in taken]
    if not rest:
        raise UserError("there are no other questions than those to be forgotten", "give others with --set others=FILE")
    random.Random(seed).shuffle(rest)
    return [prompt_format.prompt_ids(question, shapes[question]) for question in rest]
