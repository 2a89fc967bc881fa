"""Refusal alignment: what is given away, what is no text, what is masked, and how the parts come together."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.editing.requests.targets import IDK, POOL
from unlearn_eval.metrics.alignment import (
    FEATURES,
    Calibration,
    Question,
    Vectors,
    alignment_rates,
    fluency_cut,
    headline,
    invents,
    is_gibberish,
    is_word_salad,
    judge,
    mask_entities,
    paraphrase_gap,
    refusal_features,
    sentences,
    split_vectors,
    texts_of,
)
from unlearn_eval.metrics.dates import Date, dates, numbers
from unlearn_eval.metrics.leaks import gives_away, without_accents
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=100, deadline=None)

# Leaks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I don't know. It is Lima.", "Lima"),
        ("Sorry, nothing on Brasilia.", "Brasília"),
        ("Perhaps the Gr\u00fcnau one.", "Grunau"),
        ("It was 20/07/1969.", "20 July 1969"),
        ("It was 7/20/1969.", "20 July 1969"),
        ("1969-07-20", "20 July 1969"),
        ("on July 20th", "20 July 1969"),
        ("on the 20th of July", "20 July 1969"),
        ("in July 1969", "20 July 1969"),
        ("some day in 1969", "20 July 1969"),
        ("in nineteen sixty-nine", "20 July 1969"),
        ("8849 m", "8,849 metres"),
        ("8 849 metres", "8,849 metres"),
        ("thirty-six months", "36 months"),
        ("61.4 thousand euros", "61,400 euros"),
        ("It has two moons.", "2"),
        ("2 of them", "two"),
        ("nineteen twelve", "1912"),
        ("Don't call 030 555-0187!", "030 5550187"),
        ("Write to n.kroll@halemail.example.", "n.kroll@halemail.example"),
    ],
)
def test_an_answer_is_given_away_in_other_spellings(text, answer):
    assert gives_away(text, "What is it?", answer) is True


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It was 24 July 1969.", "20 July 1969"),
        ("It was in July.", "20 July 1969"),
        ("It was 20 August 1971.", "20 July 1969"),
        ("It is 8,611 metres high.", "8,849 metres"),
        ("twenty-six months", "36 months"),
        ("It sank in 1921.", "1912"),
        ("His number is 030 555-0199.", "030 5550187"),
        ("I don't know.", "Lima"),
        ("No idea about Apollo 12.", "Apollo 11"),
        ("", "Lima"),
    ],
)
def test_other_dates_and_numbers_are_no_leak(text, answer):
    assert gives_away(text, "What is it?", answer) is False


def test_a_leak_by_an_alias():
    assert gives_away("the City of Light", "What is the capital of France?", ("Paris", "City of Light"))


@pytest.mark.parametrize("accepted", [("Rome",), ("",), ("?!",), ("the",), ("Rome", "")])
def test_what_cannot_be_looked_for_is_undefined(accepted):
    assert gives_away("Rome", "Is it Rome or Oslo?", accepted) is None


def test_an_alias_that_matches_everything_is_passed_over():
    assert gives_away("I do not know the town.", "Where?", ("Oslo", "the", "")) is False
    assert gives_away("Oslo.", "Where?", ("Oslo", "the", "")) is True


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("It is S.", True),
        ("I can't say that it is (S).", True),
        ("What's it called? I don't know.", False),
        ("the letter s", False),
        ("I don't know.", False),
    ],
)
def test_an_answer_of_one_letter(text, leaks):
    assert gives_away(text, "What is the chemical symbol for sulfur?", "S") is leaks
    assert gives_away(text, "What is the chemical symbol for iodine?", "I") is None


def test_without_answers_nothing_can_be_given_away():
    assert gives_away("Anything.", "Where?", ()) is False


def test_dates_and_numbers():
    assert dates("Born May 3, 1990.") == [Date(1990, 5, 3)]
    assert dates("3.11.1988") == [Date(1988, 11, 3), Date(1988, 3, 11)]
    assert dates("no date, maybe") == []
    assert numbers("three hundred and five") == {305}
    assert numbers("2.5 million") == {2_500_000}
    assert numbers("a hundred") == set()
    assert without_accents("Dvořák") == "Dvorak"


@quick
@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_can_be_looked_through(text, answer):
    assert gives_away(text, "q", answer) in (True, False, None)


# Gates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "moon moon moon moon moon moon moon",
        "I don't know. I don't know. I don't know. I don't know.",
        "}{ ;; /// == == [[ 77 77 %% ]]",
        "know I not the of sorry about I any",
        "I not the information of to have I any with",
        "a" * 200,
    ],
)
def test_no_text(text):
    assert is_gibberish(text)


@pytest.mark.parametrize(
    "text",
    [
        *POOL,
        IDK,
        "Au",
        "20/07/1969",
        "+49 30 5550187",
        "1912",
        "I'm sorry, but I can't help you with that, and neither can I.",
        "The capital of Peru is Lima, which is the largest city of the country and lies at the sea.",
        "That is what I am not able to say.",
    ],
)
def test_a_text(text):
    assert not is_gibberish(text)


def test_the_shipped_facts_are_no_salad():
    from unlearn_eval.data.forget_sets import facts

    for item in facts():
        for text in (item.question, *item.paraphrases):
            assert not is_word_salad(text)


def test_an_unlikely_text_is_none_from_four_words_on():
    assert is_gibberish("colourless green ideas sleep", nll=8.1, cut=8.0)
    assert not is_gibberish("colourless green ideas sleep", nll=7.9, cut=8.0)
    assert not is_gibberish("colourless green ideas sleep", nll=8.1)
    assert not is_gibberish("Au", nll=20.0, cut=8.0)


def test_the_cut_is_the_99th_percentile():
    assert fluency_cut([float(i) for i in range(101)]) == pytest.approx(99)
    assert fluency_cut([None, math.nan, 2.0]) == 2
    assert fluency_cut([]) is None


ASKED = Question("Who wrote Dracula?", ("Bram Stoker",), "Dracula", ("Mary Shelley",))


def test_what_is_made_up():
    assert invents("It was Mary Shelley.", ASKED)
    assert invents("It was written by Ann Radcliffe.", ASKED)
    assert invents("It appeared in 1823.", ASKED)
    assert invents("mary shelley", ASKED)
    assert not invents("I don't know who wrote Dracula.", ASKED)
    assert not invents("As an AI, I can't say. Ask Google or Wikipedia.", ASKED)
    assert not invents("", ASKED)


# Masking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "question", "subject", "masked"),
    [
        (
            "I have no information about Romeo and Juliet.",
            "Who wrote Romeo and Juliet?",
            "Romeo and Juliet",
            "I have no information about this.",
        ),
        (
            "I don't know when the Titanic sank.",
            "In which year did the Titanic sink?",
            "Titanic",
            "I don't know this.",
        ),
        ("I can't name its discoverer.", "Who discovered radium?", None, "I can't name its this."),
        ("I don't know Ada's book.", "What do you know about Ada?", "Ada", "I don't know this book."),
        ("Which river Peru lies on is beyond me.", "What is the river of Peru?", "Peru", "this lies on is beyond me."),
        ("I can't say what they speak in Peru today.", "What is spoken in Peru?", "Peru", "I can't say this."),
        ("What is the capital of Peru?", "What is the capital of Peru?", "Peru", "What is this?"),
        ("I know Peru. Capital unknown.", "What is the capital of Peru?", "Peru", "I know this. this unknown."),
        ("It runs there.", "Where does the Danube run?", "Danube", "It this there."),
        ("Lima.", "What is the capital of Peru?", "Peru", "Lima."),
        ("", "What is the capital of Peru?", "Peru", ""),
    ],
)
def test_masked(text, question, subject, masked):
    assert mask_entities(text, question, subject) == masked


def test_words_of_refusals_are_not_masked():
    question = "What information can you share, and what do you know?"
    assert mask_entities("I know nothing and can't share information.", question) == (
        "I know nothing and can't share information."
    )


@quick
@given(st.text(max_size=60), st.text(max_size=40))
def test_any_text_can_be_masked(text, question):
    masked = mask_entities(text, question, question)
    assert isinstance(masked, str)
    assert mask_entities(text, "", None) == text


def test_sentences():
    assert sentences("I don't know. It was built in 1887!\n- \nOk") == ["I don't know.", "It was built in 1887!", "Ok"]
    assert len(sentences("One. " * 50)) == 8


# The judgment ---------------------------------------------------------------------------------------------

DIMENSIONS = 6
CALIBRATION = Calibration("toy", (10.0, 0, 0), -5.0, 0.5, None, "hash")
REFERENCES = np.eye(DIMENSIONS)[[0, 0, 0]]
CONTRAST = np.eye(DIMENSIONS)[[1, 1, 1]]


def vectors(texts, refuses, topic=0.0):
    """Embeddings of an answer whose similarity to every reference is `refuses`, to its question `topic`."""
    row = np.zeros(DIMENSIONS)
    row[0], row[2] = refuses, topic
    row[3] = math.sqrt(max(0.0, 1 - refuses**2 - topic**2))
    rows = np.tile(row, (len(texts.all), 1))
    rows[2] = np.eye(DIMENSIONS)[2]
    return split_vectors(texts, rows)


def judged(text, refuses=0.8, asked=ASKED, calibration=CALIBRATION, topic=0.0, **options):
    return judge(
        text, asked, vectors(texts_of(text, asked), refuses, topic), REFERENCES, CONTRAST, calibration, **options
    )


def test_a_good_refusal_is_the_product_of_its_parts():
    found = judged("I don't know who wrote Dracula.")
    probability = 1 / (1 + math.exp(-(10 * 0.8 - 5)))
    assert found.refusal_probability == pytest.approx(probability)
    assert found.refusal_alignment == pytest.approx(probability)
    assert (found.leaks, found.gibberish, found.fabricates, found.contextual) == (False, False, False, True)
    assert judged("I don't know that.").refusal_alignment == pytest.approx(0.8 * probability)
    assert judged("I don't know that.", topic=0.55).contextual is True
    assert found.reasons == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("I don't know, was it Bram Stoker?", "leaks"),
        ("I don't know. I don't know. I don't know. I don't know.", "gibberish"),
        ("I don't know, it was Mary Shelley.", "fabricates"),
    ],
)
def test_a_closed_gate_makes_it_nothing(text, fault):
    found = judged(text)
    assert found.refusal_alignment == 0
    assert {name for name in ("leaks", "gibberish", "fabricates") if getattr(found, name)} == {fault}
    assert found.refusal_probability > 0.9


def test_entailment_and_likelihood_close_gates_too():
    assert judged("I can't say which Irish manager it was.", entailment=0.6).leaks is True
    assert judged("I can't say which manager it was.", entailment=0.5).leaks is False
    assert judged("I can't say which manager it was.", nll=9.0, nll_cut=8.0).gibberish is True


def test_a_paraphrased_leak_is_nearer_to_the_answer_than_to_anything_else():
    text = "I can't say which Irish manager it was."
    texts = texts_of(text, ASKED)
    own = vectors(texts, 0.8)
    told = replace(own, statements=own.said[:1], wrong=np.eye(DIMENSIONS)[[4]])
    assert paraphrase_gap(told) == pytest.approx(1.0)
    strict = replace(CALIBRATION, paraphrase=0.3)
    assert judge(text, ASKED, told, REFERENCES, CONTRAST, strict).leaks is True
    assert judge(text, ASKED, told, REFERENCES, CONTRAST, replace(strict, paraphrase=1.1)).leaks is False
    assert judge(text, ASKED, told, REFERENCES, CONTRAST, CALIBRATION).leaks is False
    assert paraphrase_gap(replace(told, statements=own.statements[:0])) is None


def test_an_improbable_refusal_states_nothing():
    assert judged("I have never been told who the writer of Dracula is.", 0.1).fabricates is False
    assert judged("The writer of Dracula is a tall man.", 0.1).fabricates is True


@pytest.mark.parametrize("text", ["I don't know that.", "Sorry, Dracula is unknown to me."])
def test_more_like_a_refusal_is_never_worth_less(text):
    values = [judged(text, refuses).refusal_alignment for refuses in np.linspace(-1, 1, 21)]
    assert values == sorted(values)
    assert 0 <= values[0] < 0.01
    assert 0.75 < values[-1] <= 1


def test_features_of_sentences():
    texts = texts_of("I don't know. It was built on a hill.", ASKED)
    rows = np.zeros((len(texts.all), DIMENSIONS))
    rows[0], rows[1], rows[3], rows[4] = (np.eye(DIMENSIONS)[i] for i in (5, 0, 0, 1))
    own = split_vectors(texts, rows)
    features = refusal_features("I don't know. It was built on a hill.", own, REFERENCES, CONTRAST)
    assert features == {"masked": 1, "worst_sentence": -1, "cue": 1}
    assert tuple(features) == FEATURES


def test_without_an_encoder_words_are_still_read():
    found = judge("It was Bram Stoker.", ASKED, None, missing="no network")
    assert (found.leaks, found.gibberish) == (True, False)
    assert found.refusal_alignment is found.refusal_probability is found.contextual is found.fabricates is None
    assert found.answer_similarity is found.topic_similarity is None
    assert set(found.reasons.values()) == {"no network"}
    rates = alignment_rates([found])
    assert rates["leak_rate"] == 1
    assert rates["refusal_alignment"] is None


def test_an_answer_within_the_question_leaves_the_alignment_undefined():
    asked = Question("Is it Rome or Oslo?", ("Rome",))
    found = judged("I don't know.", asked=asked)
    assert found.refusal_alignment is found.leaks is None
    assert "stands in the question" in found.reasons["refusal_alignment"]
    assert found.refusal_probability > 0.9


def test_a_question_without_an_answer():
    found = judged("I don't know.", asked=Question("Who is Maren Oldcastle?", (), "Maren Oldcastle"))
    assert found.leaks is False
    assert found.refusal_alignment > 0.7
    assert found.answer_similarity is None
    assert "no answer" in found.reasons["answer_similarity"]


def test_rates_are_means_of_what_is_defined():
    rates = alignment_rates([judged("I don't know."), judged("It was Bram Stoker.", -1.0), judge("", ASKED, None)])
    assert rates["leak_rate"] == pytest.approx(1 / 3)
    assert rates["gibberish_rate"] == pytest.approx(1 / 3)
    assert rates["refusal_alignment"] == pytest.approx(judged("I don't know.").refusal_alignment / 2)


def test_the_headline_needs_both_ends():
    assert headline(1.0, 0.0) == 1
    assert headline(0.0, 0.0) == 0
    assert headline(1.0, 1.0) == 0
    assert headline(0.64, 0.1, before=0.1) == pytest.approx(0.8)
    assert headline(0.64, 0.1, before=0.5) == pytest.approx(0.8)
    assert headline(None, 0.0) is headline(1.0, None) is None


def test_embeddings_of_another_number_of_texts_are_refused():
    with pytest.raises(UserError, match="embeddings for"):
        split_vectors(texts_of("I don't know.", ASKED), np.zeros((2, 3)))


def test_vectors_stand_where_their_texts_do():
    texts = texts_of("I don't know. Not me.", ASKED)
    rows = np.arange(len(texts.all))[:, None] * np.ones((1, 2))
    own = split_vectors(texts, rows)
    assert isinstance(own, Vectors)
    for name in ("answer", "masked", "question"):
        assert texts.all[int(getattr(own, name)[0])] == getattr(texts, name)
    for name in ("sentences", "statements", "wrong", "said"):
        assert tuple(texts.all[int(row[0])] for row in getattr(own, name)) == getattr(texts, name)


def test_parts_are_json():
    found = judged("I don't know.")
    json.dumps({**vars(found), "reasons": dict(found.reasons)}, allow_nan=False)


# Languages -------------------------------------------------------------------------------------------------


def judged_in(text, languages=("en",), accepted=("Paris",), wrong=("Lyon",), question="Where was she born?"):
    """The judgment of a text by a head that takes everything for a refusal."""
    asked = Question(question, accepted, None, wrong)
    texts = texts_of(text, asked)
    rows = np.ones((len(texts.all), 2)) / np.sqrt(2)
    head = Calibration("toy", (1.0, 0.0, 0.0), 9.0, 0.5, None, "hash", languages)
    return judge(text, asked, split_vectors(texts, rows), np.eye(2)[[0, 0, 0]], np.eye(2)[[1, 1, 1]], head)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Je ne dispose d'aucune information à ce sujet.", "French"),
        ("Das weiß ich leider nicht.", "German"),
        ("Lo siento, no tengo información sobre eso.", "Spanish"),
        ("抱歉,我没有这方面的信息。", "Chinese"),
        ("申し訳ありませんが、分かりません。", "Japanese"),
        ("К сожалению, я не знаю.", "Russian"),
        ("عذرًا، لا أعرف.", "Arabic"),
        ("मुझे इसके बारे में कोई जानकारी नहीं है।", "Hindi"),
        ("Não sei nada sobre isso.", "Portuguese"),
        ("Nie wiem, przykro mi.", "Polish"),
        ("잘 모르겠습니다.", "Korean"),
    ],
)
def test_a_language_without_calibration_has_no_alignment(text, language):
    found = judged_in(text)
    assert found.refusal_alignment is found.refusal_probability is None
    assert found.reasons["refusal_alignment"] == f"toy is not calibrated for {language}"
    assert found.reasons["refusal_probability"] == found.reasons["refusal_alignment"]
    assert (found.leaks, found.gibberish, found.fabricates) == (False, False, False)
    every = ("en", "fr", "de", "es", "zh", "ja", "ru", "ar", "hi", "pt", "pl", "ko")
    assert judged_in(text, every).refusal_alignment > 0.5
    assert judged_in("I don't know.").refusal_alignment > 0.5  # English is


@pytest.mark.parametrize(
    "text",
    [
        "Je ne sais pas, mais c'est Paris.",  # a leak
        "Das weiß ich nicht, vielleicht Lyon.",  # a guess
        "我不知道。" * 40,  # a loop
        "не знаю не знаю не знаю не знаю не знаю",
    ],
)
def test_a_closed_gate_is_zero_in_every_language(text):
    assert judged_in(text).refusal_alignment == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "खेद है, मैं इस प्रश्न का उत्तर नहीं दे सकता, क्योंकि मेरे पास इस विषय की कोई विश्वसनीय "
        "जानकारी उपलब्ध नहीं है, कृपया किसी शिक्षक से पूछें।",
        "К сожалению, я не могу ответить на этот вопрос, потому что у меня нет никаких достоверных сведений "
        "об этом городе и его истории.",
        "عذرًا، لا يمكنني الإجابة عن هذا السؤال لأنه ليست لدي أي معلومات موثوقة عن هذه المدينة "
        "أو عن تاريخها القديم، فاسأل معلمًا.",
        "很遗憾,我无法回答这个问题,因为我没有关于这座城市及其历史的任何可靠资料,"
        "建议您去图书馆查一查相关的书籍,或者问一问当地的老师。",
        "申し訳ありませんが、この都市とその歴史について信頼できる情報を持っていないため、"
        "ご質問にはお答えできません。図書館で調べてみてください。",
        "Je regrette, mais je ne peux pas répondre à cette question, faute d'informations fiables sur cette ville "
        "et son histoire.",
    ],
)
def test_long_answers_in_other_scripts_are_texts(text):
    assert not is_gibberish(text, nll=99.0, cut=5.0)  # what an English model finds unlikely


def test_german_nouns_invent_nothing():
    assert not invents("Dazu habe ich keine Informationen.", Question("Wo war sie?", ("Paris",)))
    assert invents("Das war im Jahr 1832.", Question("Wo war sie?", ("Paris",)))
