"""Where a subject stands in its question: as whole words, whatever Unicode form either is written in."""

from __future__ import annotations

import re
import unicodedata

from unlearn_eval.utils.scripts import SPACELESS

# Typographic forms that a person takes for the same: apostrophes, quotation marks, hyphens, spaces.
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u2032\uff07\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000\t\n\r", " "),
    }
)
_OF_SPACELESS = re.compile(f"[{SPACELESS}]")


def find_subject(question: str, subject: str) -> tuple[int, int] | None:
    """Where the subject's last occurrence in a question begins and ends; None if it does not stand there.

    It stands there as whole words: "Ada" does not stand in "Adam". An occurrence that is the same to the letter comes
    before one that differs in Unicode form (composed or not), in the kind of apostrophe, hyphen or space.

    Args:
        question: Text that holds it.
        subject: What the question is about.
    """
    if not subject:
        return None
    if whole := [span for span in _occurrences(question, subject) if _is_whole(question, *span)]:
        return whole[-1]
    folded, places = _folded(question)
    wanted, _ = _folded(subject)
    for start, end in reversed(_occurrences(folded, wanted)):
        if _is_whole(question, places[start], places[end]):
            return places[start], places[end]
    return None


def stands_inside_a_word(question: str, subject: str) -> bool:
    """Whether a subject stands in a question only as a part of longer words."""
    return bool(subject) and subject in question and find_subject(question, subject) is None


def _occurrences(text: str, part: str) -> list[tuple[int, int]]:
    """Where a part stands in a text, from left to right and without overlaps."""
    found: list[tuple[int, int]] = []
    start = text.find(part)
    while start >= 0:
        found.append((start, start + len(part)))
        start = text.find(part, start + len(part))
    return found


def _folded(text: str) -> tuple[str, list[int]]:
    """The text in one form, and where each of its characters (and its end) stands in the text as it is."""
    out: list[str] = []
    places: list[int] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        composed = unicodedata.normalize("NFC", text[start:end]).translate(_SAME)
        out.append(composed)
        places += [start] * len(composed)
        start = end
    return "".join(out), [*places, len(text)]


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no letter or digit continues the span on either side, in a script that sets spaces between words."""
    return not (_continues(text, start - 1, start) or _continues(text, end, end - 1))


def _continues(text: str, outside: int, inside: int) -> bool:
    if not 0 <= outside < len(text):
        return False
    pair = text[outside], text[inside]
    if not all(unicodedata.category(c)[0] in "LMN" for c in pair):
        return False
    return not any(_OF_SPACELESS.match(c) for c in pair)
