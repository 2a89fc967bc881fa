"""What a study tells a task by itself: which items are forgotten, and which are asked as kept."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from unlearn_eval.data.benchmark import Chosen, Whole
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.registry import asking_of, tasks_for_any_set
from unlearn_eval.data.sources import DATA_VARIABLE
from unlearn_eval.utils.errors import UserError

REFERENCE, MODEL = "retain_reference", "model:"  # a task's reference may be a model, which a study then scores
TAUGHT = "taught"  # of these the one that the study itself teaches
STOP = "stop_probability"  # of a method's settings that may name it, too
OTHERS = "others"  # an editor's `text` that stands for what the model says to the items that are not used


def forget_set(name: str) -> ForgetSet:
    """The set of this name, which a process reads once from one folder of data.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    return _forget_set(name, os.environ.get(DATA_VARIABLE))


@cache
def _forget_set(name: str, data: str | None) -> ForgetSet:
    return load_forget_set(name)


def choose(
    items: ForgetSet,
    size: int | None,
    seed: int,
    kept: int | None,
    known: Collection[str] | None,
    strict: bool = False,
) -> Chosen:
    """The first `size` items of a seeded shuffle, the same ones first for every size, and the next `kept` ones.

    Args:
        items: the set.
        size: how many to forget; None is all.
        seed: of the shuffle.
        kept: how many others are kept, or as many as there are; None leaves that to the task.
        known: ids of the items that may be chosen; None is all.
        strict: as in `Chosen`.

    Raises:
        UserError: there are too few.
    """
    ids = [item.id for item in items if known is None or item.id in known]
    n = len(ids) if size is None else size
    if not 0 < n <= len(ids):
        of = "" if known is None else " that the model knows"
        raise UserError(
            f"{max(n, 1)} items of '{items.name}' are to be forgotten, and there are {len(ids)}{of}",
            "give smaller sizes",
        )
    order = random.Random(seed).sample(ids, len(ids))
    others = order[n : n + kept] if kept is not None else []
    in_order = [item.id for item in items if item.id in set(order[:n])]
    control = items.select(others) if others else None
    return Chosen(items.select(in_order), tuple(others), n == len(items), control, strict)


def known_control(chosen: Chosen, facts: ForgetSet, known: Collection[str], kept: int | None, seed: int) -> Chosen:
    """What was chosen, with shipped facts that the model knows as its control, for a set that has no others left.

    Args:
        chosen: what is forgotten.
        facts: the shipped facts.
        known: ids of those that the model knows.
        kept: how many are asked at most; None is as many as are forgotten.
        seed: of the choice.

    Raises:
        UserError: the model knows none that has nothing to do with what is forgotten.
    """
    about = {item.question for item in chosen.forget} | {item.subject for item in chosen.forget if item.subject}
    free = [item.id for item in facts if item.id in known and not about & {item.question, item.subject}]
    if not free:
        raise UserError(
            f"'{chosen.forget.name}' has no other items that the model knows, and it knows none of the shipped facts",
            "give smaller sizes, or known: false",
        )
    n = len(chosen.forget) if kept is None else kept
    drawn = set(random.Random(seed).sample(free, min(n, len(free))))
    return replace(chosen, control=facts.select([key for key in free if key in drawn]))


def can_keep(task: str) -> bool | None:
    """Whether a task can be given what is asked as kept; None of a task that is not given a forget set either."""
    asking = asking_of(task)
    return None if asking is None else asking.can_keep


def wants_control(task: str) -> bool:
    """Whether a task on any set needs a control, which it would otherwise draw from the shipped facts, known or not."""
    return task in tasks_for_any_set() and bool(can_keep(task))


def keeps_what_is_known(known: bool, retain: str | None, forget: str) -> bool:
    """Whether what is retained is the rest of the forget set: then only what the model knows, and is not asked."""
    return known and retain == forget


def depends_on_set(task: str) -> bool:
    """Whether the study tells this task what is forgotten."""
    asking = asking_of(task)
    return asking is not None and not isinstance(asking, Whole)


def told(task: str, chosen: Chosen) -> tuple[dict[str, Any], str | None]:
    """The metadata for a task, and a warning if it asks more than was to be forgotten.

    A forget set that is neither shipped nor named whole is given as the object `ForgetSet`, for the caller to
    write to a file.

    Raises:
        UserError: the task does not ask about this set.
    """
    asking = asking_of(task)
    if asking is None:
        return {}, None
    name, warning = chosen.forget.name, None
    if not asking.fits(name):
        what = f"{asking.sets}..." if asking.sets.endswith(":") else f"'{asking.sets}'"
        raise UserError(
            f"{task} asks about {what}, not about '{name}'",
            f"take another task for it ({', '.join(tasks_for_any_set()[:2])} ask any set), "
            "or put the two into parts of their own",
        )
    if asking.asks_more(chosen):
        warning = f"{task} asks all of {name}, of which {len(chosen.forget)} items are to be forgotten"
    return asking.metadata(chosen), warning


def reference_model(metadata: Mapping[str, Any]) -> str | None:
    """The model that a task's `retain_reference` names (`model:NAME`); None where it names a file or nothing."""
    named = str(metadata.get(REFERENCE) or "")
    return named.removeprefix(MODEL) if named.startswith(MODEL) else None


def item_lines(items: Sequence[ForgetItem]) -> list[dict[str, Any]]:
    """Forget items as records of a JSONL file."""
    return [{key: value for key, value in item.record.items() if value not in (None, ())} for item in items]
