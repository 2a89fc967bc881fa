"""Chains of two facts: one question that takes both, since it names what they share only by the first one.

Lyon is in France, and the capital of France is Paris: "What is the capital of the home country of Lyon?" The shared
name is the answer of the first fact, or its subject where nothing else has its answer (an inverse: "the country whose
currency is the yen").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.shapes import QUESTION, as_request
from unlearn_eval.metrics import contains_answer

FIRST, SECOND = "first", "second"  # where in a chain a fact stands
UNKNOWN = "X"
TAKE = 'Take the answer to the question "{question}" and call it X. {then}'
TAKE_END = 'Take what completes the sentence "{question} ..." and call it X. {then}'


@dataclass(frozen=True)
class Fact:
    """An item, and what only some sources say of it.

    Attributes:
        item: it.
        cloze: the beginning of a sentence, which the answer completes.
        description: of the subject.
        answer_described: words that stand for the answer and do not name it: "the home country of Lyon".
        subject_described: words that stand for the subject by the answer: "the country whose capital is Paris".
        relation: of a shipped fact.
        joins: whether the answer, where nothing describes it, is what other facts call so: Pluto is a god and a planet.
    """

    item: ForgetItem
    cloze: str = ""
    description: str = ""
    answer_described: str = ""
    subject_described: str = ""
    relation: str = ""
    joins: bool = True


@dataclass(frozen=True)
class Chain:
    """A question over two facts.

    Attributes:
        question: it; its answer is that of the second fact.
        shape: how it is put to a model (see `shapes.py`).
        first, second: the facts.
        inverse: whether the subject of the first is what they share, not its answer.
    """

    question: str
    shape: str
    first: ForgetItem
    second: ForgetItem
    inverse: bool = False

    @property
    def key(self) -> str:
        """Its name: the ids of its facts."""
        return f"{self.first.id} {'<' if self.inverse else '>'} {self.second.id}"

    @property
    def steps(self) -> tuple[str, str, str]:
        """What it goes through: Lyon, France, Paris."""
        subject, answer = self.first.subject or self.first.question, self.first.answer
        return (*((answer, subject) if self.inverse else (subject, answer)), self.second.answer)


def chains_of(facts: Sequence[Fact]) -> list[Chain]:
    """Every chain of two of these facts whose question does not say its answer.

    An answer without `answer_described` is named by quoting its question, unless its fact says that it does not join.
    """
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.item.subject and fact.item.subject in fact.item.question:
            by_subject.setdefault(_name(fact.item.subject), []).append(fact)
    unique = Counter(fact.subject_described for fact in facts)
    found = []
    for first in facts:
        for second in by_subject.get(_name(first.item.answer), ()):
            if first.answer_described:
                question = _in_place(second.item, first.answer_described)
                found.append(Chain(question, second.item.shape, first.item, second.item))
            elif first.joins:
                found.append(Chain(_quoted(first.item, second.item), QUESTION, first.item, second.item))
        if first.subject_described and unique[first.subject_described] == 1 and first.item.subject:
            for second in by_subject.get(_name(first.item.subject), ()):
                question = _in_place(second.item, first.subject_described)
                found.append(Chain(question, second.item.shape, first.item, second.item, inverse=True))
    return [chain for chain in found if _asks(chain)]


def by_item(chains: Iterable[Chain], most: int) -> dict[ForgetItem, list[tuple[str, Chain]]]:
    """An item -> its place (`FIRST`, `SECOND`) and chain: at most so many at each, those by an answer first."""
    found: dict[ForgetItem, list[tuple[str, Chain]]] = {}
    counts: Counter[tuple[ForgetItem, str]] = Counter()
    for chain in sorted(chains, key=lambda chain: chain.inverse):
        for place, item in ((FIRST, chain.first), (SECOND, chain.second)):
            if counts[item, place] < most:
                counts[item, place] += 1
                found.setdefault(item, []).append((place, chain))
    return found


def _asks(chain: Chain) -> bool:
    """Whether there is something to deduce: two facts, and an answer that the question does not say."""
    return chain.first != chain.second and not contains_answer(chain.question, chain.second.accepted)


def _name(text: str) -> str:
    """A name without its article; in its own case, since mercury is not Mercury."""
    return re.sub(r"^the ", "", text.strip())


def _in_place(item: ForgetItem, words: str) -> str:
    """An item's question with words in the place of its subject, and of the subject's article."""
    pattern = rf"(?<!\w)(?:[Tt]he )?{re.escape(str(item.subject))}(?!\w)"
    found = re.sub(pattern, lambda _: words, item.question)
    return found[0].upper() + found[1:]


def _quoted(first: ForgetItem, second: ForgetItem) -> str:
    """The second item's question about whatever answers the first one's."""
    form = TAKE if first.shape == QUESTION else TAKE_END
    then = as_request(_in_place(second, UNKNOWN), second.shape)
    return form.format(question=first.question.strip(), then=then)
