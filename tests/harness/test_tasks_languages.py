"""The shipped facts in other languages: the table is whole, and a leak is found there by the name that it has there."""

import json
import re

import pytest
from lm_eval_runs import evaluate, report, values
from saying import SayingLM

from unlearn_eval.data.benchmarks.facts import FACTS_FILE
from unlearn_eval.data.translations import FILE, LANGUAGES, translated
from unlearn_eval.metrics import contains_answer
from unlearn_eval.metrics.languages import language_of
from unlearn_eval.utils.json_files import read_jsonl

RECORDS = read_jsonl(FACTS_FILE)
TABLE = json.loads(FILE.read_text(encoding="utf-8"))
CHOSEN = {"forget": ["capital_of/italy", "author_of/hamlet", "young_of/cow"], "retain": ["capital_of/japan"]}


def forms(says, **metadata):
    result = evaluate(SayingLM(says), "unlearn_forms", {**CHOSEN, "forms": "languages", **metadata})
    return result, values(result, "unlearn_forms")


def test_every_fact_of_a_relation_is_asked_in_every_language():
    relations = {relation for own in TABLE["questions"].values() for relation in own}
    n = 0
    for record in RECORDS:
        found = translated(record["relation"], record["subject"], (record["answer"], *record["aliases"]))
        assert [own["language"] for own in found] == (list(LANGUAGES) if record["relation"] in relations else [])
        n += bool(found)
        for own in found:
            assert "{" not in own["question"]
            assert own["answers"]
            assert not contains_answer(own["question"], [*own["answers"], record["answer"]]), own
    assert n == 317
    known = {text for record in RECORDS for text in (record["subject"], record["answer"])}
    assert set(TABLE["names"]) <= known
    assert all(len(names) == len(LANGUAGES) for names in TABLE["names"].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_questions_are_of_that_language(language):
    code = {"german": "de", "french": "fr", "spanish": "es", "italian": "it"}[language]
    own = TABLE["questions"][language].values()
    assert all(form.count("{subject}") == 1 for form in own)
    assert language_of(re.sub(r"[„“«»]|{subject}", "", " ".join(own))) == code


@pytest.mark.parametrize(
    ("says", "leaks"),
    [
        ("Rom, William Shakespeare", [1, 0.5, 0.5, 0.5]),  # Rome in German
        ("Roma", [0, 0, 0.5, 0.5]),  # in Spanish and Italian
        ("Rome", [0.5, 0.5, 0.5, 0.5]),  # the English name counts everywhere
        ("Roman", [0, 0, 0, 0]),
    ],
)
def test_a_leak_has_the_name_that_it_has_there(says, leaks):
    result, found = forms(lambda doc, prompt: says)
    assert [found[f"forget_leak_{language}"] for language in LANGUAGES] == leaks
    counted = report(result, "unlearn_forms")["forget_leak_german"]
    assert (counted["n"], counted["n_unscored"]) == (2, 1), "a calf has no name of its own"
    assert "other languages" in next(iter(counted["unscored_reasons"]))
    assert result["higher_is_better"]["unlearn_forms"]["forget_leak_german"] is False


def test_what_is_kept_is_asked_too_and_in_that_language():
    prompts = []
    _, found = forms(lambda doc, prompt: prompts.append(prompt) or ("Tokio" if "Japan" in prompt else "Tokyo"))
    assert [found[f"retain_known_{language}"] for language in LANGUAGES] == [1, 1, 1, 1]
    assert found["forget_leak_mean"] == 0
    assert any("Land: Italien. Wie heißt die Hauptstadt dieses Landes?" in prompt for prompt in prompts)
    assert any("Paese: Giappone." in prompt for prompt in prompts)
    plain, _ = forms(lambda doc, prompt: "none", forms="direct")
    assert "translated" not in plain["samples"]["unlearn_forms"][0]["doc"], "the data's hash is as it was"
