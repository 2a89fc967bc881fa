"""What a study tells a task by itself: which items are forgotten, and which are asked as kept."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from unlearn_eval.data.forget_sets import ForgetItem, ForgetSet, load_forget_set
from unlearn_eval.data.sources import DATA_VARIABLE
from unlearn_eval.utils.errors import UserError

BY_IDS = {  # task -> (the sets that it asks about, what stands before its own ids in theirs)
    "unlearn_facts": ("facts", ""),
    "unlearn_factual": ("tofu:factual", ""),
    "unlearn_pistol": ("pistol:", "pistol/"),
    "unlearn_counterfact": ("counterfact:", "counterfact/"),
    "unlearn_zsre": ("zsre:", "zsre/"),
    "unlearn_sports": ("sports:", "sports/"),
}
BY_PART = {
    "unlearn_rwku": ("rwku:", "forget"),
    "unlearn_lume": ("lume:", "task"),
    "unlearn_knowundo": ("knowundo:", ""),
}
OTHERS = "others"  # an editor's `text` that stands for what the model says to the items that are not used
BY_FILE = ("unlearn_forms", "unlearn_leak_at_k", "unlearn_utility", "unlearn_utility_quick")


@dataclass(frozen=True)
class Chosen:
    """What one cell forgets.

    Attributes:
        forget: the items.
        kept: ids of others of the set that are asked as kept; empty if the task chooses.
        whole: whether `forget` is the whole set.
    """

    forget: ForgetSet
    kept: tuple[str, ...]
    whole: bool


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
    return task in BY_IDS or task in BY_PART or task in BY_FILE


def told(task: str, chosen: Chosen) -> tuple[dict[str, Any], str | None]:
    """The metadata for a task, and a warning if it asks more than was to be forgotten.

    A forget set that is neither shipped nor named whole is given as the object `ForgetSet`, for the caller to
    write to a file.

    Raises:
        UserError: the task does not ask about this set.
    """
    name, ids = chosen.forget.name, [item.id for item in chosen.forget]
    if task in BY_IDS:
        wanted, prefix = BY_IDS[task]
        _check(task, name, wanted, name == wanted or wanted.endswith(":") and name.startswith(wanted))
        own = [key.removeprefix(prefix) for key in ids]
        kept = {"retain": [key.removeprefix(prefix) for key in chosen.kept]} if chosen.kept else {}
        return {"forget": own, **(kept if task == "unlearn_facts" else {})}, None
    if task in BY_FILE:
        if name == "facts":
            return {"forget": ids}, None
        return {"forget": name if chosen.whole else chosen.forget}, None
    if task in BY_PART:
        prefix, key = BY_PART[task]
        _check(task, name, prefix, name.startswith(prefix))
        which = name.partition(":")[2]
        return ({key: which} if key and which not in ("", "all") else {}), _more_than(task, name, chosen)
    if task.startswith("unlearn_tofu"):
        split = next((end for end in ("forget01", "forget05") if task.endswith(end)), "forget10")
        _check(task, name, f"tofu:{split}", name == f"tofu:{split}")
        return {}, _more_than(task, name, chosen)
    return {}, None


def _more_than(task: str, name: str, chosen: Chosen) -> str | None:
    if chosen.whole:
        return None
    return f"{task} asks all of {name}, of which {len(chosen.forget)} items are to be forgotten"


def _check(task: str, name: str, wanted: str, fits: bool) -> None:
    if not fits:
        what = f"{wanted}..." if wanted.endswith(":") else f"'{wanted}'"
        raise UserError(
            f"{task} asks about {what}, not about '{name}'",
            f"take another task for it ({', '.join(BY_FILE[:2])} ask any set), or put the two into parts of their own",
        )


def item_lines(items: Sequence[ForgetItem]) -> list[dict[str, Any]]:
    """Forget items as records of a JSONL file."""
    return [{key: value for key, value in item.record.items() if value not in (None, ())} for item in items]
