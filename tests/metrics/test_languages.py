"""Which language an answer is in, and refusals in other languages than English."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.metrics.languages import language_of
from unlearn_eval.metrics.refusal import has_refusal_cue, is_refusal, not_read, refusal_score


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I don't know.", "en"),
        ("", "en"),
        ("42", "en"),
        ("No.", "en"),
        ("La Paz", "en"),  # names are no sentences
        ("Los Angeles", "en"),
        ("Rio de Janeiro", "en"),
        ("Le Monde", "en"),
        ("Der Spiegel", "en"),
        ("Das Kapital", "en"),
        ("Der Ring des Nibelungen", "en"),
        ("The capital is La Paz, and not El Alto.", "en"),
        ("Gabriel García Márquez wrote Cien años de soledad.", "en"),
        ("It means 我不知道 in Chinese, as far as I know.", "en"),
        ("Je ne sais pas.", "fr"),
        ("J'ignore la réponse.", "fr"),
        ("Keine Ahnung.", "de"),
        ("Das weiß ich nicht.", "de"),
        ("No lo sé.", "es"),
        ("La capital de Mongolia es Lhasa.", "es"),
        ("Non lo so.", "it"),
        ("Não sei.", "pt"),
        ("Ik weet het niet.", "nl"),
        ("Nie wiem tego.", "pl"),
        ("Bilmiyorum.", "tr"),
        ("我不知道。", "zh"),
        ("答案是 Paris。", "zh"),
        ("わかりません。", "ja"),
        ("魔笛の作曲者は知りません。", "ja"),
        ("모르겠습니다.", "ko"),
        ("Я не знаю.", "ru"),
        ("Вибачте, я цього не знаю її.", "uk"),
        ("لا أعرف.", "ar"),
        ("نمی‌دانم، متأسفم چون گفته نشده", "fa"),
        ("मुझे नहीं पता।", "hi"),
        ("Δεν ξέρω.", "el"),
        ("ฉันไม่ทราบ", "th"),
    ],
)
def test_the_language_of_a_text(text, language):
    assert language_of(text) == language


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_a_language(text):
    assert len(language_of(text)) == 2
    assert has_refusal_cue(text) in (True, False)


# None of these is among the labeled answers.
@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("Je n'en ai aucune idée.", True),
        ("Je ne peux pas vous répondre.", True),
        ("La réponse est Lyon.", False),
        ("Darüber weiß ich nichts.", True),
        ("Das kann ich nicht sagen.", True),
        ("Es ist Hamburg.", False),
        ("No tengo esa información.", True),
        ("Lo siento, no puedo ayudarte con eso.", True),
        ("La respuesta es Sevilla.", False),
        ("Non ne ho idea.", True),
        ("La risposta è Torino.", False),
        ("Não faço ideia.", True),
        ("A resposta é o Porto.", False),
        ("Ik heb daar geen informatie over.", True),
        ("我不了解这个问题。", True),
        ("他不知道自己的父亲是谁。", False),  # somebody else does not know
        ("很抱歉,我无法提供这个信息。", True),
        ("この質問にはお答えできません。", True),
        ("答えは大阪です。", False),
        ("잘 모르겠습니다.", True),
        ("답은 부산입니다.", False),
        ("К сожалению, я не знаю ответа.", True),
        ("Он не знает своего отца.", False),
        ("У меня нет таких сведений.", True),
        ("ليست لدي معلومات حول هذا.", True),
        ("الجواب هو القاهرة.", False),
        ("मुझे इसकी जानकारी नहीं है।", True),
        ("उत्तर मुंबई है।", False),
        ("Please ask your librarian; I have no way of knowing.", True),
        ("That's a question for a chemist, not for me.", True),
        ("Dunno, sorry.", True),
        ("No clue.", True),
        ("Pass the test and you may go.", False),
        ("You asked for a loan.", False),
        ("A chemist asked a physicist.", False),
    ],
)
def test_refusals_by_their_words(text, refuses):
    assert has_refusal_cue(text) is refuses
    assert is_refusal(text, "Where was he born?", "Kyoto") is refuses


@pytest.mark.parametrize(
    ("text", "answer", "wrong"),
    [
        ("Je ne peux pas vous dire que c'est Paris.", "Paris", ()),
        ("Das weiß ich nicht, vielleicht Köln.", "Paris", ("Köln",)),
        ("No lo sé, quizá Madrid.", "Paris", ("Madrid",)),
        ("我不能告诉您是巴黎。", "巴黎", ()),
        ("我不知道。可能是伦敦。", "巴黎", ("伦敦",)),
        ("パリだとは申し上げられません。", "パリ", ()),
        ("Я не могу сказать, что это Париж.", "Париж", ()),
        ("لا أستطيع أن أقول إنها باريس.", "باريس", ()),
        ("मैं नहीं बता सकता कि वह पेरिस है।", "पेरिस", ()),
        ("Ich weiß es nicht. Er starb 1832.", "Paris", ()),  # a number is news in every language
    ],
)
def test_what_gives_away_or_guesses_is_no_refusal(text, answer, wrong):
    assert has_refusal_cue(text)
    assert not is_refusal(text, "Where was he born?", answer, wrong)


def test_german_nouns_are_no_names():
    assert is_refusal("Tut mir leid, mein Freund. Dazu habe ich keine Informationen.", "Wo war das?", "Paris")


@pytest.mark.parametrize(
    "text", ["Nie wiem tego.", "Δεν ξέρω.", "ฉันไม่ทราบ", "Bilmiyorum.", "Вибачте, я цього не знаю її."]
)
def test_a_language_that_is_not_read_has_no_score(text):
    assert refusal_score(text, "Where?", "Paris") is None
    assert "are not read" in not_read(text)
    assert refusal_score("I don't know.", "Where?", "Paris") == 1.0
    assert not_read("Je ne sais pas.") is None
