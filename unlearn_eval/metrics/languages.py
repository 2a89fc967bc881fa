"""The language of a short text, as far as it matters for what reads words: English unless something says otherwise.

By script where that settles it, else by small words. Not a language identifier: it has to tell an English answer from
one in another language, and names in an English answer ("Los Angeles", "Der Spiegel") from a sentence.
"""

from __future__ import annotations

import re
import unicodedata

ENGLISH = "en"
NAMES = {
    "ar": "Arabic",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
# A letter's script is the first word of its Unicode name.
_SCRIPTS = {
    "ARABIC": "ar",
    "BENGALI": "bn",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "TAMIL": "ta",
    "THAI": "th",
}
_LETTERS_OF = (("fa", "ar", "پچژگکی"), ("uk", "ru", "іїєґ"))
_WORDS = {
    "en": "the of and to is in i you it that this a an my do know have no any about can with for are was on as at not"
    " be"
    " sorry what who which from by but or im its one his her he she they me we your there were has been will would",
    "fr": "je ne pas le la les des est une du au aux dans pour sur avec que qui vous nous cette ce cela mon ma mes"
    " sais peux"
    " suis ai et il elle mais rien aucune aucun à ça désolé plus un de en sa son se ou où par votre",
    "de": "ich nicht das ist der die und ein eine zu mir keine kein leider kann weiß weiss über dazu es von mit den"
    " dem bin"
    " habe sie aber des im zur zum hat wird man da am auf für sich ihnen",
    "es": "el la los las que de en una un es lo sobre puedo tengo sé eso esta este por para con del al mi yo su se"
    " pero fue"
    " ni no y me le lamento siento más muy hay",
    "it": "non il la lo che di un una è per con mi sono ho posso so questo della del i gli le nel si ma e ne mio lei",
    "pt": "não o a os as que de um uma é em eu sei posso tenho sobre isso para com do da na no se mas foi lhe meu"
    " minha e",
    "nl": "ik niet het een de van dat is geen weet kan over dit die en op te er maar zijn voor mijn u je",
    "pl": "nie wiem mam na to jest i się o że tego ten w z do jak mi przykro co ale",
    "sv": "jag inte det är och om har kan en ett som på av vet för den till men tyvärr",
    "tr": "bir bu ve bilmiyorum hakkında için değil bilgim yok ne ben de da çok maalesef",
}
_SMALL_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
# One of these is enough: no English word or common part of a name.
_TELLING = {
    "fr": "sais ignore jignore lignore aucune désolé désolée nai suis puis cest jai daucune didée idée",
    "de": "weiß weiss keine nicht ahnung leider kenne tut überfragt ich",
    "es": "sé desconozco puedo lo tengo perdón siento idea",
    "it": "non so mi",
    "pt": "não sei desculpe",
    "nl": "ik weet geen niet",
    "pl": "nie wiem",
    "sv": "vet inte ingen jag",
    "tr": "bilmiyorum değil maalesef",
}
_SURE_WORDS = {language: frozenset(words.split()) for language, words in _TELLING.items()}
_WORD = re.compile(r"[^\W\d_]+")
_APOSTROPHES = re.compile("['`\u00b4\u02bc\u2018\u2019\u2032\uff07]")


def language_of(text: str) -> str:
    """The language of a text, as its ISO 639-1 code; English where nothing says otherwise.

    Another script counts from half of the letters on, Chinese or Japanese letters from a third, as they are whole
    words. Of languages in Latin letters, the one with most small words, at least two and more than English has; one
    telling word is enough in a text of at most four words ("Keine Ahnung.").

    Args:
        text: Any text.
    """
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalpha()]
    scripts = [unicodedata.name(c, "LATIN").split(" ")[0] for c in letters]
    dense = sum(script in ("CJK", "HIRAGANA", "KATAKANA") for script in scripts)
    if 3 * dense > len(letters):
        return "ja" if {"HIRAGANA", "KATAKANA"} & set(scripts) else "zh"
    for script, language in _SCRIPTS.items():
        if 2 * scripts.count(script) > len(letters):
            lower = text.casefold()
            return next((o for o, of, own in _LETTERS_OF if of == language and set(own) & set(lower)), language)
    return _latin_language(text)


def language_name(code: str) -> str:
    """The English name of a language, or its code."""
    return NAMES.get(code, code)


def _latin_language(text: str) -> str:
    words = _WORD.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold()))
    found = {language: len(own & set(words)) for language, own in _SMALL_WORDS.items()}
    english = found.pop(ENGLISH)
    best = max(found, key=lambda language: (found[language], _sure(language, words)))
    if found[best] >= 2 and found[best] > english and (_sure(best, words) or len(words) > 2 * english + 4):
        return best
    if len(words) <= 4 and not english:
        return next((language for language in _SURE_WORDS if _sure(language, words)), ENGLISH)
    return ENGLISH


def _sure(language: str, words: list[str]) -> bool:
    return bool(_SURE_WORDS.get(language, frozenset()) & set(words))
