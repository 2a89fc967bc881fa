"""What was asked and answered, item by item, for a page: every text of an item once, and each run's answer to it.

A sample holds its prompts as they were sent. The first text is the item's own question; the others are what differs
from its prompt, called by what they are of the item (a paraphrase, a cloze, a sample of the same question).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
MOST_CHARACTERS = 2000
DIRECT, AGAIN, OTHER = "direct", "asked again", "other wording"
ANSWER_CLASSES = {
    "l": "leak",
    "r": "refusal",
    "g": "gibberish",
    "k": "right",
    "w": "wrong",
    "n": "not given",
    "-": "not judged",
}


@dataclass(frozen=True)
class Said:
    """One text that an item was asked by, and what was answered.

    Attributes:
        label: what kind of text it is: `direct`, `paraphrase`, `cloze`, ...
        question: the text.
        answer: what the model wrote.
    """

    label: str
    question: str
    answer: str


@dataclass
class Answers:
    """Every question once, and what each run answered, as indices into a pool of strings.

    Attributes:
        strings: each different text once.
        questions: by task, a row (id, split, question, true answer, label, item) for each text that an item was asked
            by; the first four and the label are indices, the item is the row of its first text.
        runs: by run and task, `said` (an index for each row, -1 if it was not asked) and `classes` (a letter of
            `ANSWER_CLASSES` for each row).
        tried: by run and attack, what was answered beside (`attacked.py`).
    """

    strings: list[str] = field(default_factory=list)
    questions: dict[str, list[tuple[int, int, int, int, int, int]]] = field(default_factory=dict)
    runs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    tried: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict, repr=False)
    _rows: dict[tuple[str, str, str, int], int] = field(default_factory=dict, repr=False)

    def add(self, run: str, task: str, records: list[Record]) -> None:
        """What a run said on a task; records in which nothing was generated are left out."""
        said: dict[int, tuple[int, str]] = {}
        for record in records:
            doc = document(record)
            key, truth = str(record.get("id", record.get("doc_id"))), _true_answer(record, doc)
            split, item, times = str(doc.get("split") or ""), -1, dict[str, int]()
            for text in texts(record):
                times[text.question] = times.get(text.question, 0) + 1
                row = self.row(task, key, split, text.question, truth, text.label, item, times[text.question])
                item = row if item < 0 else item
                said[row] = self.string(text.answer), answer_class(record, text.label)
        if said:
            last = max(said) + 1
            self.runs.setdefault(run, {})[task] = {
                "said": [said[i][0] if i in said else -1 for i in range(last)],
                "classes": "".join(said[i][1] if i in said else "-" for i in range(last)),
            }

    def row(
        self, task: str, key: str, split: str, question: str, truth: str, label: str, item: int = -1, times: int = 1
    ) -> int:
        """The row of a text by which an item was asked, for the so manieth time; made if it is new.

        Args:
            task, key: the task, and the item in it.
            split, question, truth, label: what the row holds.
            item: the row of the item's first text; -1 is this one.
            times: how often the item was asked by this text so far, this one included.
        """
        rows = self.questions.setdefault(task, [])
        row = self._rows.setdefault((task, key, question, times), len(rows))
        if row == len(rows):
            pooled = [self.string(one) for one in (key, split, question, truth, label)]
            rows.append((*pooled, row if item < 0 else item))  # type: ignore[arg-type]
        return row

    def string(self, text: str) -> int:
        """The index of a text in the pool."""
        text = shortened(text)
        index = self._index.setdefault(text, len(self.strings))
        if index == len(self.strings):
            self.strings.append(text)
        return index

    def content(self) -> dict[str, Any]:
        """As JSON for the page."""
        questions = {task: rows for task, rows in self.questions.items() if rows}
        return {
            "strings": self.strings,
            "questions": questions,
            "runs": self.runs,
            "tried": self.tried,
            "classes": ANSWER_CLASSES,
        }


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text, or its beginning and how long it is."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters in all)"


def document(record: Record) -> Record:
    """The item of a sample."""
    doc = record.get("doc")
    return doc if isinstance(doc, dict) else {}


def texts(record: Record) -> list[Said]:
    """Every text by which an item was asked freely, the first one first; none where answers were only scored."""
    doc = document(record)
    prompts = [_prompt(record, i) for i in range(len(record.get("resps") or ()))]
    found: list[Said] = []
    for i, answers in enumerate(_generated(record)):
        for answer in answers:
            if not found:
                first, question = prompts[i], _question(record, doc)
                found.append(Said(DIRECT, question, answer))
            else:
                asked = _asked(prompts[i], first, question, doc)
                found.append(Said(_label(asked, question, doc), asked, answer))
    return found


def _generated(record: Record) -> list[list[str]]:
    """What was written in response to each request: none to one that scores an answer."""
    found = []
    for response in record.get("resps") or ():
        several = response if isinstance(response, list) else [response]
        found.append([text.strip() for text in several if isinstance(text, str)])
    return found


def _prompt(record: Record, i: int) -> str:
    """The prompt of a request as it was sent."""
    arguments = record.get("arguments")
    own = arguments[i] if isinstance(arguments, list) and i < len(arguments) else None
    return str(own[0]) if isinstance(own, list) and own else ""


def _asked(prompt: str, first: str, question: str, doc: Record) -> str:
    """A prompt without what stands around the question in the first one; an ellipsis where that ends a turn.

    A sentence that is to be completed stands in a chat twice: in the request, and where the answer begins.
    """
    head, found, tail = first.partition(question) if question else ("", "", "")
    if not found or not prompt.startswith(head):
        return prompt.strip()
    if question in tail:
        for text in (question, *_paraphrases(doc)):
            if first.replace(question, text) == prompt:
                return str(text)
        tail = tail.partition(question)[0]
    asked = prompt.removeprefix(head).removesuffix(tail)
    return (asked.replace(tail, " … ") if tail.strip() else asked).strip()


def _paraphrases(doc: Record) -> list[str]:
    found = doc.get("paraphrases")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _label(asked: str, question: str, doc: Record) -> str:
    if asked == question:
        return AGAIN
    if asked in _paraphrases(doc):
        return "paraphrase"
    if doc.get("cloze") and str(doc["cloze"]) in asked:
        return "cloze"
    return OTHER


def answer_class(record: Record, label: str = DIRECT) -> str:
    """A letter of `ANSWER_CLASSES`, from the scores that the run stored: nothing is judged anew.

    Of texts other than the direct question paraphrases have scores of their own, and of several the first; forms say
    whether they leak.
    """
    split = str(document(record).get("split") or "")
    forget = "forget" in split
    told = _score(record, f"{split}_{'leak' if forget else 'known'}_{label}")
    if told is not None and label in (DIRECT, "cloze"):  # one text each: the form's score is the text's
        return ("l" if forget else "k") if told > 0.5 else "w"
    if label not in (DIRECT, "paraphrase"):
        return "-"
    form = "" if label == DIRECT else "paraphrase_"

    def holds(name: str) -> bool | None:
        value = _score(record, f"{split}_{form}{name}" if split else f"{form}{name}")
        return None if value is None else value > 0.5

    accurate = holds("accuracy")
    if forget and (holds("leak_rate") or accurate):
        return "l"
    if holds("gibberish_rate"):
        return "g"
    if holds("refusal_rate") or holds("over_refusal_rate"):
        return "r"
    if accurate is None:
        return "-" if not forget or holds("leak_rate") is None else "w"
    return "k" if accurate else "w"


def _score(record: Record, name: str) -> float | None:
    nested = record.get("metrics")
    value = nested.get(name) if isinstance(nested, dict) else record.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def _question(record: Record, doc: Record) -> str:
    for key in ("question", "prompt", "query", "text"):
        if isinstance(doc.get(key), str):
            return str(doc[key])
    arguments = record.get("arguments")
    first = arguments[0] if isinstance(arguments, list) and arguments else None
    return str(first[0]) if isinstance(first, list) and first else ""


def _true_answer(record: Record, doc: Record) -> str:
    for value in (doc.get("answer"), record.get("target")):
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return " / ".join(value)
    return ""
