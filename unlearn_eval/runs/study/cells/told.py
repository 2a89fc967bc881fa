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
from unlearn_eval.runs.study.spec import Learn, RequestSequence, TaskSpec
from unlearn_eval.utils.errors import UserError

REFERENCE, MODEL = "retain_reference", "model:"  # a task's reference may be a model, which a study then scores
TAUGHT = "taught"  # of these the one that the study itself teaches
STOP = "stop_probability"  # of a method's settings that may name it, too
LEARNED = "learned"  # a task's `forget` that stands for the new facts of a sequence
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
    sequence: RequestSequence | None = None,
) -> Chosen:
    """The first `size` items of a seeded shuffle, the same ones first for every size, and the next `kept` ones.

    Of a sequence, `size` counts requests, and what is asked as forgotten are the first `again` ones.

    Args:
        items: the set.
        size: how many to forget; None is all.
        seed: of the shuffle.
        kept: how many others are kept, or as many as there are; None leaves that to the task.
        known: ids of the items that may be chosen; None is all.
        strict: as in `Chosen`.
        sequence: requests one after another.

    Raises:
        UserError: there are too few.
    """
    requests = _in_turn(items, seed, known, sequence is not None and sequence.of_groups)
    n = len(requests) if size is None else size
    if not 0 < n <= len(requests):
        of = "" if known is None else " that the model knows"
        what = "groups" if sequence is not None and sequence.of_groups else "items"
        raise UserError(
            f"{max(n, 1)} {what} of '{items.name}' are to be forgotten, and there are {len(requests)}{of}",
            "give smaller sizes" if sequence is None else "give smaller sizes or marks",
        )
    others = [key for own in requests[n:] for key in own][:kept] if kept is not None else []
    first = requests[:n] if sequence is None else requests[:n][: sequence.again]
    asked = {key for own in first for key in own}
    in_order = [item.id for item in items if item.id in asked]
    control = items.select(others) if others else None
    chosen = Chosen(items.select(in_order), tuple(others), len(in_order) == len(items), control, strict)
    if sequence is None:
        return chosen
    forgotten = [key for own in requests[:n] for key in own]
    learned = None if sequence.learn is None else _learned(sequence.learn, items, forgotten, others, seed)
    return replace(chosen, requests=tuple(map(tuple, requests[:n])), learned=learned)


def _in_turn(items: ForgetSet, seed: int, known: Collection[str] | None, of_groups: bool) -> list[list[str]]:
    """The ids of each request: one item each in a seeded order, or the groups in the order of the set."""
    able = [item for item in items if known is None or item.id in known]
    if not of_groups:
        return [[item.id] for item in random.Random(seed).sample(able, len(able))]
    groups: dict[str, list[str]] = {}
    for item in able:
        groups.setdefault(item.group or item.id, []).append(item.id)
    return list(groups.values())


def _learned(learn: Learn, items: ForgetSet, forgotten: list[str], kept: list[str], seed: int) -> ForgetSet:
    """New facts, drawn by the seed from those whose question is neither forgotten nor asked as kept.

    Raises:
        UserError: there are too few.
    """
    taken = {item.question.strip() for item in items.select([*forgotten, *kept])}
    found = forget_set(learn.on)
    free = [item.id for item in found if item.question.strip() not in taken]
    n = len(forgotten) if learn.size is None else learn.size
    if n > len(free):
        raise UserError(
            f"{n} facts of '{learn.on}' are to be learned, and {len(free)} have a question of their own",
            "give learn a smaller size, or kept",
        )
    return found.select(random.Random(seed).sample(free, n))


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


def asked_of(task: TaskSpec, metadata: Mapping[str, Any], chosen: Chosen) -> dict[str, Any]:
    """What a task is told, with its own metadata over what the study tells it; the new facts where it asks these.

    Raises:
        UserError: it asks for new facts, and nothing is learned.
    """
    own = dict(task.metadata)
    if own.get("forget") == LEARNED:
        if chosen.learned is None:
            raise UserError(f"{task.task} asks what is learned, and nothing is", "give sequence: {learn: SET}")
        own["forget"] = {"set": chosen.learned.name, "ids": [item.id for item in chosen.learned]}
    return {**metadata, **own}


def reference_model(metadata: Mapping[str, Any]) -> str | None:
    """The model that a task's `retain_reference` names (`model:NAME`); None where it names a file or nothing."""
    named = str(metadata.get(REFERENCE) or "")
    return named.removeprefix(MODEL) if named.startswith(MODEL) else None


def item_lines(items: Sequence[ForgetItem]) -> list[dict[str, Any]]:
    """Forget items as records of a JSONL file."""
    return [{key: value for key, value in item.record.items() if value not in (None, ())} for item in items]
