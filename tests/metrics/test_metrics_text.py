"""Text metrics against hand-counted overlaps and the cases that string matching gets wrong."""

import math
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import metrics as m
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=50, deadline=None)
# words that the Porter stemmer leaves alone
words = st.lists(st.sampled_from(["red", "cat", "dog", "sun", "map", "big"]), min_size=1, max_size=8)


@cache
def naive_lcs(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + naive_lcs(a[1:], b[1:])
    return max(naive_lcs(a[1:], b), naive_lcs(a, b[1:]))


def naive_rouge(reference, generated):
    overlap = sum(min(reference.count(w), generated.count(w)) for w in set(reference))
    lcs = naive_lcs(tuple(reference), tuple(generated))
    recall, precision = lcs / len(reference), lcs / len(generated)
    f1 = 2 * recall * precision / (recall + precision) if lcs else 0.0
    return {"rouge1_recall": overlap / len(reference), "rougeL_recall": recall, "rougeL_f1": f1}


def test_rouge_by_hand():
    # the cat sat down | the dog sat: LCS "the sat" = 2 of 4, precision 2 of 3
    scores = m.rouge("The cat sat down.", "the dog sat")
    assert scores == pytest.approx({"rouge1_recall": 0.5, "rougeL_recall": 0.5, "rougeL_f1": 4 / 7})
    # order matters to L, not to 1
    scores = m.rouge("cat sat", "sat cat")
    assert (scores["rouge1_recall"], scores["rougeL_recall"]) == (1.0, 0.5)


def test_rouge_stems_and_forgives_length_in_recall():
    assert m.rouge("he writes novels", "he writing novel")["rougeL_recall"] == 1.0
    long = m.rouge("born in Baku", "She was born in Baku, I believe, some time ago.")
    assert long["rougeL_recall"] == 1.0
    assert long["rougeL_f1"] < 0.6


def test_rouge_controls_and_undefined():
    assert set(m.rouge("Basil Mahfouz", "Basil Mahfouz").values()) == {1.0}
    assert set(m.rouge("Basil Mahfouz", "no idea").values()) == {0.0}
    assert set(m.rouge("Basil Mahfouz", "").values()) == {0.0}
    assert set(m.rouge("Basil Mahfouz", "...").values()) == {0.0}
    for unreadable in ("", "?!", "東京"):
        assert m.rouge(unreadable, "anything") == dict.fromkeys(("rouge1_recall", "rougeL_recall", "rougeL_f1"))


@quick
@given(words, words)
def test_rouge_matches_the_definition(reference, generated):
    scores = m.rouge(" ".join(reference), " ".join(generated))
    assert scores == pytest.approx(naive_rouge(reference, generated))
    assert scores["rougeL_recall"] <= scores["rouge1_recall"] <= 1


# normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat\n(on) a mat!", "cat sat on mat"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("STRASSE Straße", "strasse strasse"),
        ("Jaime\u2019s \u201cnovel\u201d\u2014an epic", "jaime s novel epic"),
        ("1,234,567 and 3.5 and 12,34", "1234567 and 3.5 and 12 34"),
        ("...", ""),
        ("the a an", ""),
        ("theatre another", "theatre another"),
        ("soft\u00adhy\u200bphen", "softhyphen"),
        ("snake_case", "snake case"),
        ("Beyoncé", "beyoncé"),
        ("हिन्दी", "हिन्दी"),  # combining marks belong to the word
    ],
)
def test_normalise(text, expected):
    assert m.normalise(text) == expected


@quick
@given(st.text(max_size=40))
def test_normalise_properties(text):
    once = m.normalise(text)
    assert m.normalise(once) == once
    assert once == once.strip()
    assert "  " not in once
    assert not set(once.split()) & {"a", "an", "the"}


# contains_answer


@pytest.mark.parametrize(
    ("generated", "answers"),
    [
        ("He was born in Paris, France.", "paris"),
        ("Paris,France", ["France"]),
        ("It is Jaime's book", "Jaime"),
        ("PARIS!", ["London", "Paris"]),
        ("by J.R.R. Tolkien", "J R R Tolkien"),
        ("the Beatles", "The Beatles"),
        ("Beatles", "The Beatles"),
        ("about 1,000 copies", "1000"),
        ("U.S. citizen", "U.S."),
        ("The symbol is K.", "K"),
        ("potassium (K)", "K."),
        ("Its symbol: Au", "Au"),
        ("It is 42.", "42"),
        ("lines 1, 42", "42"),
        ("Grade A", "A"),
        ("use C++ here", "C++"),
        ("首都是巴黎。", "巴黎"),
        ("프랑스의 수도는 파리입니다", "파리"),
        ("Москва!", "москва"),
        ("ＫＹＯＴＯ", "Kyoto"),
    ],
)
def test_contains(generated, answers):
    assert m.contains_answer(generated, answers)


