"""Dates and numbers in English text, whatever form they are written in."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_MONTH_NAMES = (
    "january february march april may june july august september october november december".split(),
    "jan feb mar apr may jun jul aug sep oct nov dec".split(),
)


_MONTHS = {name: i for names in _MONTH_NAMES for i, name in enumerate(names, 1)} | {"sept": 9}


_MONTH = "(?:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + ")"


_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"


_YEAR = r"(?P<year>[12]\d{3})"


_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_DAY}(?: of)? (?P<month>{_MONTH})\b\.?,?(?: (?:of |in )?{_YEAR}\b)?",
        rf"\b(?P<month>{_MONTH})\b\.? (?:the )?{_DAY}\b(?!\d),?(?: (?:of |in )?{_YEAR}\b)?",
        rf"\b(?P<month>{_MONTH})\b\.?,?(?: of)? {_YEAR}\b",
        r"\b(?P<year>[12]\d{3})[-/.](?P<month>[01]?\d)[-/.](?P<day>[0-3]?\d)\b",
        r"\b(?P<day>[0-3]?\d)[-/.] ?(?P<month>[01]?\d)[-/.] ?(?P<year>[12]\d{3})\b",
    )
)


ONES = {
    word: i
    for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen".split()
    )
}


TENS = {w: 10 * i for i, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}


SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


NUMERAL = re.compile(r"\d+(?:[ ,'\u2019\u00a0\u202f]\d{3}(?!\d))*(?:\.\d+)?")


class Date(NamedTuple):
    """A date as far as it is said; 0 where it is not."""

    year: int
    month: int
    day: int


def dates(text: str) -> list[Date]:
    """The dates in a text, in their order; "3.11.1988" is read with the day first, and with the month first too."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    found: list[tuple[int, Date]] = []
    taken: set[int] = set()
    for pattern in _DATES:
        for match in pattern.finditer(folded):
            if taken & set(range(*match.span())):
                continue
            taken |= set(range(*match.span()))
            named = match.groupdict()
            month = named["month"]
            own = [_number(named.get("year")), _MONTHS.get(month) or int(month), _number(named.get("day"))]
            orders = [own, [own[0], own[2], own[1]]] if month.isdigit() and len(match["year"]) == 4 else [own]
            found += [(match.start(), Date(*o)) for o in orders if 0 < o[1] <= 12 and o[2] <= 31]
    return [date for _, date in sorted(found, key=lambda pair: pair[0])]


def numbers(text: str) -> set[float]:
    """The numbers in a text, from figures ("61,400", "61.4 thousand") and from words ("thirty-six")."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    found: set[float] = set()
    for match in NUMERAL.finditer(plain):
        value = float(re.sub(r"[ ,'\u2019\u00a0\u202f]", "", match.group()))
        after = re.match(r"\s*(hundred|thousand|million|billion)\b", plain[match.end() :])
        found.add(value * SCALES[after.group(1)] if after else value)
    words = re.findall(r"[a-z]+|[^a-z\s-]", plain)
    return found | _spoken(words)


def agree(date: Date, other: Date) -> bool:
    """Nothing said of both differs, and two of year, month and day are the same."""
    pairs = [(a, b) for a, b in zip(date, other, strict=True) if a and b]
    return all(a == b for a, b in pairs) and len(pairs) >= min(2, sum(map(bool, date)))


def date_words(text: str) -> frozenset[str]:
    """The words in which the dates of a text may be written: "13/04/1970" gives april, apr, 4, 04, 13, 13th, 1970."""
    found: set[str] = set()
    for date in dates(text):
        if date.year:
            found.add(str(date.year))
        if date.day:
            found |= {str(date.day), f"{date.day:02}", f"{date.day}{_ordinal(date.day)}"}
        if date.month:
            names = {name for name, number in _MONTHS.items() if number == date.month}
            found |= names | {str(date.month), f"{date.month:02}"}
    return frozenset(found)


def _ordinal(day: int) -> str:
    return "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def years(text: str) -> list[int]:
    """The years in a text, from figures and from words."""
    figures = [int(found) for found in re.findall(r"(?<!\d)[12]\d{3}(?!\d)", text)]
    return figures + [int(n) for n in _spoken(re.findall(r"[a-z]+|[^a-z\s-]", text.casefold())) if 1000 <= n < 3000]


def _number(text: str | None) -> int:
    return int(text) if text else 0


def _spoken(words: list[str]) -> set[float]:
    """The numbers of runs of number words; "nineteen twelve" is also a year."""
    found: set[float] = set()
    run: list[str] = []
    for i, word in enumerate([*words, ""]):
        if word in ONES or word in TENS or (run and word in SCALES):
            run.append(word)
        elif word == "and" and run and run[-1] in SCALES and i + 1 < len(words) and words[i + 1] in ONES | TENS:
            continue
        else:
            if run:
                found |= _values(run)
            run = []
    return found


def _values(run: list[str]) -> set[float]:
    total, current, pairs, last = 0, 0, [], 0
    for word in run:
        if word in SCALES:
            if word == "hundred":
                current = max(current, 1) * 100
            else:
                total, current = total + max(current, 1) * SCALES[word], 0
            last = 0
            continue
        value = ONES.get(word, TENS.get(word, 0))
        if last >= 20 and 0 < value < 10:
            current, last = current + value, 0
        elif last:  # "nineteen twelve": a new number
            pairs.append(current)
            current, last = value, value
        else:
            current, last = current + value, value
    pairs.append(total + current)
    year = {float(100 * pairs[0] + pairs[1])} if len(pairs) == 2 and 10 <= pairs[0] < 30 and pairs[1] < 100 else set()
    return {float(value) for value in pairs} | year
