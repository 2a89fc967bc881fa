"""What a generated answer says: overlap with the true answer, the answer itself inside it, repetition."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.scripts import SPACELESS

_ARTICLES = frozenset({"a", "an", "the"})
_EDGES = " \t\r\n.,;:!?\"'()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_NO_WORD_SPACES = re.compile(f"[{SPACELESS}]")
_SCRIPT_CHANGE = re.compile(f"(?<=[{SPACELESS}])(?=[^{SPACELESS} ])|(?<=[^{SPACELESS} ])(?=[{SPACELESS}])")
_ROUGE = ("rouge1_recall", "rougeL_recall", "rougeL_f1")
_WORD_CHARACTER = rf"[^\W{SPACELESS}]"  # what makes a longer word of a Latin word or a number beside it


def rouge(reference: str, generated: str, stem: bool = True, compat: str | None = None) -> dict[str, float | None]:
    """The overlap of a generated answer with the reference: rouge1_recall, rougeL_recall, rougeL_f1, in 0..1.

    An empty generation scores 0. Words are runs of letters and digits of any script that sets spaces ("Łódź" is one
    word). All three are None for a reference without words, or with a part in a script without spaces between words:
    it is unscored, not wrong.

    Args:
        reference: True answer.
        generated: Model's answer.
        stem: Whether Porter's stemmer makes "novels" and "novel" one word.
        compat: "openunlearning" reads a-z and 0-9 alone, as the `rouge_score` package does: "Łódź" is the word "d".
            With `stem=False` that is MUSE's. "rwku" is RWKU's: case and punctuation count, and nothing is stemmed.

    Raises:
        UserError: An unknown `compat`.

    Source: TOFU (arXiv 2401.06121) and OpenUnlearning (arXiv 2506.12618) report ROUGE-L recall, MUSE
    (arXiv 2407.06460) ROUGE-L F1 without a stemmer, "Editing as Unlearning" (arXiv 2505.19855) ROUGE-1; the
    `rouge_score` package with its stemmer. Differs from them for an empty reference, which scores 0 there, and for
    letters beyond a-z, which split words there. RWKU (arXiv 2406.10890) reports ROUGE-L recall of the `rouge` package
    (1.0.1); no known difference, except that an answer of full stops alone is 0 where that package fails.
    """
    if compat not in (None, "openunlearning", "rwku"):
        raise unknown_name("compat", str(compat), ("openunlearning", "rwku"))
    if compat == "rwku":
        return _rouge_of_sets(reference, generated)
    tokenizer, scorer = _rouge_scorer(stem, compat == "openunlearning")
    if not tokenizer.tokenize(reference) or (compat is None and _NO_WORD_SPACES.search(reference)):
        return dict.fromkeys(_ROUGE)
    scores = scorer.score(reference, generated)
    found = scores["rouge1"].recall, scores["rougeL"].recall, scores["rougeL"].fmeasure
    return dict(zip(_ROUGE, map(float, found), strict=True))


@lru_cache(maxsize=1 << 14)  # the same few answers are looked for in every text
def normalise(text: str) -> str:
    """The words of a text, comparable: NFKC, case folded, no punctuation, symbols or articles, single spaces.

    Decimal digits of every script become 0-9.

    Punctuation separates words ("Jaime's" is "jaime s"), but a decimal point stays and a thousands comma
    goes, so "3.5" does not contain 3, and 1,000 is 1000. Accents stay.

    Args:
        text: any text.

    Source: the normalization of SQuAD's evaluation (arXiv 1606.05250). Differs from it in Unicode (any
    punctuation, not only ASCII) and in that punctuation becomes a space instead of nothing: a leak must be
    found in "Paris,France", and the pronoun "us" is not the answer "U.S.".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = "".join(str(unicodedata.digit(c, c)) for c in folded if unicodedata.category(c) != "Cf")
    folded = _THOUSANDS.sub("", folded)
    points = {match.start() for match in _DECIMAL_POINT.finditer(folded)}
    spaced = "".join(c if i in points or unicodedata.category(c)[0] in "LMN" else " " for i, c in enumerate(folded))
    return " ".join(word for word in spaced.split() if word not in _ARTICLES)


def contains_answer(generated: str, answers: str | Iterable[str]) -> bool:
    """Whether any of the answers stands in a generated text as whole words, compared as `normalise` does.

    An answer of at most two characters ("K", "Au", "42"), before or after normalization, must stand in the
    original text as a token of its own, in the same case: "K" is in "Its symbol is K." and not in "ok" or
    "k". (The iodine of chemistry is still the pronoun "I".) An answer in a script without spaces between
    words may stand anywhere, and in a text of such a script a Latin word or a number begins and ends where the
    script changes: 1912 is in "他出生于1912年". Empty answers and answers of punctuation alone are never contained.

    Args:
        generated: the model's answer.
        answers: the true answer, or it and its aliases.

    Source: ours.
    """
    options = [answers] if isinstance(answers, str) else answers
    normalised = normalise(generated)
    words = f" {_SCRIPT_CHANGE.sub(' ', normalised)} "
    return any(_contains(generated, normalised, words, answer) for answer in options)


