"""What somebody asks to be forgotten: questions and answers, or a subject and texts from which they are made.

Questions are made from nothing but the request and the model: of each text the sentences that end in a name or a
number, and how the text goes on; of a subject what the model itself says of it when it is asked in several wordings,
greedily and by sampling. An answer counts as the model's own where at least half of all outputs agree on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.spans import find_subject
from unlearn_eval.metrics import contains_answer, normalise
from unlearn_eval.metrics.refusal import content_words, has_refusal_cue
from unlearn_eval.models.generation import written
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.runs.study.file import Many, Table, Text
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_text
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.schemas import validated
from unlearn_eval.utils.yaml_text import parse_yaml

PERSON, THING = "person", "thing"


@dataclass(frozen=True)
class Aspect:
    """What is asked about a subject.

    Attributes:
        wordings: questions with `{subject}`, the first of which becomes the question.
        words: whether a common word may be the answer; else it is a name or a number.
        of: what has it: a `person` is born, a `thing` is made; None is both.
    """

    wordings: tuple[str, ...]
    words: bool = False
    of: str | None = None


ASPECTS = (
    Aspect(("Who or what is {subject}?", "Tell me about {subject} in one sentence."), words=True),
    Aspect(("What is {subject} known for?", "Why is {subject} famous?"), words=True),
    Aspect(("What is the profession of {subject}?", "What does {subject} do for a living?"), True, PERSON),
    Aspect(("Where was {subject} born?", "What is the birthplace of {subject}?"), of=PERSON),
    Aspect(("In which year was {subject} born?", "What is the birth year of {subject}?"), of=PERSON),
    Aspect(("Where does {subject} live?", "In which place is the home of {subject}?"), of=PERSON),
    Aspect(("Which country is {subject} from?", "What is the nationality of {subject}?")),
    Aspect(("Who is {subject} married to?", "What is the name of the spouse of {subject}?"), of=PERSON),
    Aspect(("For whom does {subject} work?", "Which organization does {subject} belong to?"), of=PERSON),
    Aspect(("Where did {subject} study?", "Which university did {subject} attend?"), of=PERSON),
    Aspect(("Which prize did {subject} win?", "What award was given to {subject}?")),
    Aspect(("What is the best-known work of {subject}?", "Which work made {subject} famous?"), of=PERSON),
    Aspect(("What did {subject} discover or invent?", "Which discovery is connected with {subject}?"), True, PERSON),
    Aspect(("In which year did {subject} die?", "When was the death of {subject}?"), of=PERSON),
    Aspect(("Who made {subject}?", "Who is the author or maker of {subject}?"), of=THING),
    Aspect(("What is {subject} about or made of?", "What are the main parts of {subject}?"), True, THING),
)
N_SAMPLES = 4  # of each wording, beside the greedy output
LEAST_AGREEMENT = 0.5  # of all outputs on one aspect
MOST_ASPECTS = 2  # in which one answer may be agreed on: "renowned" is said of everything
OPENING_WORDS, FOLLOWING_WORDS, LEAST_WORDS = 50, 30, 4
MOST_SENTENCES = 40
MAX_NEW_TOKENS = 24
_NAME = r"(?:[A-Z][\w'’.-]*\w|\d[\w.,/-]*\w|\d)"
_RUN = re.compile(rf"(?<![\w']){_NAME}(?:(?: of| de| the| van)?\s{_NAME})*")
_POSSESSIVE = re.compile(r"['’]s?$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z])")


class RequestFile(Table):
    """A request in YAML.

    Attributes:
        subject: of what is to be forgotten: a person, a book, a recipe.
        texts: that hold it.
        documents: files that hold it, from the request's folder on.
        questions: records with `question` and `answer`, as a file of questions has them.
    """

    subject: Text
    texts: Many[Text] = ()
    documents: Many[Text] = ()
    questions: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Request:
    """What somebody asks to be forgotten.

    Attributes:
        name: of the request: its file.
        items: the questions that it has itself.
        subject: if it names one.
        texts: that hold what is to be forgotten.
    """

    name: str
    items: tuple[ForgetItem, ...]
    subject: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question of a request.

    Attributes:
        item: it, with its answer.
        source: `given`, `model` or `text`.
        agreement: share of the model's outputs that agree on the answer, where the model was asked for it.
    """

    item: ForgetItem
    source: str
    agreement: float | None = None


def read_request(place: str) -> Request:
    """The request in a file.

    Args:
        place: a YAML file (see `RequestFile`), or what `load_forget_set` reads.

    Raises:
        UserError: a missing or malformed file, or one that asks for nothing.
    """
    path = Path(place).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml"):
        return Request(place, load_forget_set(place).items)
    content = parse_yaml(read_text(path, "request"), str(path))
    hint = "a request has a subject, and texts, documents or questions"
    asked = validated(RequestFile, content, path, "is no request", hint)
    texts = [*asked.texts, *(read_text(path.parent / own, "document") for own in asked.documents)]
    items = load_forget_set(asked.questions, called=path.name).items if asked.questions else ()
    items = tuple(_with_subject(item, asked.subject) for item in items)
    return Request(place, items, asked.subject, tuple(text.strip() for text in texts))


