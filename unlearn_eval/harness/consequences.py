"""Tests of what follows from an edit, as benchmarks of editing bring them: RippleEdits, MQuAKE, concepts.

A test is a few questions of which any, or every one, has to be answered. It counts only where its conditions hold in
the unedited model (see `unedited.py`): what that one could not do says nothing about the edit. A test without
conditions always counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from unlearn_eval import metrics as m
from unlearn_eval.data.documents import CONSEQUENCES
from unlearn_eval.data.shapes import Asked, asked
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.task import BEFORE, Document, Mean, Metric, OverAll, Scores
from unlearn_eval.harness.unedited import NOT_STORED, SAME, UNKNOWN
from unlearn_eval.results.files import scores_of

NO_TEST = "the record has no such test"
NOT_BEFORE = "its conditions do not hold in the unedited model"
Test = Mapping[str, Any]


@dataclass(frozen=True)
class Rate:
    """A metric: the share of tests passed, of those that count, in the mean over documents.

    Attributes:
        split, kind: which documents, and which of their tests.
        higher_is_better: its direction; None where neither end is good.
    """

    split: str
    kind: str
    higher_is_better: bool | None


def asked_beside(document: Document) -> dict[str, Asked]:
    """The questions of a document's tests and of their conditions, each once."""
    return {name: asked(text, shape) for (text, shape), name in _names(document).items()}


def conditions(document: Document) -> list[str]:
    """The names of those whose answer by the unedited model decides whether a test counts."""
    names = _names(document)
    return list(dict.fromkeys(names[_key(one)] for test in _tests(document) for one in _decides(test)))


def told(text: str, question: str, accepted: Iterable[str]) -> bool:
    """Whether a text gives an answer; one that the question says already counts only as the first words."""
    return any(
        m.contains_answer(text, answer)
        and (
            not m.contains_answer(question, answer)
            or m.contains_answer(" ".join(text.split()[: len(answer.split())]), answer)
        )
        for answer in accepted
    )


def consequence_scores(
    kinds: Iterable[str],
    document: Document,
    generated: Mapping[str, str],
    responses: Mapping[str, Scores],
    unedited: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scores:
    """The scores of one document: for each kind of test the share that is passed, and what becomes of each.

    Args:
        kinds: of tests.
        document: it.
        generated: what the model says to each question.
        responses: those of the unedited model, with `BEFORE` before the names.
        unedited: by id of a document, what the unedited model's result has instead (see `read_unedited`).
    """
    names = _names(document)
    scores: Scores = {REASONS: {}}
    for kind in kinds:
        stored = None if unedited is None else _stored(unedited.get(document["id"], {}), kind)
        rows: list[dict[str, Any]] = []
        reason: str | None = None
        for test in (own for own in _tests(document) if own["kind"] == kind):
            key = f"{kind}: {test['questions'][0]['question']}"
            now, able = _passes(test, generated, names), _holds(test, generated, names)
            before, why = _before(test, names, generated, responses, None if stored is None else stored.get(key, {}))
            reason = reason or why
            rows.append({"key": key, "now": float(now), "able": able, "before": before})
        counted = [row["now"] for row in rows if row["before"]]
        scores[f"passed_{kind}"] = sum(counted) / len(counted) if counted else None
        scores[f"tests_{kind}"] = rows or None
        if not counted:
            why = reason or (NOT_BEFORE if rows else NO_TEST)
            scores[REASONS] |= {key: why for key in (f"passed_{kind}", f"tests_{kind}") if scores[key] is None}
    return scores


def consequence_metrics(rates: Mapping[str, Rate]) -> dict[str, Metric]:
    """The rows of a table: each rate, and how many tests it is over."""
    table: dict[str, Metric] = {}
    for name, own in rates.items():
        table[name] = Mean(own.split, f"passed_{own.kind}", own.higher_is_better)
        table[f"{name}_tests"] = OverAll((own.split,), (f"tests_{own.kind}",), partial(_n_counted, own.kind), None)
    return table


def _tests(document: Document) -> Sequence[Test]:
    return document.get(CONSEQUENCES) or ()


def _key(question: Mapping[str, Any]) -> tuple[str, str]:
    return question["question"], question["shape"]


def _decides(test: Test) -> list[Mapping[str, Any]]:
    """The questions that the unedited model has to answer."""
    return [*test["conditions"], *(test["questions"] if test["known"] else ())]


def _names(document: Document) -> dict[tuple[str, str], str]:
    """Text and shape of a question -> its name."""
    keys = (_key(one) for test in _tests(document) for one in (*test["questions"], *test["conditions"]))
    return {key: f"beside/{i}" for i, key in enumerate(dict.fromkeys(keys))}


def _answered(question: Mapping[str, Any], texts: Mapping[str, str], names: Mapping[tuple[str, str], str]) -> bool:
    text = texts[names[_key(question)]]
    return all(told(text, question["question"], group) for group in question["answers"])


def _passes(test: Test, texts: Mapping[str, str], names: Mapping[tuple[str, str], str]) -> bool:
    results = [_answered(one, texts, names) for one in test["questions"]]
    return all(results) if test["every"] else any(results)


def _holds(test: Test, texts: Mapping[str, str], names: Mapping[tuple[str, str], str]) -> bool:
    known = not test["known"] or _passes(test, texts, names)
    return known and all(_answered(one, texts, names) for one in test["conditions"])


def _before(
    test: Test,
    names: Mapping[tuple[str, str], str],
    generated: Mapping[str, str],
    responses: Mapping[str, Scores],
    stored: Mapping[str, Any] | None,
) -> tuple[bool | None, str | None]:
    """Whether a test counts, or why that is not known."""
    if not _decides(test):
        return True, None
    if stored is not None:
        return stored.get("able"), None if "able" in stored else NOT_STORED
    texts = {}
    for name in (names[_key(one)] for one in _decides(test)):
        response = responses[BEFORE + name]
        if "unscored" in response:
            return None, str(response["unscored"])
        texts[name] = generated[name] if response.get(SAME) else str(response["text"])
    return _holds(test, texts, names), None


def _stored(record: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Key of a test (its kind and first question) -> its row in what a result stores of a document."""
    items = [own for own in scores_of(record).values() if isinstance(own, Mapping)]
    return {str(row["key"]): row for own in items for row in own.get(f"tests_{kind}") or ()}


def _n_counted(kind: str, items: list[Scores]) -> tuple[float | None, float | None, str | None]:
    """How many tests count."""
    rows = [row for item in items for row in item[f"tests_{kind}"] or ()]
    if not rows:
        return None, None, NO_TEST
    if any(row["before"] is None for row in rows):
        return None, None, UNKNOWN
    return float(sum(row["before"] for row in rows)), None, None