@pytest.mark.parametrize(
    ("generated", "answers"),
    [
        ("Parisian", "Paris"),
        ("comparison", ["Paris"]),
        ("I do not know.", ["Paris", "France"]),
        ("ok, like k", "K"),
        ("Kalium", "K"),
        ("au revoir", "Au"),
        ("a cat", "A"),
        ("join us", "U.S."),
        ("3.5 km", "3"),
        ("42,000 people", "42"),
        ("1042 people", "42"),
        ("0.42 grams", "42"),
        ("vitamin C", "C++"),
        ("anything.", ["", "  ", ".", "--", "?!"]),
        ("anything", []),
        ("", "Paris"),
        ("", ""),
        ("北京", "東京"),
        ("New Jersey York", "New York"),
    ],
)
def test_does_not_contain(generated, answers):
    assert not m.contains_answer(generated, answers)


def test_one_string_is_one_answer_not_its_letters():
    assert not m.contains_answer("P a r i s", "Paris")


@quick
@given(
    st.text(alphabet="abcXYZ", min_size=3, max_size=8),
    st.lists(st.text(alphabet="abcXYZ", max_size=8), max_size=5),
    st.integers(0, 5),
)
def test_contains_matches_word_sets(answer, generated, position):
    """The naive definition for one-word answers of letters: the lower-cased word is one of the words."""
    text = " ".join(generated)
    naive = answer.lower() in re.findall(r"[a-z]+", text.lower())
    assert m.contains_answer(text, [answer]) == naive
    assert m.contains_answer(" ".join([*generated[:position], answer, *generated[position:]]), [answer])
    assert not m.contains_answer(text + "q" + answer, [answer]) or naive


# repetition


def test_distinct_and_repetition_by_hand():
    assert m.distinct_n("a b a b", 1) == 0.5
    assert m.distinct_n("a b a b", 2) == pytest.approx(2 / 3)
    assert m.distinct_n("The the THE", 1) == pytest.approx(1 / 3)
    assert m.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert m.repetition("one two three four five") == 0.0  # fluent
    assert m.repetition("no " * 100) == pytest.approx(1 - 1 / 97)  # degenerate
    assert m.distinct_n("a b", 3) is m.repetition("a b c") is m.distinct_n("", 1) is None
    with pytest.raises(UserError, match="at least one word"):
        m.distinct_n("a", 0)


@quick
@given(words, st.integers(1, 4))
def test_distinct_matches_the_definition(tokens, n):
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    distinct = m.distinct_n(" ".join(tokens), n)
    if not grams:
        assert distinct is None
        return
    assert distinct == pytest.approx(len(set(grams)) / len(grams))
    assert m.repetition(" ".join(tokens), n) == pytest.approx(1 - distinct)


# ngram_entropy


def naive_ngram_entropy(text):
    """The authors' formula, one n-gram at a time."""
    tokens, parts = text.lower().split(), []
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        shares = [grams.count(gram) / len(grams) for gram in set(grams)]
        parts.append(weight * sum(-share * math.log(share) / math.log(2) for share in shares))
    return sum(parts) / 2


def test_ngram_entropy_by_hand():
    # pairs ab bc cd de: 2 bits; triples abc bcd cde: log2 3
    assert m.ngram_entropy("a b c d e") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    # pairs ab ab ba: shares 2/3 and 1/3; triples aba, bab: 1 bit
    assert m.ngram_entropy("a b A b") == pytest.approx((2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3) / 2)
    assert m.ngram_entropy("no " * 100) == 0  # degenerate
    fluent = " ".join(map(str, range(102)))
    assert m.ngram_entropy(fluent) == pytest.approx((2 / 3 * math.log2(101) + 4 / 3 * math.log2(100)) / 2)
    assert m.ngram_entropy("one two") is m.ngram_entropy("") is None
    assert m.ngram_entropy("one two three") == pytest.approx(2 / 3 / 2)


@quick
@given(st.lists(st.sampled_from(["red", "cat", "Cat", "sun"]), min_size=3, max_size=20))
def test_ngram_entropy_matches_the_formula(tokens):
    assert m.ngram_entropy(" ".join(tokens)) == pytest.approx(naive_ngram_entropy(" ".join(tokens)), abs=1e-12)
    assert m.ngram_entropy(" ".join(tokens)) >= 0
