"""Documents of benchmarks: plain records of questions and answers, by split, and which of them are forgotten.

A document is a record of texts and lists of texts (`document` lists its fields), so that all of a benchmark fit into
one table. Splits whose names begin with `forget` hold what is to be forgotten, the others what is to be kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearn_eval.data.items import check_disjoint
from unlearn_eval.utils.errors import UserError, unknown_name

Document = dict[str, Any]
Splits = dict[str, list[Document]]
Metadata = Mapping[str, Any]
ALL = "all"  # in `forget`: every document
CONSEQUENCES = "consequences"  # field of documents: tests of what follows from an edit


def document(
    key: str,
    question: object,
    answer: object,
    *,
    aliases: Iterable[Any] = (),
    paraphrases: Iterable[Any] = (),
    wrong_answers: Iterable[Any] = (),
    subject: object = "",
    group: object = "",
    shape: str = "question",
    turns: Iterable[str] = (),
    linked: Iterable[Mapping[str, Any]] = (),
) -> Document:
    """One document.

    Args:
        key: its id.
        question, answer: the fact.
        aliases: other ways to write the answer.
        paraphrases: the question in other words, of the same shape.
        wrong_answers: of the answer's kind.
        subject: what the question is about.
        group: what belongs together: an edge, a person, a sport.
        shape: how it is asked (`shapes.asked`): `question`, `sentence` (a beginning, which the
            answer completes), `text` (a document's text, which goes on), or what a benchmark's own prompt needs.
        turns: questions and answers that were said before, by turns.
        linked: questions beside its own, with the fields of `items.Linked`; without any the field is left out.

    Raises:
        UserError: no question or answer, or an alias without a word that says anything.
    """
    asked, said = str(question or "").strip(), str(answer if answer is not None else "").strip()
    if shape != "bare" and not asked or not said:
        missing = "question" if said else "answer"
        raise UserError(f"{key}: its {missing} is empty", "every item needs question and answer")
    others = list(dict.fromkeys(text for alias in aliases if (text := str(alias).strip()) and text != said))
    check_aliases(key, others)
    return {
        "id": key,
        "question": asked,
        "answer": said,
        "aliases": others,
        "paraphrases": [str(text).strip() for text in paraphrases if str(text).strip()],
        "wrong_answers": [str(text).strip() for text in wrong_answers if str(text).strip()],
        "subject": str(subject or ""),
        "group": str(group or ""),
        "shape": shape,
        "turns": list(turns),
        **({"linked": beside} if (beside := list(linked)) else {}),
    }


def asking(question: object, groups: Iterable[Iterable[object]], shape: str = "question") -> Document:
    """A question of a test, and what it needs: an answer of every group, in any of the forms that the group has."""
    answers = [list(dict.fromkeys(str(text).strip() for text in group)) for group in groups]
    return {"question": str(question).strip(), "shape": shape, "answers": answers}


def consequence(
    kind: str,
    questions: Iterable[Document],
    conditions: Iterable[Document] = (),
    *,
    every: bool = False,
    known: bool = False,
) -> Document:
    """A test of what follows from an edit, for the field `CONSEQUENCES` of a document.

    Args:
        kind: what follows.
        questions: made by `asking`.
        conditions: questions that the unedited model has to answer, or the test does not count.
        every: whether all questions have to be answered, and not any of them.
        known: whether the unedited model has to pass the test itself.
    """
    own = {"questions": list(questions), "conditions": list(conditions)}
    return {"kind": kind, "every": every, "known": known, **own}


def rewrite_of(record: Mapping[str, Any], about: str, hint: str) -> tuple[str, str, str, str]:
    """Prompt, subject, true and new answer of a `requested_rewrite`, as CounterFact and those after it write it.

    Raises:
        UserError: it lacks one of them.
    """
    try:
        prompt, subject = str(record["prompt"]), str(record["subject"])
        true, new = str(record["target_true"]["str"]), str(record["target_new"]["str"])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{about}: its requested_rewrite is not as published ({error!r})", hint) from error
    return prompt.replace("{}", subject), subject, true, new


def check_aliases(key: str, aliases: Iterable[str]) -> None:
    """Refuse an alias that would be found in almost any text: no letter or digit in it, or stop words only.

    Raises:
        UserError: naming item and alias.
    """
    for alias in aliases:
        if not names_something(alias):
            raise UserError(
                f"{key}: the alias {alias!r} would be found in almost any text", "leave it out: it names no answer"
            )


def names_something(alias: str) -> bool:
    """Whether an alias would not be found in almost any text."""
    if len(alias) > 2 and alias.isascii() and alias.islower():
        from unlearn_eval.metrics.refusal import content_words  # its patterns are many, and `ls` needs none of them

        return bool(content_words(alias))
    return any(c.isalnum() for c in alias)


# What is forgotten, what is kept ---------------------------------------------------------------------------


def choose(
    documents: Sequence[Document], metadata: Metadata, default: str | int | Sequence[object], what: str
) -> tuple[list[Any], list[Any]]:
    """The documents to forget and to keep, as `--metadata '{"forget": ..., "retain": ...}'` says.

    Each is a number (so many from the start, of those that are not taken), `all`, the name of a group, an id, or a
    list of names and ids; `A+B` are two names. What is not forgotten is kept, at most `n_retain` documents of it.

    Args:
        documents: all of them; `id` and `group` are what they can be called by.
        metadata: of the run.
        default: what is forgotten if the run does not say.
        what: what the groups are, for messages: "edge", "person".

    Raises:
        UserError: an unknown name, nothing left for one of the two, or a document in both.
    """
    wanted = metadata.get("forget")
    forget = _pick(documents, default if wanted is None else wanted, what)
    taken = {own["id"] for own in forget}
    rest = [own for own in documents if own["id"] not in taken]
    kept = metadata.get("retain")
    retain = rest if kept is None else _pick(rest if isinstance(kept, int) else documents, kept, what)
    check_disjoint(taken, (own["id"] for own in retain))
    limit = metadata.get("n_retain")
    return forget, retain[: int(limit)] if limit and kept is None else retain


def _pick(documents: Sequence[Document], wanted: str | int | Sequence[object], what: str) -> list[Document]:
    if isinstance(wanted, bool) or isinstance(wanted, int) and wanted < 1:
        raise UserError(f"forget or retain is {wanted!r}", "give a number above 0, a name, or a list of names")
    if isinstance(wanted, int):
        return list(documents[:wanted])
    groups = {own["group"] for own in documents if own["group"]}
    ids = {own["id"] for own in documents}
    if wanted == ALL and ALL not in groups | ids:
        return list(documents)
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if isinstance(wanted, str) and wanted not in groups | ids:
        names = [part.strip() for part in wanted.split("+")]
    for name in names:
        if name not in groups and name not in ids:
            raise unknown_name(what, name, groups or ids)
    chosen = set(names)
    return [own for own in documents if own["id"] in chosen or own["group"] in chosen]


def distinct_ids(documents: Iterable[Document]) -> list[Document]:
    """The documents; a second one with the same id gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for own in documents:
        seen[own["id"]] += 1
        n = seen[own["id"]]
        found.append(own if n == 1 else {**own, "id": f"{own['id']}#{n}"})
    return found


def is_attack(split: str) -> bool:
    """Whether a split's questions only try to draw out what others ask."""
    return split.startswith(("forget_attack", "forget_generation"))


def only(splits: Splits, metadata: Metadata) -> Splits:
    """Of what is to be forgotten only the documents that the metadata's `ids` name, and attacks on their groups.

    Raises:
        UserError: an unknown id.
    """
    ids = metadata.get("ids")
    if ids is None:
        return splits
    asked = {split: own for split, own in splits.items() if split.startswith("forget") and not is_attack(split)}
    known = {own["id"]: own["group"] for documents in asked.values() for own in documents}
    for key in ids:
        if key not in known:
            raise unknown_name("id", str(key), known)
    groups = {known[key] for key in ids}
    chosen = {
        split: [own for own in documents if (own["id"] in ids if split in asked else own["group"] in groups)]
        for split, documents in splits.items()
        if split.startswith("forget")
    }
    return {split: own for split, documents in splits.items() if (own := chosen.get(split, documents))}


def slug(text: str) -> str:
    """A text as part of a name: lower case, one underscore for everything that is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def without_empty(splits: Splits) -> Splits:
    """Splits that may be empty are left out then; what is to be forgotten and what is kept may not."""
    return {split: own for split, own in splits.items() if own or split in ("forget", "retain")}
