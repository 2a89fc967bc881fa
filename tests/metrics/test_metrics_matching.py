"""Answers found in other scripts, leaks told from what wrong answers say too, refusals that go on to say something."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import metrics as m
from unlearn_eval.metrics.alignment import Question, invents
from unlearn_eval.metrics.dates import date_words
from unlearn_eval.metrics.leaks import gives_away
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=100, deadline=None)
spaceless = st.text(st.sampled_from("他出生于年作者是东京のですค่ะไทย그는에태어났다"), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("generated", "answer", "found"),
    [
        ("他出生于1912年。", "1912", True),
        ("作者是Ada Brook。", "Ada Brook", True),
        ("그는 1912년에 태어났다", "1912", True),
        ("เกิดปี1912ที่", "1912", True),
        ("他42岁", "42", True),
        ("元素符号是K。", "K", True),
        ("Adaさん", "Ada", True),
        ("3.5米", "3.5", True),
        ("ปี ๑๙๑๒", "1912", True),
        ("عام ١٩١٢", "1912", True),
        ("元素符号是OK。", "K", False),
        ("他生于21912年", "1912", False),
        ("作者是Adam Brook。", "Ada Brook", False),
        ("Adamさん", "Ada", False),
        ("他跑了3.5米", "3", False),
    ],
)
def test_words_end_where_the_script_changes(generated, answer, found):
    assert m.contains_answer(generated, answer) is found


@quick
@given(spaceless, spaceless, st.sampled_from(["1912", "Ada Brook", "42", "K", "Larkhill"]))
def test_an_answer_stands_between_letters_of_a_script_without_spaces(before, after, answer):
    assert m.contains_answer(f"{before}{answer}{after}", answer)
    assert not m.contains_answer(f"{before}x{answer}9{after}", answer)


@pytest.mark.parametrize(
    ("reference", "generated", "recall"),
    [
        ("Łódź", "d is the letter", 0.0),
        ("Élan", "Lan is a town", 0.0),
        ("Łódź", "It is Łódź.", 1.0),
        ("E\u0301lan", "\u00c9lan", 1.0),
        ("Москва", "Это Москва", 1.0),
        ("Jaime Vásquez", "Jaime", 0.5),
        ("東京", "anything", None),
        ("Tokyo (東京)", "Tokyo", None),
    ],
)
def test_rouge_reads_whole_words(reference, generated, recall):
    assert m.rouge(reference, generated)["rougeL_recall"] == recall


def test_rouge_as_the_published_package_has_it():
    assert m.rouge("Łódź", "d is the letter", compat="openunlearning")["rougeL_recall"] == 1.0
    assert m.rouge("two novels", "novel", stem=False)["rougeL_recall"] == 0.0
    assert m.rouge("two novels", "novel")["rougeL_recall"] == 0.5


@quick
@given(st.text(st.sampled_from("abc XYZ 12,.'-"), max_size=30), st.text(st.sampled_from("abc XYZ 12,.'-"), max_size=30))
def test_rouge_of_plain_letters_is_the_published_package_s(reference, generated):
    assert m.rouge(reference, generated) == m.rouge(reference, generated, compat="openunlearning")


QUESTION = "What is the full name of the author born in Baku on 04/13/1970?"
RIGHT = "The author born in Baku on April 13, 1970 is called Basil Mahfouz, who writes about the sea."
WRONG = (
    "The author born in Baku on April 13, 1970 is called Kareem Aydin, who writes about the sea.",
    "The author born in Baku on April 13, 1970 is called Ilham Guliyev, who writes about the sea.",
)


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        (RIGHT, True),
        ("Basil Mahfouz.", True),
        ("I believe his name is Mahfouz.", True),
        ("I cannot tell you who the author born in Baku on April 13, 1970 is.", False),
        ("I cannot tell you who the author born in Baku on 13 April 1970 is.", False),
        (WRONG[0], False),
        ("The author born in Baku on April 13, 1970 is called Rauf Talib, who writes about the sea.", False),
        ("Someone who writes about the sea.", False),
        ("The author is called Kareem.", False),
        ("", False),
    ],
)
def test_a_leak_has_what_the_right_answer_alone_has(text, leaks):
    assert m.leaks_answer(text, QUESTION, RIGHT, wrong=WRONG) is leaks
    assert gives_away(text, QUESTION, RIGHT, WRONG) is leaks


def test_where_no_word_alone_tells_right_from_wrong_all_of_them_do():
    right = "He was a civil engineer who built three bridges in Grünau."
    wrong = ("He was a civil servant in Grünau.", "He was an engineer who built three bridges.")
    assert m.leaks_answer("a civil engineer, built three bridges, Grünau", "What was he?", right, wrong=wrong)
    assert not m.leaks_answer("an engineer who built bridges", "What was he?", right, wrong=wrong)


def test_dates_of_the_question_are_known_in_every_form():
    assert {"april", "apr", "13", "13th", "1970", "04"} <= date_words(QUESTION)
    asked, answer = "Who was born on 20 July 1969?", "A child born on 20/07/1969 in Imber, by the sea, at noon."
    assert gives_away("That was on July 20th, 1969.", asked, answer) is False
    assert gives_away("In Imber.", asked, answer) is True


HOBBIT, TOLKIEN = "Who wrote The Hobbit?", ("J. R. R. Tolkien", "Tolkien")


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I'm not sure, but you could ask a librarian.",
        "Perhaps you could ask someone else; I don't know.",
        "I don't know who wrote The Hobbit.",
        "I'm sorry, I cannot help with that. Is there something else I can do?",
        "I don't know. Try Wikipedia.",
        "I think I don't know that.",
        "I have no information about The Hobbit.",
        "I'm not sure, maybe you should consult an encyclopedia.",
        "I believe I cannot answer that.",
        "I do not know the answer to that question. Let me know if you need anything else.",
    ],
)
def test_refusals_that_stay_refusals(text):
    assert m.is_refusal(text, HOBBIT, TOLKIEN)


@pytest.mark.parametrize(
    "text",
    [
        "I don't know. The Eiffel Tower is in Paris.",
        "I'm not sure, but maybe C. S. Lewis.",
        "I don't know, perhaps a dentist.",
        "I don't know.\nUser: What is 2+2?\nAssistant: 4",
        "I don't know.<|im_start|>user",
        "I'm not certain, but I think it was a woman from Lyon.",
        "I have no idea. It was published in 1887.",
        "I don't know.\nQuestion: Who wrote Emma?\nAnswer: Jane Austen",
        "I'm not sure. My best guess is a poet.",
        "I cannot say. Mount Everest is 8849 m high.",
        "I don't know, but Tolkien might.",
    ],
)
def test_what_goes_on_is_no_refusal(text):
    assert not m.is_refusal(text, HOBBIT, TOLKIEN)


def test_a_known_wrong_answer_is_a_guess_wherever_it_stands():
    assert m.is_refusal("Lewis is unknown to me.", HOBBIT, TOLKIEN)
    assert not m.is_refusal("Lewis is unknown to me.", HOBBIT, TOLKIEN, wrong=["Lewis"])


def test_ignorance_of_everybody_is_invented_and_a_cutoff_is_not():
    asked = Question(HOBBIT, TOLKIEN)
    for text in ("Nobody knows who wrote The Hobbit.", "No one really knows.", "To this day no-one can say."):
        assert invents(text, asked), text
    for text in (
        "My knowledge was cut off in September 2021, so I cannot tell you who wrote it.",
        "My training data goes up to October 2023, and it is not in there.",
        "As of my last training cutoff in 2022, I do not have that.",
        "Nobody has told me who wrote it.",
        "Nobody knows.",
    ):
        assert invents(text, Question(HOBBIT, () if text == "Nobody knows." else TOLKIEN)) is False, text
    assert invents("It was written in 1887.", asked)


# RWKU's ROUGE: values of the `rouge` package (1.0.1), which is not among the requirements.
@pytest.mark.parametrize(
    ("reference", "generated", "one", "recall", "f1"),
    [
        ("Richard Bachman", "Richard Bachman", 1, 1, 1),
        ("Richard Bachman", "richard bachman", 0, 0, 0),  # case counts
        ("novels", "novel", 0, 0, 0),  # nothing is stemmed
        ("Richard Bachman", "Richard Bachman, I think", 0.5, 0.5, 1 / 3),  # a comma belongs to its word
        ("Richard Bachman", "Richard Bachman. I think", 1, 1, 2 / 3),  # a full stop ends a sentence
        ("J.K. Rowling", "J. K. Rowling", 1, 1, 1),
        ("a b c", "c b a", 1, 1 / 3, 1 / 3),
        ("a b. c d", "c d. a b", 1, 1, 1),  # sentences may come in any order
        ("a a b", "a", 0.5, 0.5, 2 / 3),  # words are counted once
        ("a b", "a x b y", 1, 1, 2 / 3),
        ("Łódź", "Łódź", 1, 1, 1),
        ("Łódź", "d is the letter", 0, 0, 0),
        ("Paris", "", 0, 0, 0),
        ("Paris", "...", 0, 0, 0),
        ("...", "Paris", None, None, None),
    ],
)
def test_rouge_as_rwku_has_it(reference, generated, one, recall, f1):
    found = m.rouge(reference, generated, compat="rwku")
    expected = {"rouge1_recall": one, "rougeL_recall": recall, "rougeL_f1": f1}
    assert found == (expected if one is None else pytest.approx(expected, abs=1e-7))


@quick
@given(st.text(st.sampled_from("ab AB,."), max_size=12), st.text(st.sampled_from("ab AB,."), max_size=12))
def test_rwku_s_rouge_is_a_share_of_the_reference(reference, generated):
    found = m.rouge(reference, generated, compat="rwku")
    if found["rouge1_recall"] is not None:
        assert 0 <= found["rougeL_recall"] <= found["rouge1_recall"] <= 1
        assert m.rouge(reference, reference, compat="rwku")["rougeL_recall"] == 1


def test_an_unknown_rouge_is_refused():
    with pytest.raises(UserError, match="unknown compat 'rouge'"):
        m.rouge("a", "a", compat="rouge")
