"""Forget items in parts that share no subject and no group: what is trained on tells nothing of what is tested."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.metrics import normalise
from unlearn_eval.utils.errors import UserError


def clusters(items: Sequence[ForgetItem] | ForgetSet) -> list[list[int]]:
    """The positions of items that belong together, directly or by others: of one group, subject, or question."""
    owner: dict[tuple[str, str], int] = {}
    root = list(range(len(items)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, item in enumerate(items):
        keys = (("group", group_of(item)), ("subject", item.subject), ("question", item.question.strip()))
        for kind, value in keys:
            if value:
                root[find(i)] = find(owner.setdefault((kind, value), i))
    found: dict[int, list[int]] = {}
    for i in range(len(items)):
        found.setdefault(find(i), []).append(i)
    return list(found.values())


def group_of(item: ForgetItem) -> str | None:
    """An item's group; None if that is but its answer (an athlete's sport), which unrelated items may share."""
    same = item.group is not None and normalise(item.group) in map(normalise, item.accepted)
    return None if same else item.group


def split(items: ForgetSet, n_folds: int, seed: int) -> list[tuple[list[ForgetItem], list[ForgetItem]]]:
    """For each fold the items T to train on and the items V to test; every item is in V once.

    Clusters are dealt, in a seeded order, to the fold that has the fewest items so far, so folds are as even as the
    clusters allow.

    Raises:
        UserError: fewer than two folds, or fewer clusters than folds.
    """
    if n_folds < 2:
        raise UserError(f"{n_folds} folds leave nothing to test on", "give --set folds=2 or more")
    parts = clusters(items)
    if len(parts) < n_folds:
        raise UserError(
            f"{len(items)} facts in {len(parts)} groups are too few for {n_folds} folds: what is trained on and what is"
            " tested must share no subject and no group",
            f"forget at least {n_folds} facts about different subjects, or give them smaller groups",
        )
    random.Random(seed).shuffle(parts)
    parts.sort(key=len, reverse=True)  # stable: the order within a size is the seed's
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for part in parts:
        min(folds, key=len).extend(part)
    everything = list(items)
    return [
        ([everything[i] for i in range(len(everything)) if i not in set(fold)], [everything[i] for i in sorted(fold)])
        for fold in folds
    ]


def check(items: ForgetSet, others: ForgetSet | None, config: Any) -> None:
    """Refuse facts that cannot be split into `config.folds`.

    Raises:
        UserError: fewer groups of facts than folds.
    """
    split(items, config.folds, 0)


def apart(items: ForgetSet, others: ForgetSet) -> ForgetSet | None:
    """Those of the other items that share no id, subject, group or question with the items; None if there are none."""
    ids = {item.id for item in items}
    asked = {item.question.strip() for item in items}
    subjects = {item.subject for item in items if item.subject}
    groups = {group for item in items if (group := group_of(item))}
    kept = tuple(
        item
        for item in others
        if item.id not in ids
        and item.question.strip() not in asked
        and item.subject not in subjects
        and group_of(item) not in groups
    )
    return ForgetSet(others.name, kept) if kept else None
