"""The English of documents is what `make check` holds it to; and what is wrong is found."""

import pytest
from scripts_as_modules import script


@pytest.fixture(scope="module")
def style():
    return script("check_style")


def test_documents_are_american_and_have_no_endless_sentences(style):
    for path in style.documents():
        text = path.read_text(encoding="utf-8")
        assert style.misspelled(text) == [], path
        assert "reference" in path.parts or style.long_sentences(text) == [], path


def test_british_words_are_found_in_prose_alone(style):
    assert style.misspelled("It is normalised; neighbours are labelled.") == ["normalised", "neighbours", "labelled"]
    assert style.misspelled("A `normalised` one, [there](optimise.md), otherwise precise and raised.") == []
    assert style.misspelled(f"*{style.TITLES[0]}*, towards") == ["towards"]
    code = 'def f():\n    """We optimise."""\n    return "colour"  # a behaviour\n'
    assert [style.misspelled(own) for own in style.prose_of(code)] == [["optimise"], ["behaviour"]]


def test_long_sentences_are_found(style):
    long = " ".join(["word"] * (style.MOST_WORDS + 1))
    assert style.long_sentences(f"Short. {long}. Short.") == [f"{long}."]
    assert style.long_sentences(long[:-5]) == []
    assert style.long_sentences(f"| {long} |\n\n```\n{long}\n```\n") == []
    half = long[: len(long) // 2]
    assert style.long_sentences(f"- {half}\n- {half}\n") == []


def test_commits_are_looked_at(style, monkeypatch):
    monkeypatch.setattr(style, "subjects", lambda: ["x" * 73, "y" * 72])
    monkeypatch.setattr(style, "documents", list)
    monkeypatch.setattr(style, "sources", list)
    assert style.problems() == ["a commit's subject is too long: " + "x" * 73]
