"""Chains of two facts: what can be joined, how it is asked, and what only looks as if it could be."""

import json
from collections import Counter

import pytest

from unlearn_eval.data.benchmarks.facts import FACTS_FILE, fact_of
from unlearn_eval.data.chains import FIRST, SECOND, Fact, by_item, chains_of
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.metrics import contains_answer, normalise
from unlearn_eval.utils.json_files import read_jsonl

RECORDS = {record["id"]: record for record in read_jsonl(FACTS_FILE)}
FACTS = {key: fact_of(record) for key, record in RECORDS.items()}


def questions(*ids):
    return {chain.key: chain.question for chain in chains_of([FACTS[key] for key in ids])}


def own(key, question, answer, subject, shape="question", **words):
    return Fact(ForgetItem(key, question, answer, subject=subject, shape=shape), **words)


def test_the_shipped_facts_have_so_many_chains():
    chains = chains_of(list(FACTS.values()))
    assert Counter(chain.inverse for chain in chains) == {False: 199, True: 173}
    assert len({chain.key for chain in chains}) == len(chains)
    for chain in chains:
        first, second = RECORDS[chain.first.id], RECORDS[chain.second.id]
        shared = first["subject"] if chain.inverse else first["answer"]
        assert shared == second["subject"]
        assert not contains_answer(chain.question, chain.second.accepted)
        assert not contains_answer(chain.question, shared), "it would be one hop"
        assert contains_answer(chain.question, first["answer"] if chain.inverse else first["subject"])
        assert chain.steps[1:] == (shared, second["answer"])
        assert chain.question.endswith("?")
        assert "{" not in chain.question


def test_two_of_201_names_are_those_of_other_things():
    """Hermes is Mercury in Rome, and mercury has a symbol; Hades is Pluto, and Pluto was discovered."""
    subjects = {normalise(record["subject"]): record["relation"] for record in RECORDS.values()}
    joined = [r for r in RECORDS.values() if normalise(r["answer"]) in subjects]
    pairs = sum(normalise(r["answer"]) == normalise(o["subject"]) for r in joined for o in RECORDS.values())
    assert pairs == 201
    assert questions("roman_name_of/hermes", "element_symbol/mercury") == {}
    assert questions("roman_name_of/hades", "discoverer_of/pluto") == {}


@pytest.mark.parametrize(
    ("ids", "key", "question"),
    [
        (
            ("country_of_city/lyon", "capital_of/france"),
            "country_of_city/lyon > capital_of/france",
            "What is the capital of the home country of the city of Lyon?",
        ),
        (
            ("landmark_located_in/eiffel_tower", "continent_of/france"),
            "landmark_located_in/eiffel_tower > continent_of/france",
            "Which continent is the home country of the Eiffel Tower in?",
        ),
        (
            ("capital_of/japan", "currency_of/japan"),
            "capital_of/japan < currency_of/japan",
            "What is the currency of the country whose capital is Tokyo?",
        ),
        (
            ("country_of_city/rotterdam", "capital_of/netherlands"),
            "country_of_city/rotterdam > capital_of/netherlands",
            "What is the capital of the home country of the city of Rotterdam?",
        ),
        (
            ("sport_of/michael_jordan", "inventor_of/basketball"),
            "sport_of/michael_jordan > inventor_of/basketball",
            "Who invented the sport that Michael Jordan is famous for?",
        ),
    ],
)
def test_a_chain_names_what_it_shares_by_the_first_fact(ids, key, question):
    assert questions(*ids)[key] == question


def test_a_subject_is_told_by_an_answer_that_no_other_has():
    assert "currency_of/japan < capital_of/japan" in questions("currency_of/japan", "capital_of/japan")
    euro = questions("currency_of/france", "currency_of/germany", "capital_of/france")
    assert [key for key in euro if key.startswith("currency_of")] == []


def test_facts_of_a_set_of_ones_own_are_joined_by_quoting_the_first():
    first = own("0", "Where does Ada live?", "Larkhill", "Ada")
    second = own("1", "Who is the mayor of Larkhill?", "Milo Fenn", "Larkhill")
    (chain,) = chains_of([first, second])
    assert chain.question == (
        'Take the answer to the question "Where does Ada live?" and call it X. Who is the mayor of X?'
    )
    assert chain.steps == ("Ada", "Larkhill", "Milo Fenn")
    told = own("2", "Ada lives in", "Larkhill", "Ada", "sentence")
    sentence = own("3", "The mayor of Larkhill is", "Milo Fenn", "Larkhill", "sentence")
    assert [chain.question for chain in chains_of([told, sentence])] == [
        'Take what completes the sentence "Ada lives in ..." and call it X. '
        "Complete this sentence: The mayor of X is ..."
    ]
    named = own("4", "Where does Ada live?", "Larkhill", "Ada", answer_described="the town that Ada lives in")
    assert [chain.question for chain in chains_of([named, second])] == [
        "Who is the mayor of the town that Ada lives in?"
    ]


@pytest.mark.parametrize(
    ("answer", "question", "final"),
    [
        ("larkhill", "Who is the mayor of Larkhill?", "Milo"),  # another case may be another thing
        ("Larkhill", "Who is the mayor of Larkhill?", "Ada"),  # which the question says
        ("Larkhill", "Who is the mayor there?", "Milo"),  # whose subject it does not name
    ],
)
def test_what_cannot_be_joined(answer, question, final):
    subject = "Larkhill" if "Larkhill" in question else None
    assert chains_of([own("0", "Where does Ada live?", answer, "Ada"), own("1", question, final, subject)]) == []


def test_at_most_so_many_at_each_place_those_by_an_answer_first():
    found = by_item(chains_of(list(FACTS.values())), 1)
    places = [(place, chain.inverse) for place, chain in found[FACTS["capital_of/france"].item]]
    assert sorted(places) == [(FIRST, True), (SECOND, False)]
    more = by_item(chains_of(list(FACTS.values())), 3)[FACTS["capital_of/france"].item]
    assert Counter(place for place, _ in more)[SECOND] == 3
    assert json.dumps([chain.steps for _, chain in more])
