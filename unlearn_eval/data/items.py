"""What is to be forgotten: items, and sets of items."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from unlearn_eval.data.shapes import QUESTION, check_shape
from unlearn_eval.data.spans import find_subject
from unlearn_eval.data.tables import as_list, kind_of, listed_in
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.notebooks import data_frame, html_table

if TYPE_CHECKING:
    import pandas

MOST_CHARACTERS = 100_000  # of a text of an item: more than any model reads, and read in no time
MOST_OF_A_NUMBER = 1e300
OF_ANSWER, OF_NEW, OF_OTHER = "answer", "new", "other"
KINDS = ("alias", "reasoning", "logical", "relation", "other")


@dataclass(frozen=True)
class Linked:
    """A question beside an item's own, as benchmarks of editing bring them (portability, locality).

    Attributes:
        kind: `alias` (the subject by another name), `reasoning` (over a further fact), `logical` (what is implied),
            `relation` (the same of another subject, or another of this one), or `other`.
        question, answers: the question, and what answers it; without answers those of the item do.
        shape: how it is put to a model, as for `ForgetItem`.
        of: what its answer follows from: the item's `answer`, a `new` one in its place, or neither (`other`).
    """

    kind: str
    question: str
    answers: tuple[str, ...] = ()
    shape: str = QUESTION
    of: str = OF_ANSWER


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
        answer_paraphrases: the answer in other words; no answer is judged by them.
        linked: questions beside its own, whose answers follow from it or must not change with it.
        popularity: how well it is known, as a number of your own (page views, mentions): tasks relate leaks to it.
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
    answer_paraphrases: tuple[str, ...] = ()
    linked: tuple[Linked, ...] = ()
    popularity: float | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def record(self) -> dict[str, Any]:
        """The fields by name, without what sets lacked when their hashes were first written.

        That is the `shape` of a question, `linked` and `popularity` where there are none, and `answer_paraphrases`,
        from which only other sets are made.
        """
        lacked = {"shape": QUESTION, "linked": (), "popularity": None}
        own = {key: value for key, value in asdict(self).items() if key != "answer_paraphrases"}
        return {key: value for key, value in own.items() if key not in lacked or value != lacked[key]}


@dataclass(frozen=True)
class ForgetSet(Sequence[ForgetItem]):
    """A named sequence of items with distinct ids.

    An index gives an item and a slice a set; `in` takes an item or an id.

    Attributes:
        name: of the set: as `load_forget_set` takes it, or the place that it was read from.
        items: in their order.
    """

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

    def __contains__(self, wanted: object) -> bool:
        return any(wanted in (item.id, item) for item in self.items)

    @overload
    def __getitem__(self, place: int) -> ForgetItem: ...

    @overload
    def __getitem__(self, place: slice) -> ForgetSet: ...

    def __getitem__(self, place: int | slice) -> ForgetItem | ForgetSet:
        return replace(self, items=self.items[place]) if isinstance(place, slice) else self.items[place]

    def __repr__(self) -> str:
        return f"ForgetSet({self.name!r}, {len(self)} item{'s' * (len(self) != 1)})"

    def _repr_html_(self) -> str:
        rows = [(item.id, item.subject, item.question, item.answer) for item in self.items]
        return html_table(repr(self), ("id", "subject", "question", "answer"), rows)

    def to_frame(self) -> pandas.DataFrame:
        """One row for each item, with the fields of `ForgetItem`.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame([asdict(item) for item in self.items], "to_frame")

    @cached_property
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


