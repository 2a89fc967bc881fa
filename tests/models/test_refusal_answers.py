"""The labeled answers: every class, every source, and nothing in two splits."""

import json
from collections import Counter, defaultdict

import pytest
from lm_eval_runs import TASKS

from unlearn_eval.metrics.alignment import FEATURES
from unlearn_eval.metrics.refusal import is_refusal
from unlearn_eval.metrics.text import contains_answer
from unlearn_eval.models.refusal_judge import CALIBRATION_FILE, read_references
from unlearn_eval.results.ratings import CLASSES
from unlearn_eval.utils.provenance import sha256_of_file

FOLDER = TASKS / "refusal"
ANSWERS = FOLDER / "answers.jsonl"


@pytest.fixture(scope="module")
def answers():
    return [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]


def test_there_are_enough_of_every_kind(answers):
    assert len(answers) >= 600
    assert sum(a["source"] == "real" for a in answers) >= len(answers) / 2
    counts = Counter(a["label"] for a in answers)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 15
    assert Counter(a["split"] for a in answers).keys() == {"train", "test"}


def test_every_answer_is_whole(answers):
    assert len({a["id"] for a in answers}) == len(answers)
    for a in answers:
        assert a["source"] in ("real", "written")
        assert (a["model"] is None) == (a["source"] == "written")
        assert a["method"]
        assert a["group"]
        assert a["question"]
        assert a["template"]
        assert isinstance(a["accepted"], list)
        assert isinstance(a["wrong"], list)
        assert (a["base_nll"] is None) == (not a["text"].strip())


def test_nothing_is_in_both_splits(answers):
    for key in ("template", "text"):
        splits = defaultdict(set)
        for a in answers:
            splits[" ".join(a[key].lower().split())].add(a["split"])
        assert all(len(own) == 1 for own in splits.values())


def test_no_answer_stands_twice(answers):
    assert len({(a["question"], a["text"]) for a in answers}) == len(answers)
    assert max(Counter(a["text"] for a in answers if a["text"]).values()) <= 10  # edited models repeat themselves


def test_the_references_are_none_of_the_answers(answers):
    texts = read_references()
    assert not {a["text"] for a in answers} & {*texts.refusals, *texts.contrast}


def test_later_answers_are_new(answers):
    later = [json.loads(line) for line in (FOLDER / "later.jsonl").read_text(encoding="utf-8").splitlines()]
    assert f"| `later.jsonl` | {len(later)} more" in (FOLDER / "README.md").read_text()
    assert not {a["text"] for a in later} & {a["text"] for a in answers}
    assert not {a["question"] for a in later} & {a["question"] for a in answers}
    assert {a["label"] for a in later} == {a["label"] for a in answers}
    assert all(a["base_nll"] is not None for a in later)


LANGUAGES = ("en", "fr", "de", "es", "zh", "ja", "ru", "ar", "hi")


@pytest.fixture(scope="module")
def kinds():
    return [json.loads(line) for line in (FOLDER / "kinds.jsonl").read_text(encoding="utf-8").splitlines()]


def test_further_kinds_are_new_and_in_two_parts(answers, kinds):
    assert f"| `kinds.jsonl` | {len(kinds)} more" in (FOLDER / "README.md").read_text()
    assert not {a["text"] for a in kinds} & {a["text"] for a in answers}
    parts = {split: {a["text"].casefold() for a in kinds if a["split"] == split} for split in ("train", "test")}
    assert not parts["train"] & parts["test"]
    assert len({a["id"] for a in kinds}) == len(kinds)
    assert {a["label"] for a in kinds} <= set(CLASSES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_further_kinds_are_of_each_language(language, kinds):
    for split in ("train", "test"):
        own = [a for a in kinds if (a["language"], a["split"]) == (language, split)]
        good = [a for a in own if a["label"] in ("generic_refusal", "contextual_refusal")]
        assert len(own) >= 15
        assert 0.4 <= len(good) / len(own) <= 0.65
        assert all(contains_answer(a["text"], a["accepted"]) for a in own if a["label"] == "refuse_then_leak")
        assert not any(contains_answer(a["text"], a["accepted"]) for a in good)


@pytest.mark.parametrize(
    ("language", "recall", "false_positives"),
    [(language, 0.6 if language == "en" else 0.85, 0.0) for language in LANGUAGES],
)
def test_refusals_by_words_agree_on_held_out_answers(language, recall, false_positives, kinds):
    """What was measured once, before anything was changed for it: 72 of 78, and none of 66."""
    found = {True: [], False: []}
    for a in kinds:
        if (a["language"], a["split"]) == (language, "test"):
            good = a["label"] in ("generic_refusal", "contextual_refusal")
            found[good].append(is_refusal(a["text"], a["question"], a["accepted"], a["wrong"]))
    assert sum(found[True]) >= recall * len(found[True])
    assert sum(found[False]) <= false_positives * len(found[False])


def test_the_calibration_is_of_these_files():
    content = json.loads(CALIBRATION_FILE.read_text())
    assert content["answers_sha256"] == sha256_of_file(ANSWERS)
    assert content["references_hash"] == read_references().hash
    assert tuple(content["weights"]) == FEATURES


def test_the_readme_has_the_files_numbers(answers):
    text = (FOLDER / "README.md").read_text()
    references = read_references()
    assert f"| `answers.jsonl` | {len(answers)} labeled answers |" in text
    assert f"{len(references.refusals)} reference refusals" in text
    assert f"{len(references.contrast)} contrast texts" in text
