"""What was asked and answered, item by item, for a page: every text of an item once, and each run's answer to it.

A sample holds its prompts as they were sent. The first text is the item's own question; the others are what differs
from its prompt, called by what they are of the item (a paraphrase, a cloze, a sample of the same question).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from unlearn_eval.results.files import scores_of
from unlearn_eval.utils.json_files import Record

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
        chain: of a text over two facts, what it goes through.
        key: what such a text is called by in the record's scores.
    """

    label: str
    question: str
    answer: str
    chain: str = ""
    key: str = ""


@dataclass
class Answers:
    """Every question once, and what each run answered, as indices into a pool of strings.

    Attributes:
        strings: each different text once.
        questions: by task, a row (id, split, question, true answer, label, item, chain) for each text that an item was
            asked by; all are indices but the item, which is the row of its first text.
        runs: by run and task, `said` (an index for each row, -1 if it was not asked) and `classes` (a letter of
            `ANSWER_CLASSES` for each row).
        tried: by run and attack, what was answered beside (`attacked.py`).
    """

    strings: list[str] = field(default_factory=list)
    questions: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
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
                known = truth, text.label, item, times[text.question], text.chain
                row = self.row(task, key, split, text.question, *known)
                item = row if item < 0 else item
                said[row] = self.string(text.answer), answer_class(record, text.label, text.key)
        if said:
            last = max(said) + 1
            self.runs.setdefault(run, {})[task] = {
                "said": [said[i][0] if i in said else -1 for i in range(last)],
                "classes": "".join(said[i][1] if i in said else "-" for i in range(last)),
            }

    def row(
        self,
        task: str,
        key: str,
        split: str,
        question: str,
        truth: str,
        label: str,
        item: int = -1,
        times: int = 1,
        chain: str = "",
    ) -> int:
        """The row of a text by which an item was asked, for the so manieth time; made if it is new.

        Args:
            task, key: the task, and the item in it.
            split, question, truth, label: what the row holds.
            item: the row of the item's first text; -1 is this one.
            times: how often the item was asked by this text so far, this one included.
            chain: what the text goes through, if it is one over two facts.
        """
        rows = self.questions.setdefault(task, [])
        row = self._rows.setdefault((task, key, question, times), len(rows))
        if row == len(rows):
            pooled = [self.string(one) for one in (key, split, question, truth, label)]
            rows.append((*pooled, row if item < 0 else item, self.string(chain)))
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
                first = prompts[i]
                beside = _asked_alone(first, doc) or Said(DIRECT, _question(record, doc), "")
                question = beside.question
                found.append(replace(beside, answer=answer))
            else:
                asked = _asked(prompts[i], first, question, doc)
                beside = _beside(asked, doc) or Said(_label(asked, question, doc), asked, "")
                found.append(replace(beside, answer=answer))
    return found


def _beside(asked: str, doc: Record) -> Said | None:
    """A text that asks for what follows from the item: over two facts, or as its set brings it."""
    for own in _records(doc.get("chains")):
        if own.get("question") == asked:
            steps = [str(step) for step in own.get("steps") or ()]
            return Said(f"two hops, {own.get('place')}", asked, "", " → ".join(steps), str(own.get("key")))
    for own in _records(doc.get("linked")):
        if own.get("question") == asked:
            return Said(str(own.get("kind")), asked, "", "", asked)
    tests = [(own, _records(own.get("questions"))) for own in _records(doc.get("consequences"))]
    for own, asks in sorted(tests, key=lambda test: not test[0].get("known")):  # what was known says what leaks
        if any(one.get("question") == asked for one in asks):
            kind = str(own.get("kind"))
            key = f"{kind}: {asks[0].get('question')}" if own.get("known") else ""
            return Said(kind.replace("_", " "), asked, "", "", key)
    return None


def _asked_alone(prompt: str, doc: Record) -> Said | None:
    """The text over several facts that a first prompt holds, in place of the item's own question or as that."""
    if str(doc.get("question")) in prompt:
        return _beside(str(doc.get("question")), doc)
    known = [str(own.get("question")) for name in ("chains", "linked") for own in _records(doc.get(name))]
    return next((_beside(text, doc) for text in known if text in prompt), None)


def _records(value: object) -> list[Record]:
    return [own for own in value if isinstance(own, dict)] if isinstance(value, list) else []


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


def answer_class(record: Record, label: str = DIRECT, key: str = "") -> str:
    """A letter of `ANSWER_CLASSES`, from the scores that the run stored: nothing is judged anew.

    Of texts other than the direct question paraphrases have scores of their own, and of several the first; forms say
    whether they leak. A text with a key counts where the unedited model gave its answer.
    """
    split = str(document(record).get("split") or "")
    forget = "forget" in split
    if key:
        rows = [
            own
            for name, item in scores_of(record).items()
            if name.endswith(("_known_before", "_tests"))
            for own in _asked_in(item)
        ]
        found = next((own for own in rows if own.get("key") == key), {})
        if not found.get("before"):
            return "-"
        return ("l" if forget else "k") if found.get("now") else "w"
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


def _asked_in(item: object) -> list[Record]:
    """The questions beside a fact in what a sample stores of them."""
    return [own for value in item.values() for own in _records(value)] if isinstance(item, dict) else []


def _score(record: Record, name: str) -> float | None:
    value = scores_of(record).get(name)
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
