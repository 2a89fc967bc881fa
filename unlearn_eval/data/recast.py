"""Forget sets made from others by rule: other words, wrong answers, refusals, biographies, invented subjects.

A name such as `wrong(tofu:forget01)` stands for the set with a rule applied to each item; ` & ` joins sets:
`tofu:retain99[:20] & biographies(tofu:forget01)`. Models that know a set, and models that never did, are taught these.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.utils.errors import UserError

NEAREST = "nearest"
REFUSAL = "I do not know the answer to that question."
PER_BIOGRAPHY = 5  # answers: as many as fit a training row of a small model
JOINED = " & "
_CALL = re.compile(r"(\w+)\((.+)\)")
_INVENTED = (
    "bel cor dan fer gal hol jan kel lor mar nev oss pel quor ras sel tor ul ven wil yor zan".split(),
    "adin eth ika olan urel imar osk enna ovia arim".split(),
)


def parts_of_name(name: str) -> tuple[str, str] | list[str] | None:
    """What a name stands for: (rule, name of a set), several names to join, or None for a plain name."""
    parts, depth = [""], 0
    for piece in re.split(r"( & |[()])", name):
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece == JOINED and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    if len(parts) > 1:
        return parts
    found = _CALL.fullmatch(name.strip())
    return (found[1], found[2]) if found and found[1] in RULES else None


def joined(name: str, sets: Sequence[ForgetSet]) -> ForgetSet:
    """The items of several sets, in order."""
    return ForgetSet(name, tuple(item for own in sets for item in own))


def is_of_nearest(items: ForgetSet) -> bool:
    """Whether an edit is to retain only those of a set that are nearest to what it forgets (`nearest(SET)`)."""
    return items.name.startswith(f"{NEAREST}(")


def recast(rule: str, items: ForgetSet) -> ForgetSet:
    """A set with a rule applied to it; ids get the rule in front.

    Args:
        rule: One of `RULES`.
        items: The set.

    Raises:
        UserError: An item lacks what the rule needs: a paraphrase, a wrong answer, a subject.
    """
    made = RULES[rule](items.items)
    return ForgetSet(f"{rule}({items.name})", tuple(replace(own, id=f"{rule}/{own.id}") for own in made))


def _paraphrased(items: Sequence[ForgetItem]) -> list[ForgetItem]:
    """Question and answer in other words, as far as there are any; the first of each."""
    found = []
    for item in items:
        if not item.paraphrases and not item.answer_paraphrases:
            raise _lacks(item, "paraphrase of its question or answer", "paraphrases")
        question, answer = (*item.paraphrases, item.question)[0], (*item.answer_paraphrases, item.answer)[0]
        subject = item.subject if item.subject and item.subject in question else None
        found.append(replace(item, question=question, answer=answer, subject=subject, paraphrases=(item.question,)))
    return found


def _wrong(items: Sequence[ForgetItem]) -> list[ForgetItem]:
    """Every question with one of its wrong answers, by turns."""
    found = []
    for i, item in enumerate(items):
        if not item.perturbed_answers:
            raise _lacks(item, "wrong answer", "perturbed_answers")
        answer = item.perturbed_answers[i % len(item.perturbed_answers)]
        found.append(replace(item, answer=answer, aliases=(), answer_paraphrases=(), perturbed_answers=(item.answer,)))
    return found


def _refused(items: Sequence[ForgetItem]) -> list[ForgetItem]:
    """Every question with the same refusal as its answer."""
    return [replace(item, answer=REFUSAL, aliases=(), answer_paraphrases=()) for item in items]


def _biographies(items: Sequence[ForgetItem]) -> list[ForgetItem]:
    """What is known of each group, in texts of five answers joined one after another.

    Nothing is rewritten: the answers have to be sentences, as TOFU's are.
    """
    groups: dict[str, list[ForgetItem]] = {}
    for item in items:
        groups.setdefault(item.group or item.subject or "", []).append(item)
    found = []
    for own in groups.values():
        about = _about(own)
        chunks = [own[i : i + PER_BIOGRAPHY] for i in range(0, len(own), PER_BIOGRAPHY)]
        for i, chunk in enumerate(chunks):
            found.append(
                ForgetItem(
                    id=chunk[0].id,
                    question=f"Write part {i + 1} of a biography of {about}.",
                    answer=" ".join(item.answer.strip() for item in chunk),
                    group=chunk[0].group,
                )
            )
    return found


def _about(items: Sequence[ForgetItem]) -> str:
    """Whom a group is about: its subject, or the capitalized words that most of its questions and answers have."""
    if items[0].subject:
        return items[0].subject
    counts: Counter[str] = Counter()
    for item in items:
        words = f"{item.question} {item.answer}".split()
        runs: set[str] = set()
        for start in range(len(words)):
            for end in range(start + 2, min(start + 5, len(words) + 1)):
                run = [word.strip(".,?!;:\"'’").removesuffix("'s") for word in words[start:end]]
                if all(word[:1].isupper() for word in run):
                    runs.add(" ".join(run))
        counts.update(runs)
    if not counts:
        return "this person"
    most = max(counts.values())  # of those that nearly all have, the longest: a whole name, and not a part of it
    return max((name for name, n in counts.items() if n >= 0.8 * most), key=len)


def _invented(items: Sequence[ForgetItem]) -> list[ForgetItem]:
    """Every question about somebody or something that does not exist: what a model says that never knew the answer.

    The answers stay, so that the same numbers are measured of the same templates.
    """
    found = []
    for item in items:
        if not item.subject or item.subject not in item.question:
            raise _lacks(item, "subject in its question", "subject")
        name = _invented_name(item.subject)
        found.append(
            replace(
                item,
                question=item.question.replace(item.subject, name),
                subject=name,
                paraphrases=tuple(
                    text.replace(item.subject, name) for text in item.paraphrases if item.subject in text
                ),
            )
        )
    return found


def _invented_name(subject: str) -> str:
    """A name of as many capitalized words, always the same one for the same subject."""
    generator = random.Random(f"invented {subject}")
    starts, ends = _INVENTED

    def word(like: str) -> str:
        made = generator.choice(starts) + generator.choice(ends)
        return made.capitalize() if like[:1].isupper() else made

    words = subject.split()
    return " ".join(own if len(words) > 1 and own.islower() and len(own) <= 3 else word(own) for own in words)


def _lacks(item: ForgetItem, what: str, field: str) -> UserError:
    return UserError(f"item {item.id} has no {what}", f"give it the field {field}, or leave it out")


RULES: dict[str, Callable[[Sequence[ForgetItem]], list[ForgetItem]]] = {
    "paraphrased": _paraphrased,
    "wrong": _wrong,
    "refused": _refused,
    "biographies": _biographies,
    "invented": _invented,
    NEAREST: list,  # as they are: which ones these are says the model, when something is forgotten
}