def distinct_n(text: str, n: int) -> float | None:
    """The share of a text's word n-grams that are different, in (0, 1], or None below n words.

    Args:
        text: split at white space, case folded.
        n: words in an n-gram, at least 1.

    Raises:
        UserError: n is below 1.

    Source: distinct-n (Li et al. 2016, arXiv 1510.03055). Differs from the paper, which divides by the number
    of words, not of n-grams.
    """
    if n < 1:
        raise UserError(f"n = {n}, but an n-gram has at least one word", "pass n >= 1")
    grams = _grams(text, n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int = 4) -> float | None:
    """The share of a text's word n-grams that repeat an earlier one, in [0, 1), or None below n words.

    Args:
        text: split at white space, case folded.
        n: words in an n-gram, at least 1.

    Raises:
        UserError: n is below 1.

    Source: seq-rep-n (Welleck et al. 2019, arXiv 1908.04319). Differs from it in counting words, not tokens.
    """
    distinct = distinct_n(text, n)
    return None if distinct is None else 1 - distinct


def ngram_entropy(text: str) -> float | None:
    """How varied a text's word pairs and triples are, in bits, or None below three words.

    (2/3 H2 + 4/3 H3) / 2, with Hn the entropy of the frequencies f of the word n-grams, -sum f log2 f. A text
    that repeats itself is near 0; one of T words that never does is near log2 T, so only texts of like length
    can be compared, and a short refusal is below a long answer.

    Args:
        text: split at white space, case folded.

    Source: ROME (arXiv 2202.05262), "generation entropy", GE, also in MEMIT (arXiv 2210.07229); both report 100
    times its mean. The division by 2 is in the authors' code (kmeng01/rome, experiments/py/eval_utils_counterfact),
    not in the paper. Differs from it in words at white space instead of NLTK's tokens.
    """
    pairs, triples = _entropy(_grams(text, 2)), _entropy(_grams(text, 3))
    if pairs is None or triples is None:
        return None
    return (2 / 3 * pairs + 4 / 3 * triples) / 2


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _entropy(grams: list[tuple[str, ...]]) -> float | None:
    """Of the frequencies, in bits; None if there are none."""
    if not grams:
        return None
    # log2(total / count) and not -log2(count / total): a single n-gram has the entropy 0, not -0.
    return math.fsum(count / len(grams) * math.log2(len(grams) / count) for count in Counter(grams).values())


@cache
def _rouge_scorer(stem: bool, ascii_only: bool) -> tuple[Any, Any]:
    # Passing the tokenizer keeps one stemmer for both uses, and rouge_score from logging its default.
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=stem) if ascii_only else _Words(DefaultTokenizer(use_stemmer=stem))
    return tokenizer, RougeScorer(["rouge1", "rougeL"], tokenizer=tokenizer)


def _rouge_of_sets(reference: str, generated: str) -> dict[str, float | None]:
    """The `rouge` package's: of sets of words, which white space and full stops separate.

    ROUGE-L is that of a summary: the words of the longest common subsequences of each sentence of the reference with
    each of the answer, taken together.
    """
    wanted, said = _sentences(reference), _sentences(generated)
    if not any(word for words in wanted for word in words):
        return dict.fromkeys(_ROUGE)
    right, own = ({word for words in sentences for word in words} for sentences in (wanted, said))
    common = {word for words in wanted for other in said for word in _common_subsequence(words, other)}
    recall, precision = len(common) / len(right), len(common) / max(len(own), 1)
    found = len(right & own) / len(right), recall, 2 * precision * recall / (precision + recall + 1e-8)
    return dict(zip(_ROUGE, found, strict=True))


def _sentences(text: str) -> list[list[str]]:
    """The words between full stops; blanks between two of them are one empty word, as the package has it."""
    return [part.split() or [""] for part in text.split(".") if part]


def _common_subsequence(first: list[str], second: list[str]) -> list[str]:
    """A longest common subsequence: of several, the one that ends earliest in `second`."""
    rows, columns = len(first), len(second)
    length = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            same = first[i - 1] == second[j - 1]
            length[i][j] = length[i - 1][j - 1] + 1 if same else max(length[i - 1][j], length[i][j - 1])
    found, i, j = [], rows, columns
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


class _Words:
    """`rouge_score`'s tokenizer, but with words of other letters than a-z kept whole."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def tokenize(self, text: str) -> list[str]:
        """The words: those of a-z and 0-9 as `rouge_score` has them, the others case folded."""
        folded = unicodedata.normalize("NFKC", text).casefold()
        spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
        return [token for word in spaced.split() for token in (self._own.tokenize(word) if word.isascii() else [word])]


def _contains(generated: str, normalised: str, words: str, answer: str) -> bool:
    literal, wanted = answer.strip(_EDGES), normalise(answer)
    if _NO_WORD_SPACES.search(wanted):
        return wanted in normalised
    if len(literal) <= 2 or len(wanted) <= 2:
        return _contains_literally(generated, literal)
    return f" {wanted} " in words


def _contains_literally(generated: str, literal: str) -> bool:
    literal, generated = unicodedata.normalize("NFKC", literal), unicodedata.normalize("NFKC", generated)
    if not any(c.isalnum() for c in literal):
        return False
    # A figure inside a longer number ("3" in "3.5", "42" in "42,000") is no token of its own.
    pattern = rf"(?<!{_WORD_CHARACTER})(?<!\d\.){re.escape(literal)}(?!{_WORD_CHARACTER})(?!\.\d)(?!,\d{{3}}(?!\d))"
    return re.search(pattern, generated) is not None