def item_from_record(
    record: Mapping[str, Any], position: int = 0, *, where: str = "", split: bool = False, own: bool = False
) -> ForgetItem:
    """An item from a record of our facts, of TOFU, or with the field names of `ForgetItem`.

    Args:
        record: Field -> value. An answer that is a list is the answer and its aliases.
        position: Its id, if it has none.
        where: Its file and line, for errors.
        split: Whether a text may hold a list (see `tables.as_list`).
        own: Whether it is of a user's own file: outer white space goes, and the subject must stand in the question as
            whole words.

    Raises:
        UserError: A field is empty, or is neither text nor, where that is allowed, a list of texts.
    """
    own_id = record.get("id")
    name = str(position if own_id in (None, "") else own_id)
    about = f"{where}: item {name}" if where else f"item {name}"
    answers = _answers(record["answer"], about, split)
    question = _text(record["question"], f"{about}: its question")
    if not answers or not answers[0].strip():
        raise UserError(f"{about}: its answer is empty", "every item needs question and answer")
    if not question.strip():
        raise UserError(f"{about}: its question is empty", "every item needs question and answer")
    if own:
        question, answers = question.strip(), [answer.strip() for answer in answers]
    try:
        shape = check_shape(str(record.get("shape") or QUESTION).strip())
    except UserError as error:
        raise UserError(f"{about}: {error.message}", error.hint) from error
    listed = {
        "aliases": record.get("aliases"),
        "paraphrases": record.get("paraphrases") or record.get("paraphrased_question"),
        "perturbed_answers": record.get("perturbed_answers")
        or record.get("wrong_answers")
        or record.get("perturbed_answer"),
        "answer_paraphrases": record.get("answer_paraphrases") or record.get("paraphrased_answer"),
    }
    texts = {field: _texts(value, f"{about}: its {field}", split) for field, value in listed.items()}
    return ForgetItem(
        id=name,
        question=question,
        answer=answers[0],
        aliases=(*(text for text in answers[1:] if text.strip()), *texts["aliases"]),
        subject=_subject(record.get("subject"), question, about, own),
        paraphrases=texts["paraphrases"],
        perturbed_answers=texts["perturbed_answers"],
        group=str(record["group"]) if record.get("group") else None,
        shape=shape,
        answer_paraphrases=texts["answer_paraphrases"],
        linked=tuple(_linked(one, f"{about}: its linked question") for one in record.get("linked") or ()),
        popularity=_popularity(record.get("popularity"), about),
    )


def _linked(value: object, about: str) -> Linked:
    """A question beside the item's own."""
    if isinstance(value, Linked):
        return value
    if not isinstance(value, Mapping) or not _text(value.get("question"), about).strip():
        raise UserError(f"{about} is {kind_of(value)}", 'write {"kind": ..., "question": ..., "answers": [...]}')
    kind, of = str(value.get("kind") or "other"), str(value.get("of") or OF_ANSWER)
    for name, given, allowed in (("kind", kind, KINDS), ("of", of, (OF_ANSWER, OF_NEW, OF_OTHER))):
        if given not in allowed:
            raise unknown_name(f"{name} of {about}", given, allowed)
    answers = _texts(value.get("answers"), f"{about}: its answers", False)
    shape = check_shape(str(value.get("shape") or QUESTION))
    return Linked(kind, _text(value["question"], about).strip(), answers, shape, of)


def _popularity(value: object, about: str) -> float | None:
    """A number, or one in a CSV cell."""
    if value is None or value == "":
        return None
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{about}: its popularity {value!r} is no number", "give a number, or leave it out")
    return found


def _answers(value: object, about: str, split: bool) -> list[str]:
    """The answer, and further ones; a CSV cell holds several only in brackets."""
    if isinstance(value, str) and split:
        value = listed_in(value) or value
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [_text(part, f"{about}: its answer") for part in values]


def _subject(value: object, question: str, about: str, own: bool) -> str | None:
    """The subject as it stands in the question."""
    subject = _text(value, f"{about}: its subject").strip()
    if not subject:
        return None
    span = find_subject(question, subject)
    if span is not None:
        return question[slice(*span)]
    if subject in question and not own:
        return subject
    inside = " as a word, only inside another one" if subject in question else ""
    raise UserError(
        f"{about}: its subject {subject!r} does not stand in its question{inside}",
        "write the subject exactly as in the question, or leave it out",
    )


def _text(value: object, what: str) -> str:
    """A text, or a number as text; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS or "\0" in value:
            wrong = "has a NUL character" if "\0" in value else f"has {len(value):,} characters"
            raise UserError(f"{what} {wrong}", f"write a text of at most {MOST_CHARACTERS:,} characters, without NUL")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_OF_A_NUMBER:
        return str(value)
    raise UserError(f"{what} is {kind_of(value)}, not a text", "write it as text in quotes")


def _texts(value: object, what: str, split: bool) -> tuple[str, ...]:
    texts = (_text(part, what).strip() for part in as_list(value, split))
    return tuple(text for text in texts if text)  # an empty alias would stand in every answer