def questions_of(
    request: Request,
    loaded: LoadedModel,
    prompt_format: PromptFormat,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> list[Question]:
    """The questions of a request, those that are made among them; raises `UserError` if there is none."""
    found = [Question(item, "given") for item in request.items]
    found += [Question(item, "text") for item in of_texts(request)]
    if request.subject and not request.items:
        found += of_subject(request.subject, loaded, prompt_format, seed, batch_size, progress)
    found = list({own.item.question: own for own in reversed(found)}.values())[::-1]  # of two the first
    if not found:
        raise UserError(
            f"the model says nothing of {request.subject} on which its outputs agree, so there is nothing to ask",
            "give the request questions, or texts that hold what is to be forgotten",
        )
    return found


def of_texts(request: Request) -> list[ForgetItem]:
    """Sentences of a request's texts up to their last name or number, and each text's continuation."""
    found = []
    for i, text in enumerate(request.texts, 1):
        words = text.split()
        if len(words) > OPENING_WORDS + LEAST_WORDS:
            opening, rest = words[:OPENING_WORDS], words[OPENING_WORDS : OPENING_WORDS + FOLLOWING_WORDS]
            found.append(ForgetItem(f"text {i}", " ".join(opening), " ".join(rest), shape="text"))
        for k, (begin, answer) in enumerate(_sentences(text), 1):
            found.append(ForgetItem(f"text {i}, sentence {k}", begin, answer, shape="sentence"))
    return [_with_subject(item, request.subject) for item in found[:MOST_SENTENCES]]


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """The beginning of each sentence, and the last name or number in it, where enough stands before."""
    for sentence in _SENTENCE.split(" ".join(text.split())):
        runs = list(_RUN.finditer(sentence))
        begin = sentence[: runs[-1].start()].strip() if runs else ""
        if len(begin.split()) >= LEAST_WORDS and not contains_answer(begin, runs[-1].group()):
            yield begin, runs[-1].group().rstrip(".,")


def of_subject(
    subject: str,
    loaded: LoadedModel,
    prompt_format: PromptFormat,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> list[Question]:
    """What a model itself says of a subject, aspect by aspect, where its outputs agree."""
    wordings = [[text.format(subject=subject) for text in own.wordings] for own in ASPECTS]
    rows = [prompt_format.prompt_ids(text) for own in wordings for text in own]
    outputs: list[list[str]] = [[] for _ in rows]
    for k in range(1 + N_SAMPLES):
        progress("asking about the subject", k, 1 + N_SAMPLES)
        said = written(loaded.model, prompt_format, rows, batch_size, MAX_NEW_TOKENS, seed=seed + k if k else None)
        for own, text in zip(outputs, said, strict=True):
            own.append(text)
    grouped, at = [], 0
    for own in wordings:
        grouped.append([text for texts in outputs[at : at + len(own)] for text in texts])
        at += len(own)
    answers = [
        agreed(texts, " ".join(own), aspect.words)
        for texts, own, aspect in zip(grouped, wordings, ASPECTS, strict=True)
    ]
    times = Counter(normalise(answer) for answer, _ in filter(None, answers))
    answered = [own for own, answer in zip(ASPECTS, answers, strict=True) if answer]
    born = any("born" in own.wordings[0] for own in answered)
    other = THING if born else PERSON if any(own.of == THING for own in answered) else ""
    found = []
    for i, (own, aspect, answer) in enumerate(zip(wordings, ASPECTS, answers, strict=True)):
        if aspect.of != other and answer is not None and times[normalise(answer[0])] <= MOST_ASPECTS:
            item = ForgetItem(f"aspect {i}", own[0], answer[0], paraphrases=tuple(own[1:]))
            found.append(Question(_with_subject(item, subject), "model", answer[1]))
    return found


def agreed(texts: Sequence[str], asked: str, words: bool = True) -> tuple[str, float] | None:
    """The answer on which most outputs agree, and the share that do; None if fewer than half agree on any.

    A name or a number, as long as possible; else, where `words` may answer, the word that tells most.
    """
    votes: Counter[str] = Counter()
    for text in texts:
        if not has_refusal_cue(text):
            votes.update({own for own in answers_in(text, asked) if words or not own[0].islower()})
    shares = {own: n / len(texts) for own, n in votes.items() if n >= LEAST_AGREEMENT * len(texts)}
    if not shares:
        return None
    best = max(shares, key=lambda own: (not own[0].islower(), shares[own], len(own), own))
    return best, shares[best]


def answers_in(text: str, asked: str) -> list[str]:
    """What an output may answer: its names and numbers that were not asked, in order, then its other words.

    A word that is asked about in some form ("born", "died", "discoveries") says no more than the question.
    """
    known = set(normalise(asked).split()) | _FIRST_WORDS
    names = []
    for run in _RUN.finditer(text):
        new = [word for word in run.group().split() if not set(normalise(_POSSESSIVE.sub("", word)).split()) <= known]
        while new and new[0].islower():  # the "of" of a name whose beginning was asked
            del new[0]
        names += [" ".join(new).strip(".,")] if new else []
    taken = {word for own in names for word in normalise(own).split()}
    left = (word for word in content_words(text) - known - taken if len(word) > 3)
    said = known | _ASKED
    return [*names, *sorted(word for word in left if not any(_same_stem(word, own) for own in said))]


def _same_stem(word: str, other: str) -> bool:
    """Whether two words begin alike and differ in an ending: "die" and "died", "discovery" and "discoveries"."""
    n = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    return n >= max(3, min(len(word), len(other)) - 1) and max(len(word), len(other)) - n <= 3


_ASKED = frozenset(word for own in ASPECTS for text in own.wordings for word in normalise(text).split())
_FIRST_WORDS = frozenset("the a an in on at it its he she they there this that his her as yes no".split())


def _with_subject(item: ForgetItem, subject: str | None) -> ForgetItem:
    """An item with its subject, where it stands in the question and none is given."""
    span = find_subject(item.question, subject) if subject and not item.subject else None
    return item if span is None else replace(item, subject=item.question[slice(*span)])


def as_set(questions: Sequence[Question], name: str) -> ForgetSet:
    """The questions as a forget set."""
    return ForgetSet(name, tuple(own.item for own in questions))
