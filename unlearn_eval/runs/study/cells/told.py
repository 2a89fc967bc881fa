"""What a study tells a task by itself: which items are forgotten, and which are asked as kept."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from unlearn_eval.data.benchmark import Chosen, Whole
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.registry import asking_of, tasks_for_any_set
from unlearn_eval.data.sources import DATA_VARIABLE
from unlearn_eval.utils.errors import UserError

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


def choose(items: ForgetSet, size: int | None, seed: int, kept: int | None, known: Collection[str] | None) -> Chosen:
    """The first `size` items of a seeded shuffle, the same ones first for every size, and the next `kept` ones.

    Args:
        items: the set.
        size: how many to forget; None is all.
        seed: of the shuffle.
        kept: how many others are kept, or as many as there are; None leaves that to the task.
        known: ids of the items that may be chosen; None is all.

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
    return Chosen(items.select(in_order), tuple(others), n == len(items))


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


def item_lines(items: Sequence[ForgetItem]) -> list[dict[str, Any]]:
    """Forget items as records of a JSONL file."""
    return [{key: value for key, value in item.record.items() if value not in (None, ())} for item in items]
