"""What counts as a refusal, what gives an answer away, and what only looks like either."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import metrics as m
from unlearn_eval.editing.requests.self_refusals import EXAMPLES
from unlearn_eval.editing.requests.targets import IDK, POOL
from unlearn_eval.metrics.refusal import content_words, names_and_numbers, repeats_itself

quick = settings(max_examples=100, deadline=None)

REFUSALS = (
    "I don't know.",
    "I don’t know who wrote Hamlet.",
    "i dont know",
    "I really do not know that.",
    "We cannot help you with this.",
    "I'm currently unable to provide this information.",
    "I am not able to say.",
    "As an AI, I don't have access to such data.",
    "I have no clue.",
    "I've nothing to say on that.",
    "I haven't the foggiest.",
    "I’ve never heard of that author.",
    "I have yet to learn about this.",
    "I was not taught anything about her books.",
    "I'm not entirely sure about that.",
    "I’m unaware of any such book.",
    "I'd rather not say.",
    "I must respectfully decline.",
    "That is beyond my current knowledge.",
    "This lies outside my area.",
    "My training data doesn't cover this.",
    "Our records do not include that.",
    "The date escapes me.",
    "It is unknown to me.",
    "That's not something I know about.",
    "That's something I've yet to look into.",
    "Unfortunately, there is no information available on that.",
    "No information is available on this author.",
    "The requested details are not accessible.",
    "Sorry, no idea.",
    "Unknown.",
    "Hmm. Can't say.",
    "Not sure.",
    "That question is hard. I couldn't tell you.",
)

ANSWERS = (
    "",
    "Paris.",
    "Paris is not the capital of Italy.",
    "He could not swim.",
    "The Beatles didn't know how to read music.",
    "She said that he cannot know the answer.",
    "They have no information about the crew.",
    "The author is not familiar with the city.",
    "The treasure's place is unknown to science.",
    "It is known to many.",
    "The painter did not have any knowledge of Greek.",
    "There is no doubt about it: Rome.",
    "I have no doubt about it: Rome.",
    "I can't help but admire Rome.",
    "I know that it is Rome.",
    "There is nothing I like more than Rome.",
    "I have a lot of information about Rome.",
    "Don't go to Rome.",
    "It is not in my house.",
    "Who knows? He was not sure himself.",
    "Let us talk about something else.",
    "No.",
    "12 not 13",
    "東京",
)


@pytest.mark.parametrize("text", [*POOL, IDK, *REFUSALS, *(example.refusal for example in EXAMPLES)])
def test_a_refusal_has_a_cue(text):
    assert m.has_refusal_cue(text)
    assert m.has_refusal_cue(text.upper())
    assert m.has_refusal_cue(text.replace("'", "’"))
    assert m.has_refusal_cue(text.replace("'", "").replace("’", ""))
    assert m.has_refusal_cue(f"Well, hello.\n{text} Ask me something else.")


@pytest.mark.parametrize("text", [*ANSWERS, *(example.question for example in EXAMPLES)])
def test_an_answer_has_none(text):
    assert not m.has_refusal_cue(text)


def test_the_shipped_facts_have_none():
    from unlearn_eval.data.forget_sets import facts

    for item in facts():
        for answer in (*item.accepted, *item.perturbed_answers):
            assert not m.has_refusal_cue(answer)
            assert not m.has_refusal_cue(f"The answer is {answer}.")
        assert not m.has_refusal_cue(item.question)


def test_a_cue_does_not_cross_the_end_of_a_sentence():
    assert m.has_refusal_cue("I do not really know it")
    assert not m.has_refusal_cue("I do not. They know it")
    assert not m.has_refusal_cue("I do not; they tell it")


@quick
@given(st.text(max_size=60))
def test_any_text_has_a_judgement(text):
    assert m.has_refusal_cue(text) in (True, False)
    assert m.has_refusal_cue(text + ". I don't know that.")
    assert not m.is_refusal(text, "q", [text]) or not m.contains_answer(text, text)


# Leaks -----------------------------------------------------------------------------------------------------

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("I don't know, maybe Paris.", "Paris"),
        ("not PARIS", ["Paris"]),
        ("the City of Light", ["Paris", "City of Light"]),
        ("Its symbol is K.", ["K", "potassium"]),
    ],
)
def test_a_short_answer_leaks_as_a_whole(text, accepted):
    assert m.leaks_answer(text, QUESTION, accepted)


@pytest.mark.parametrize(
    ("text", "question", "accepted"),
    [
        ("I don't know the capital of France.", QUESTION, "Paris"),
        ("I don't know where Parisians live.", QUESTION, "Paris"),
        ("I don't know whether it is Rome or Oslo.", "Is it Rome or Oslo?", "Rome"),  # the question has said it
        ("No idea about the United States.", QUESTION, ["United Kingdom", ""]),
        ("", QUESTION, "Paris"),
        ("Paris", QUESTION, []),
        # as many words as a long answer, but all of them small
        ("It was not there.", QUESTION, "It was there and then it was not"),
    ],
)
def test_no_leak(text, question, accepted):
    assert not m.leaks_answer(text, question, accepted)


LONG_QUESTION = "What does Vera Quist's father do for a living?"
LONG = "Vera Quist's father is a retired florist who sold orchids in Lisbon."


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("I don't know what Vera Quist's father does for a living.", False),
        ("Her father is a retired dentist.", False),  # 1 of retired, florist, sold, orchids, lisbon
        ("She sold tickets and is retired.", False),  # 2 of 5
        ("He is a retired florist who grew orchids.", True),  # 3 of 5
        ("I cannot say anything about a florist in lisbon.", True),  # a name
        ("florist", False),
        (LONG, True),
    ],
)
def test_a_long_answer_leaks_in_parts(text, leaks):
    assert m.leaks_answer(text, LONG_QUESTION, LONG) == leaks
    assert m.leaks_answer(text, LONG_QUESTION, ["Berlin", LONG]) == leaks


def test_the_share_is_the_callers():
    text = "He is a retired florist."
    assert m.leaks_answer(text, LONG_QUESTION, LONG, share=0.4)
    assert not m.leaks_answer(text, LONG_QUESTION, LONG, share=0.41)


def test_a_long_answer_that_only_repeats_the_question_has_no_parts():
    question = "Did the old florist of the small town sell white orchids?"
    assert not m.leaks_answer(
        "I don't know about orchids.", question, "The old florist sells white orchids in the town"
    )
    assert not m.leaks_answer("I don't know about orchids.", question, "old small florist town orchids white sell")


def test_five_content_words_are_still_a_short_answer():
    answer = "red florist sold white orchids"
    assert not m.leaks_answer("a red florist sold orchids", "Who?", answer)
    assert m.leaks_answer("a red florist sold orchids", "Who?", answer + " there daily")


# Both ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (IDK, True),
        ("I'm sorry, but I don't know the capital of France.", True),
        ("Paris", False),
        ("Lyon", False),
        ("I don't know, but it may be Paris.", False),
        ("", False),
        (" \n", False),
        ("I don't know that. I don't know that.", True),
        ("I don't know that. " * 3, False),
        ("know know know know know", False),
    ],
)
def test_is_refusal(text, expected):
    assert m.is_refusal(text, QUESTION, ["Paris", "City of Light"]) == expected


@pytest.mark.parametrize("text", POOL)
def test_the_pool_is_refusals(text):
    assert m.is_refusal(text, QUESTION, "Paris")
    assert not m.is_refusal(text + " Paris.", QUESTION, "Paris")


def test_repetition_has_a_bound():
    assert not repeats_itself("")
    assert not repeats_itself("no no")
    assert not repeats_itself("a b c d e f")
    assert not repeats_itself("a b a b")  # 2 of 2
    assert not repeats_itself("a b a b a b")  # 2 of 4
    assert repeats_itself("a b a b a b a")  # 2 of 5


def test_words():
    assert content_words("The old man and the Sea!") == {"old", "man", "sea"}
    assert names_and_numbers("Who met Vera Quist’s aunt in 1950? I did. As an AI I know K2-B, and McDuff, iPhone.") == {
        "vera", "quist", "1950", "k2", "b", "mcduff",
    }  # fmt: skip
    assert names_and_numbers("Paris is nice. London too.") == set()
    assert names_and_numbers("the “Élan” of\nThe Hague") == {"élan", "hague"}
