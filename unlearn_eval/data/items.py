"""What is to be forgotten: items, and sets of items."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unlearn_eval.data.shapes import QUESTION, check_shape
from unlearn_eval.utils.errors import UserError, unknown_name


@dataclass(frozen=True)
class ForgetItem:
    """One question and what is known of it.

    Attributes:
        id: unique within its set.
        question, answer: the fact.
        aliases: other ways to write the answer, which would give it away as well.
        subject: what the question is about, verbatim as in the question; None if there is no such span.
        paraphrases: the question in other words.
        perturbed_answers: wrong answers of the same type.
        group: what items belong together (author, edge, person), for query merging.
        shape: how `question` and its paraphrases are put to a model: as a `question`, a `sentence` (a beginning, which
            the answer completes), a `text` (which goes on), a `blank` (with a gap), or `brief` (for a short answer).
    """

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    perturbed_answers: tuple[str, ...] = ()
    group: str | None = None
    shape: str = QUESTION

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def record(self) -> dict[str, Any]:
        """The fields by name; `shape` only of what is no question, so that sets of questions keep their hashes."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("shape", QUESTION)}


@dataclass(frozen=True)
class ForgetSet:
    """A named, ordered set of items with distinct ids."""

    name: str
    items: tuple[ForgetItem, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"the forget set '{self.name}' is empty", "give it at least one item")
        twice = [key for key, n in Counter(item.id for item in self.items).items() if n > 1]
        if twice:
            raise UserError(f"the forget set '{self.name}' has the id {twice[0]!r} more than once", "make ids unique")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ForgetItem]:
        return iter(self.items)

    @property
    def hash(self) -> str:
        """SHA-256 of the items."""
        content = json.dumps([item.record for item in self.items], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def select(self, ids: Iterable[str]) -> ForgetSet:
        """The items with these ids, in the given order."""
        known = {item.id: item for item in self.items}
        ids = list(ids)
        missing = [key for key in ids if key not in known]
        if missing:
            raise unknown_name(f"id in the set '{self.name}':", missing[0], known)
        return replace(self, items=tuple(known[key] for key in ids))

    def sample(self, n: int, seed: int) -> ForgetSet:
        """`n` items (all if there are fewer), chosen by a seeded shuffle, in the set's own order."""
        if n <= 0:
            raise UserError(f"cannot take {n} items of '{self.name}'", "give a number above 0")
        chosen = sorted(random.Random(seed).sample(range(len(self.items)), min(n, len(self.items))))
        return replace(self, items=tuple(self.items[i] for i in chosen))


def check_disjoint(forget: Iterable[str], retain: Iterable[str]) -> None:
    """Refuse ids that are both forgotten and retained."""
    both = sorted(set(forget) & set(retain))
    if both:
        raise UserError(
            f"{len(both)} items are both in forget and in retain, e.g. {both[0]!r}",
            "take them out of one of the two",
        )


def item_from_record(record: Mapping[str, Any], position: int = 0) -> ForgetItem:
    """An item from a record of our facts, of TOFU, or with the field names of `ForgetItem`."""
    perturbed = record.get("perturbed_answers") or record.get("wrong_answers") or record.get("perturbed_answer") or ()
    paraphrases = record.get("paraphrases") or record.get("paraphrased_question") or ()
    own_id = record.get("id")
    name = str(position if own_id in (None, "") else own_id)
    for field in ("question", "answer"):
        if record[field] is None or not str(record[field]).strip():
            raise UserError(f"item {name}: its {field} is empty", "every item needs question and answer")
    subject = str(record.get("subject") or "").strip()
    if subject not in str(record["question"]):
        raise UserError(
            f"item {name}: its subject {subject!r} does not stand in its question",
            "write the subject exactly as in the question, or leave it out",
        )
    try:
        shape = check_shape(str(record.get("shape") or QUESTION).strip())
    except UserError as error:
        raise UserError(f"item {name}: {error.message}", error.hint) from error
    return ForgetItem(
        id=name,
        question=str(record["question"]),
        answer=str(record["answer"]),
        aliases=_texts(record.get("aliases")),
        subject=subject or None,
        paraphrases=_texts(paraphrases),
        perturbed_answers=_texts(perturbed),
        group=str(record["group"]) if record.get("group") else None,
        shape=shape,
    )


def _texts(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    if isinstance(value, str):
        value = value.split("|")
    texts = (str(part).strip() for part in (value if isinstance(value, list | tuple) else [value]))
    return tuple(text for text in texts if text)  # an empty alias would stand in every answer
