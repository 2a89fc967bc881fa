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
from typing import Any

import torch
from torch import Tensor

from unlearn_eval import prompts
from unlearn_eval.errors import UserError
from unlearn_eval.forget_sets import ForgetSet, facts
from unlearn_eval.memory_edits import Codebook, MemoryEdit, SideMemories, read_inputs
from unlearn_eval.provenance import hash_json
from unlearn_eval.results import read_jsonl

Ids = tuple[int, ...]


def calibrated(
    edit: MemoryEdit, model: Any, reworded: Mapping[str, Sequence[Ids]], edited: Sequence[Ids], others: Sequence[Ids]
) -> MemoryEdit:
    """The edit with the radius (GRACE) or thresholds (WISE) that divide the questions best, and a note of it.

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
    inputs = read_inputs(model, edit.module, [*(ids for _, ids in mine), *rest])
    own, other = inputs[: len(mine)], inputs[len(mine) :]
    names = [name for name, _ in mine]
    if isinstance(edit.store, Codebook):
        store: Codebook | SideMemories = _codebook(edit.store, own, other)
    else:
        store = _side_memories(edit.store, names, own, read_inputs(model, edit.module, edited), other)
    note = {
        "n_reworded": len(mine),
        "n_others": len(rest),
        "others_hash": hash_json([list(ids) for ids in rest]),
        "before": _rates(edit.store, names, own, other),
        "after": _rates(store, names, own, other),
    }
    return replace(edit, store=store, info=replace(edit.info, notes={**edit.info.notes, "calibration": note}))


def _rates(
    store: Codebook | SideMemories, names: Sequence[str], own: Sequence[Tensor], other: Sequence[Tensor]
) -> dict[str, Any]:
    """Which shares of the questions are answered, and by the right memory, within which bounds."""
    found, silent = store.routes(own), store.routes(other)
    bounds = store.radii if isinstance(store, Codebook) else store.thresholds
    return {
        "reworded_answered": _mean([route.answers for route in found]),
        "reworded_by_their_own": _mean([r.answers and n in r.owners for r, n in zip(found, names, strict=True)]),
        "others_answered": _mean([route.answers for route in silent]),
        "least_bound": float(bounds.min()) if len(bounds) else None,
        "largest_bound": float(bounds.max()) if len(bounds) else None,
    }


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _codebook(book: Codebook, own: Sequence[Tensor], other: Sequence[Tensor]) -> Codebook:
    """One radius for all keys, but no ball reaches more than half way to a key with another target."""
    if not book.n:
        return book
    near = torch.tensor([route.value for route in book.routes(own)])
    far = torch.tensor([route.value for route in book.routes(other)])
    radius = best_bound(near, far)
    labels = [book.labels[int(i)] for i in book.value_of]
    radii = torch.full_like(book.radii, radius)
    for i, key in enumerate(book.keys):
        apart = torch.tensor([label != labels[i] for label in labels])
        if apart.any():
            half = float((book.keys[apart] - key).norm(dim=-1).min()) / 2
            radii[i] = min(radius, half)
    return replace(book, radii=radii)


def _side_memories(
    store: SideMemories,
    names: Sequence[str],
    own: Sequence[Tensor],
    edited: Sequence[Tensor],
    other: Sequence[Tensor],
) -> SideMemories:
    """One threshold for each memory, never above its least active edit."""
    active, silent, edits = store.activations(own), store.activations(other), store.activations(edited)
    thresholds = store.thresholds.clone()
    for j in range(store.n):
        rows = [i for i, name in enumerate(names) if name in store.owners_of(j)]
        if not rows:
            continue
        bound = -best_bound(-active[rows, j], -silent[:, j])  # here what is above it answers
        mine = edits.argmax(-1) == j
        if mine.any():
            bound = min(bound, float(edits[mine, j].min()) * (1 - 1e-4))
        thresholds[j] = bound
    return replace(store, thresholds=thresholds)


def best_bound(near: Tensor, far: Tensor) -> float:
    """The b for which (share of `near` ≤ b) − (share of `far` ≤ b) is largest, half way to the next value above it.

    Of several equally good ones the smallest; if even the best is worse than answering nobody, below all values.
    """
    values = torch.cat([near, far]).double().sort().values
    counts = [int((near <= v).sum()) * len(far) - int((far <= v).sum()) * len(near) for v in values]
    gains = torch.tensor(counts)  # times both lengths: whole numbers, so that equal ones are equal
    best = int(gains.argmax())
    if gains[best] <= 0:
        return float(values[0]) - 1e-3 * abs(float(values[0]))
    above = values[values > values[best]]
    return float(values[best]) if not len(above) else float((values[best] + above[0]) / 2)


def other_prompts(source: str, forget: ForgetSet, tokenizer: Any, chat: bool, seed: int) -> list[Ids]:
    """Questions that are not to be forgotten, as prompts, in an order that the seed says.

    Args:
        source: a .jsonl with `question` in each line; empty for the shipped facts.
        forget: what is to be forgotten; its questions and their paraphrases are left out.
        tokenizer: of the model.
        chat: whether questions go through the chat template.
        seed: of the order.

    Raises:
        UserError: no such file, or nothing is left.
    """
    if source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"the file of other questions, {path}, does not exist", "give a .jsonl, --set others=FILE")
        asked = [str(record["question"]) for record in read_jsonl(path, required_fields=("question",))]
    else:
        asked = [item.question for item in facts()]
    taken = {text for item in forget for text in (item.question, *item.paraphrases)}
    rest = [question for question in dict.fromkeys(asked) if question not in taken]
    if not rest:
        raise UserError("there are no other questions than those to be forgotten", "give others with --set others=FILE")
    random.Random(seed).shuffle(rest)
    return [prompt_ids(question, tokenizer, chat) for question in rest]


def prompt_ids(question: str, tokenizer: Any, chat: bool) -> Ids:
    """A question as the prompt that the model is evaluated with."""
    return tuple(prompts.encode_prompt(prompts.render(question, tokenizer, chat), tokenizer))
