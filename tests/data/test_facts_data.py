"""The shipped facts keep the rules of tasks/facts/README.md; each rule is broken once on purpose."""

import copy
import functools
import importlib.util
import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tasks" / "facts"
TEXT = (FOLDER / "facts.jsonl").read_text(encoding="utf-8")
FACTS = [json.loads(line) for line in TEXT.splitlines()]
KEYS = "id relation subject question cloze answer aliases paraphrases wrong_answers neighbors group".split()
COUNTRY_RELATIONS = {"capital_of", "continent_of", "language_of", "currency_of"}

# Answers that are right, or were once, or that many people would accept: never offered as wrong.
DEFENSIBLE = {
    ("currency_of/france", "franc"),
    ("currency_of/italy", "lira"),
    ("currency_of/sweden", "krone"),
    ("language_of/finland", "Swedish"),
    ("language_of/israel", "Arabic"),
    ("sport_of/michael_jordan", "baseball"),
    ("young_of/wolf", "cub"),
    ("young_of/swan", "chick"),
    ("composer_of/pictures_at_an_exhibition", "Maurice Ravel"),
    ("roman_name_of/selene", "Diana"),
}


@functools.cache
def words(text):
    """The words of a text without case, accents and punctuation, between single spaces."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " " + " ".join(re.findall(r"\w+", plain)) + " "


def matches(a, b):
    return words(a) in words(b) or words(b) in words(a)


def problems_of_one(fact, by_id, answers_of):
    """What is wrong with one fact, given all the others."""
    names = [fact["answer"], *fact["aliases"]]
    prompts = [fact["question"], fact["cloze"], *fact["paraphrases"]]
    asked = [fact["question"], *fact["paraphrases"]]
    wrong, near, cloze = fact["wrong_answers"], fact["neighbors"], fact["cloze"]
    texts = [v for value in fact.values() for v in (value if isinstance(value, list) else [value])]
    others = [by_id[n] for n in near if n in by_id]
    last_word = cloze.split()[-1]
    checks = {
        "keys": list(fact) == KEYS,
        "text is a trimmed, non-empty string": all(
            isinstance(t, str) and t and t == " ".join(t.split()) for t in texts
        ),
        "template left in the text": not any("{" in t or "}" in t for t in texts),
        "id": re.fullmatch(re.escape(fact["relation"]) + r"/[a-z0-9]+(_[a-z0-9]+)*", fact["id"]),
        "subject in every prompt": all(fact["subject"] in p for p in prompts),
        "prompt starts with a capital": all(not p[0].islower() for p in prompts),
        "question mark": all(p.endswith("?") and p.count("?") == 1 for p in asked),
        "two paraphrases": len(fact["paraphrases"]) == 2,
        "paraphrases have their own wording": len({words(p) for p in asked}) == 3,
        "cloze leads into the answer": cloze[-1].isalnum() and last_word != "an",
        "a before a vowel": last_word != "a" or fact["answer"][0].lower() not in "aeiou",
        "answer is short": 1 <= len(fact["answer"].split()) <= 3,
        "answer occurs in a prompt": not any(words(n) in words(p) for n in names for p in prompts),
        "subject gives the answer away": not any(
            len(n) > 2 and n.casefold() in fact["subject"].casefold() for n in names
        ),
        "answer repeats the subject": fact["subject"].casefold() not in fact["answer"].casefold(),
        "aliases are distinct": len({n.casefold() for n in names}) == len(names),
        "four wrong answers": len(wrong) == len({words(w) for w in wrong}) == 4,
        "wrong answer is an answer of the relation": set(wrong) <= answers_of[fact["relation"]],
        "wrong answer matches the answer": not any(matches(w, n) for w in wrong for n in names),
        "wrong answer occurs in a prompt": not any(words(w) in words(p) for w in wrong for p in prompts),
        "wrong answer is defensible": not any((fact["id"], w) in DEFENSIBLE for w in wrong),
        "three neighbors": len(near) == len(set(near)) == len(others) == 3 and fact["id"] not in near,
        "neighbor of the same relation": all(o["relation"] == fact["relation"] for o in others),
        "neighbor has the same answer": not any(
            matches(n, m) for o in others for n in names for m in [o["answer"], *o["aliases"]]
        ),
        "group": fact["group"] == fact["subject"],
    }
    return [f"{fact['id']}: {rule}" for rule, kept in checks.items() if not kept]


def problems(facts):
    """Everything that is wrong with a list of facts."""
    by_id = {f["id"]: f for f in facts}
    answers_of, relations_of = defaultdict(set), defaultdict(set)
    for f in facts:
        answers_of[f["relation"]].add(f["answer"])
        relations_of[f["group"]].add(f["relation"])
    found = [p for f in facts for p in problems_of_one(f, by_id, answers_of)]
    for what in ("id", "question", "cloze"):
        repeated = [value for value, n in Counter(f[what] for f in facts).items() if n > 1]
        found += [f"repeated {what}: {value}" for value in repeated]
    counts = Counter(f["relation"] for f in facts)
    found += [f"too few in {relation}" for relation, n in counts.items() if n < 18]
    if len(facts) < 300 or len(counts) < 12 or counts["capital_of"] < 60:
        found.append("too few facts")
    for group, relations in relations_of.items():
        same_thing = relations <= COUNTRY_RELATIONS or relations <= {"element_symbol", "discoverer_of"}
        if len(relations) > 1 and not same_thing:
            found.append(f"one group for two things: {group}")
    return found


def test_the_shipped_facts_keep_every_rule():
    assert problems(FACTS) == []


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("id", "capital_of/Fránce", "id"),
        ("subject", "Gaul", "subject in every prompt"),
        ("question", "What is the capital of France", "question mark"),
        ("question", "What is the capital of {s} France?", "template left in the text"),
        ("question", "Is Paris the capital of France?", "answer occurs in a prompt"),
        ("question", "Is Rome the capital of France?", "wrong answer occurs in a prompt"),
        ("question", "what is the capital of France?", "prompt starts with a capital"),
        ("question", "What is the capital of Germany?", "repeated question"),
        ("cloze", "The capital of France is ", "text is a trimmed"),
        ("cloze", "The capital of France is:", "cloze leads into the answer"),
        ("cloze", "France has as its capital a", "a before a vowel"),
        ("answer", "old town of Paris proper", "answer is short"),
        ("answer", "Fran", "subject gives the answer away"),
        ("answer", "Francetown", "answer repeats the subject"),
        ("aliases", ["capital"], "answer occurs in a prompt"),
        ("aliases", ["paris"], "aliases are distinct"),
        ("aliases", ["Rome"], "wrong answer matches the answer"),
        ("aliases", ["Eternal City of Rome"], "wrong answer matches the answer"),
        ("paraphrases", ["Which city is the capital of France?"], "two paraphrases"),
        (
            "paraphrases",
            ["What is the capital, of France?", "France has which capital?"],
            "paraphrases have their own wording",
        ),
        ("wrong_answers", ["Rome", "Madrid", "Berlin"], "four wrong answers"),
        ("wrong_answers", ["Rome", "Madrid", "Berlin", "Rome"], "four wrong answers"),
        ("wrong_answers", ["Rome", "Madrid", "Berlin", "Paris"], "wrong answer matches the answer"),
        ("wrong_answers", ["Rome", "Madrid", "Berlin", "yen"], "wrong answer is an answer of the relation"),
        ("neighbors", ["capital_of/italy", "capital_of/spain"], "three neighbors"),
        ("neighbors", ["capital_of/italy", "capital_of/spain", "capital_of/france"], "three neighbors"),
        ("neighbors", ["capital_of/italy", "capital_of/spain", "capital_of/atlantis"], "three neighbors"),
        ("neighbors", ["capital_of/italy", "capital_of/spain", "currency_of/japan"], "same relation"),
        ("group", "Jaws", "group"),
        ("relation", "capital", "id"),
    ],
)
def test_each_rule_can_fail(field, value, rule):
    facts = [copy.deepcopy(f) for f in FACTS if f["relation"] in {"capital_of", "currency_of"}]
    france = next(f for f in facts if f["id"] == "capital_of/france")
    france["wrong_answers"] = ["Rome", "Madrid", "Berlin", "Vienna"]
    assert problems(facts) == ["too few facts"]  # two relations only, to be quick
    france[field] = value
    if field == "cloze" and value.endswith(" a"):
        france["answer"] = "Orly"
    assert any(rule in p for p in problems(facts))


def test_rules_about_the_whole_set_can_fail():
    def changed(fact_id, **fields):
        return [f | fields if f["id"] == fact_id else f for f in FACTS]

    assert "repeated id: capital_of/france" in problems([*FACTS, FACTS[0]])
    calves = [f for f in FACTS if f["relation"] == "young_of"]
    assert "too few in young_of" in problems([f for f in FACTS if f not in calves[17:]])
    assert "too few facts" in problems([f for f in FACTS if f["relation"] != "capital_of"])
    hamlet = changed("author_of/hamlet", neighbors=["author_of/macbeth", "author_of/emma", "author_of/dracula"])
    assert any("neighbor has the same answer" in p for p in problems(hamlet))
    wolf = changed("young_of/wolf", wrong_answers=["cub", "calf", "lamb", "foal"])
    assert any("wrong answer is defensible" in p for p in problems(wolf))
    film = changed("director_of/jaws", group="Hamlet", subject="Hamlet")
    assert any("one group for two things: Hamlet" in p for p in problems(film))
    unordered = [dict(reversed(FACTS[0].items())), *FACTS[1:]]
    assert any("keys" in p for p in problems(unordered))


def test_the_file_is_strict_json_lines():
    def refuse(constant):
        raise ValueError(constant)

    def no_repeats(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    assert TEXT.endswith("\n")
    assert "\r" not in TEXT
    for line in TEXT.splitlines():
        assert json.loads(line, parse_constant=refuse, object_pairs_hook=no_repeats)


def test_the_file_is_what_build_facts_writes(tmp_path):
    out = tmp_path / "facts.jsonl"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_facts.py"), str(out)], check=True)
    assert out.read_bytes() == (FOLDER / "facts.jsonl").read_bytes()


def test_the_tables_have_no_entry_without_use():
    spec = importlib.util.spec_from_file_location("build_facts", ROOT / "scripts" / "build_facts.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert set(tables.ALIASES) <= {f["answer"] for f in FACTS}
    ids, answers = {f["id"] for f in FACTS}, {(f["relation"], f["answer"]) for f in FACTS}
    for fact_id, barred in tables.NOT.items():
        assert fact_id in ids
        assert {(fact_id.split("/")[0], answer) for answer in barred} <= answers


def test_the_library_does_not_import_the_builder():
    sources = [p for room in ("unlearn_eval", "editors", "tasks") for p in (ROOT / room).rglob("*.py")]
    others = [p for p in sources if p.name != "build_facts.py"]
    assert others
    assert not [p for p in others if re.search(r"import.*build_facts", p.read_text(encoding="utf-8"))]


def test_the_readme_counts_are_those_of_the_file():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = {name: int(n) for name, n in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", readme, re.MULTILINE)}
    assert table == Counter(f["relation"] for f in FACTS)
    assert f"{len(FACTS)} facts" in readme
    assert f"{len(table)} relations" in readme
