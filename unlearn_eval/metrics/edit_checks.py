"""Whether an edit is a result at all: one rule for when it took and one for when it did harm, for every table and page.

*   An edit took if at least half of its targets are the most likely answers after it. One that was trained also took
    if the answers' probability per token fell by a tenth: many objectives have no target.
*   It did harm if at least a quarter of the unrelated questions are worse off: they were answered before, and are now
    refused, answered in circles or not at all, or no longer answered right.

Both read the self-check that is kept in `edit.json`. An edit without one (from another tool, or made before there was
one) has no faults that are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlearn_eval.metrics.refusal import has_refusal_cue, repeats_itself
from unlearn_eval.metrics.text import contains_answer, normalise

LEAST_TAKEN = 0.5  # of the targets
LEAST_FORGOTTEN = 0.1  # of the answers' probability, where weights were trained
MOST_HARMED = 0.25  # of the unrelated questions: three of ten; one or two flip in a small model by themselves


@dataclass(frozen=True)
class Unrelated:
    """What became of the answers to unrelated questions; each number counts questions.

    Attributes:
        n: Questions in all.
        refused_before, refused: Answers that refuse, before and after the edit.
        repeats_before, repeats: Answers in circles, or empty.
        right_before, right: Right answers.
        changed: Answers with other words than before.
        worse: Questions that were answered before, and are now refused, in circles, empty, or no longer right.
    """

    n: int
    refused_before: int
    refused: int
    repeats_before: int
    repeats: int
    right_before: int
    right: int
    changed: int
    worse: int

    @property
    def record(self) -> dict[str, int]:
        """The counts, as `edit.json` has them."""
        return asdict(self)


def unrelated_damage(before: Sequence[str], after: Sequence[str], accepted: Sequence[Sequence[str]]) -> Unrelated:
    """What an edit did to the answers of questions that it should leave alone.

    Args:
        before, after: Answers before and after the edit, to the same questions.
        accepted: Right answers of each question.

    Source: ours. It reads words, so an answer that became a falsehood of the same form counts only as no longer right.
    """
    rows = list(zip(before, after, accepted, strict=True))
    refused = [(has_refusal_cue(one), has_refusal_cue(two)) for one, two, _ in rows]
    loops = [(_is_stuck(one), _is_stuck(two)) for one, two, _ in rows]
    right = [(contains_answer(one, known), contains_answer(two, known)) for one, two, known in rows]
    worse = [
        not (r[0] or s[0]) and (r[1] or s[1] or (c[0] and not c[1]))
        for r, s, c in zip(refused, loops, right, strict=True)
    ]
    return Unrelated(
        n=len(rows),
        refused_before=sum(one for one, _ in refused),
        refused=sum(two for _, two in refused),
        repeats_before=sum(one for one, _ in loops),
        repeats=sum(two for _, two in loops),
        right_before=sum(one for one, _ in right),
        right=sum(two for _, two in right),
        changed=sum(normalise(one) != normalise(two) for one, two, _ in rows),
        worse=sum(worse),
    )


def edit_faults(notes: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Why an edit is not to be read as a result: it did not take, it did harm, both, or () if neither is known.

    Args:
        notes: Those of the edit, as `edit.json` and result files have them.
    """
    check = (notes or {}).get("self_check") or {}
    found = (_not_taken(check, "training" in (notes or {})), _harm(check.get("unrelated") or {}))
    return tuple(fault for fault in found if fault)


def took(notes: Mapping[str, Any] | None) -> bool | None:
    """Whether an edit took by its own self-check; None if it has none."""
    check = (notes or {}).get("self_check") or {}
    return None if not check.get("n") else _not_taken(check, "training" in (notes or {})) is None


def did_harm(counts: Mapping[str, int]) -> bool:
    """Whether more unrelated answers became worse than an edit may cost."""
    return _harm(counts) is not None


def unrelated_line(counts: Mapping[str, int]) -> str:
    """What became of the unrelated questions, in one line."""
    c = counts
    return (
        f"{c['n']} unrelated questions: {c['refused']} refused ({c['refused_before']} before), {c['repeats']} in"
        f" circles or empty ({c['repeats_before']}), {c['right']} right ({c['right_before']}), {c['changed']} changed"
    )


def _not_taken(check: Mapping[str, Any], trained: bool) -> str | None:
    n, n_took = check.get("n") or 0, check.get("n_took") or 0
    if not n or n_took >= LEAST_TAKEN * n:
        return None
    before, after = check.get("answer_probability_before"), check.get("answer_probability_after")
    if trained and (before is None or after is None or after <= (1 - LEAST_FORGOTTEN) * before):
        return None
    forgotten = f", and the answers' probability is {after:.3g} of {before:.3g}" if trained else ""
    return f"the edit did not take: {n_took} of {n} targets are the most likely answer{forgotten}"


def _harm(counts: Mapping[str, int]) -> str | None:
    n, worse = counts.get("n") or 0, counts.get("worse") or 0
    if not n or worse < MOST_HARMED * n:
        return None
    return f"the edit did harm: {worse} of {n} unrelated questions are refused, answered in circles or no longer right"


def _is_stuck(text: str) -> bool:
    return not normalise(text) or repeats_itself(text)
