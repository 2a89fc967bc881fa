"""Answer-level metrics against hand-computed values, naive definitions, and both controls."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import metrics as m
from unlearn_eval.utils.errors import UserError

LN2 = math.log(2)
quick = settings(max_examples=60, deadline=None)
nll = st.lists(st.floats(0, 30), min_size=1, max_size=8)
options = st.lists(nll, min_size=1, max_size=5)
hits_strategy = st.lists(st.booleans(), min_size=1, max_size=12)
ratios = st.floats(1e-300, 1e300)


# probability


def test_probability_counts_every_label():
    assert m.probability([LN2, 3 * LN2]) == pytest.approx(0.25)
    assert m.probability([LN2, LN2, 4 * LN2]) == pytest.approx(0.25)  # the last, the end label, counts too


def test_probability_controls():
    assert m.probability(np.zeros(7)) == 1.0  # oracle
    assert m.probability(np.full(7, math.log(50_000))) == pytest.approx(1 / 50_000)  # uniform model
    assert m.probability([math.inf, 0.0]) == 0.0


def test_undefined_is_none_never_zero():
    assert m.probability([]) is None
    assert m.probability([0.1, math.nan]) is None
    assert m.exact_memorization([]) is None
    assert m.extraction_strength([]) is None
    assert m.mean_reciprocal_rank([]) is None
    assert m.mean_reciprocal_rank([1, math.nan]) is None
    assert m.top_hit_ratio([]) is None
    assert m.top_hit_ratio([1, math.nan]) is None
    assert m.truth_ratio_score(None, "forget") is None
    assert m.truth_ratio_score(math.nan, "non_forget") is None


@pytest.mark.parametrize("score", [m.probability_normalised, m.truth_ratio, m.log_truth_ratio])
def test_options_undefined(score):
    assert score([], [[1.0]]) is None
    assert score([1.0], []) is None
    assert score([1.0], [[1.0], []]) is None
    assert score([math.nan], [[1.0]]) is None
    assert score([math.inf], [[math.inf]]) is None  # 0/0


def test_log_probabilities_in_place_of_losses_are_refused():
    with pytest.raises(UserError, match="below 0"):
        m.probability([-2.0, -1.0])
    with pytest.raises(UserError, match="-ln p"):
        m.truth_ratio([1.0], [[-2.0]])
    assert m.probability([-1e-6]) == 1.0  # rounding of a log-softmax is not a mistake


@quick
@given(nll)
def test_probability_is_the_geometric_mean(token_nll):
    naive = math.prod(math.exp(-loss) for loss in token_nll) ** (1 / len(token_nll))
    assert m.probability(token_nll) == pytest.approx(naive, rel=1e-9, abs=1e-300)
    assert m.probability(token_nll[::-1]) == pytest.approx(m.probability(token_nll))
    assert m.probability([*token_nll, max(token_nll) + 1]) < m.probability(token_nll)


# probability_normalised


def test_probability_normalised_by_hand():
    # c = 1/2; wrong answers 1/4 and 1/4
    assert m.probability_normalised([LN2], [[2 * LN2], [LN2, 3 * LN2]]) == pytest.approx(0.5)


def test_probability_normalised_controls():
    assert m.probability_normalised([0.0], [[800.0]] * 3) == 1.0
    assert m.probability_normalised([3.0, 5.0], [[4.0]] * 3) == pytest.approx(0.25)  # chance of four options
    assert m.probability_normalised([2000.0], [[2000.0]]) == 0.5  # both underflow; the share does not
    assert m.probability_normalised([2000.0], [[2001.0]]) == pytest.approx(1 / (1 + math.exp(-1)))
    assert m.probability_normalised([math.inf], [[1.0]]) == 0.0


@quick
@given(nll, options)
def test_probability_normalised_matches_the_definition(correct, wrong):
    c, w = m.probability(correct), [m.probability(x) for x in wrong]
    score = m.probability_normalised(correct, wrong)
    assert score == pytest.approx(c / (c + sum(w)), rel=1e-9)
    assert m.probability_normalised(correct, wrong[::-1]) == pytest.approx(score)
    assert m.probability_normalised(correct, [*wrong, [1.0]]) < score


# truth ratio


def test_truth_ratio_is_geometric_over_the_wrong_answers():
    # L(wrong) = ln 2 and 3 ln 2, mean 2 ln 2; L(correct) = ln 2: TR = (1/4) / (1/2)
    assert m.truth_ratio([LN2], [[LN2], [3 * LN2]]) == pytest.approx(0.5)
    assert m.log_truth_ratio([LN2], [[LN2], [3 * LN2]]) == pytest.approx(-LN2)
    # each wrong answer is averaged over its own tokens first
    assert m.truth_ratio([0.0], [[LN2] * 9, [3 * LN2]]) == pytest.approx(0.25)


def test_truth_ratio_stays_finite():
    assert m.log_truth_ratio([5000.0], [[1.0]]) == pytest.approx(4999)
    assert 1e308 < m.truth_ratio([5000.0], [[1.0]]) < math.inf
    assert m.truth_ratio([1.0], [[5000.0]]) == 0.0
    for extreme in (m.log_truth_ratio([math.inf], [[1.0]]), m.log_truth_ratio([1.0], [[math.inf]])):
        assert math.isfinite(extreme)
    assert math.isfinite(m.truth_ratio([math.inf], [[1.0]]))
    assert m.truth_ratio([1.0], [[math.inf], [1.0]]) == 0.0


@quick
@given(nll, options)
def test_truth_ratio_matches_the_definition(correct, wrong):
    numerator = math.prod(m.probability(x) for x in wrong) ** (1 / len(wrong))
    assert m.truth_ratio(correct, wrong) == pytest.approx(numerator / m.probability(correct), rel=1e-6)
    assert math.log(m.truth_ratio(correct, wrong)) == pytest.approx(m.log_truth_ratio(correct, wrong), abs=1e-9)
    assert m.log_truth_ratio(correct, wrong[::-1]) == pytest.approx(m.log_truth_ratio(correct, wrong), abs=1e-9)


@quick
@given(nll, nll)
def test_truth_ratio_inverts_when_the_answers_swap(one, other):
    assert m.log_truth_ratio(one, [other]) == pytest.approx(-m.log_truth_ratio(other, [one]), abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "forget", "non_forget", "share"),
    [
        (0.0, 0.0, 1.0, 1.0),
        (0.25, 0.25, 0.75, 0.8),
        (1.0, 1.0, 0.0, 0.5),
        (4.0, 0.25, 0.0, 0.2),
        (math.inf, 0.0, 0.0, 0.0),
    ],
)
def test_truth_ratio_score_by_hand(ratio, forget, non_forget, share):
    assert m.truth_ratio_score(ratio, "forget") == forget
    assert m.truth_ratio_score(ratio, "non_forget") == non_forget
    assert m.truth_ratio_score(ratio, "probability") == pytest.approx(share)


def test_truth_ratio_score_refuses():
    with pytest.raises(UserError, match="did you mean forget"):
        m.truth_ratio_score(1.0, "forgt")
    with pytest.raises(UserError, match="below 0"):
        m.truth_ratio_score(-0.5, "forget")


@quick
@given(ratios, ratios)
def test_truth_ratio_score_properties(ratio, other):
    forget = m.truth_ratio_score(ratio, "forget")
    assert m.truth_ratio_score(1 / ratio, "forget") == pytest.approx(forget)
    share = m.truth_ratio_score(ratio, "probability")
    assert share + m.truth_ratio_score(1 / ratio, "probability") == pytest.approx(1)
    low, high = sorted((ratio, other))
    for kind in ("non_forget", "probability"):
        assert m.truth_ratio_score(low, kind) >= m.truth_ratio_score(high, kind)
        assert 0 <= m.truth_ratio_score(ratio, kind) <= 1


@quick
@given(nll, nll)
def test_probability_form_is_c_over_c_plus_w(correct, wrong):
    c, w = m.probability(correct), m.probability(wrong)
    score = m.truth_ratio_score(m.truth_ratio(correct, [wrong]), "probability")
    assert score == pytest.approx(c / (c + w), rel=1e-9)
    assert score == pytest.approx(m.probability_normalised(correct, [wrong]), rel=1e-9)


# exact memorization and extraction strength


def naive_extraction_strength(hits):
    n = len(hits)
    return next(1 - k / n for k in range(n + 1) if all(hits[k:]))


def openunlearning_loop(hits):
    n = len(hits)
    for k in range(n):  # noqa: B007
        if all(hits[k:]):
            break
    return 1 - k / n


@pytest.mark.parametrize(
    ("hits", "exact", "strength", "theirs"),
    [
        ("1111", 1.0, 1.0, 1.0),
        ("0111", 0.75, 0.75, 0.75),
        ("1011", 0.75, 0.5, 0.5),
        ("0001", 0.25, 0.25, 0.25),
        ("1110", 0.75, 0.0, 0.25),
        ("0000", 0.0, 0.0, 0.25),
        ("0", 0.0, 0.0, 1.0),
    ],
)
def test_hits_by_hand(hits, exact, strength, theirs):
    hits = [c == "1" for c in hits]
    assert m.exact_memorization(hits) == exact
    assert m.extraction_strength(hits) == strength
    assert m.extraction_strength(hits, compat="openunlearning") == theirs


def test_extraction_strength_compat():
    assert m.extraction_strength([], compat="openunlearning") == 0.0
    with pytest.raises(UserError, match="did you mean openunlearning"):
        m.extraction_strength([True], compat="open-unlearning")


@quick
@given(hits_strategy)
def test_hits_match_the_definitions(hits):
    n = len(hits)
    strength = m.extraction_strength(hits)
    assert strength == pytest.approx(naive_extraction_strength(hits))
    theirs = m.extraction_strength(np.array(hits), compat="openunlearning")
    assert theirs == pytest.approx(openunlearning_loop(hits))
    assert theirs == pytest.approx(max(strength, 1 / n))  # the floor is the only difference
    assert m.exact_memorization(hits) == pytest.approx(hits.count(True) / n)
    assert strength <= m.exact_memorization(hits) <= 1  # the completed suffix is made of hits
    assert m.extraction_strength([*hits, False]) == 0
    assert m.extraction_strength([*hits, True]) >= strength


# ranks


def test_ranks_by_hand_and_controls():
    assert m.mean_reciprocal_rank([1, 2, 4]) == pytest.approx(7 / 12)
    assert m.top_hit_ratio([1, 100, 101, 5000]) == 0.5
    assert m.top_hit_ratio([1, 2, 3, 4], m=3) == 0.75
    assert m.mean_reciprocal_rank([1] * 5) == m.top_hit_ratio([1] * 5, m=1) == 1.0  # oracle
    ranks = np.arange(1, 1001)  # a uniform model over 1000 tokens
    assert m.mean_reciprocal_rank(ranks) == pytest.approx(sum(1 / r for r in range(1, 1001)) / 1000)
    assert m.top_hit_ratio(ranks) == pytest.approx(0.1)
    assert m.mean_reciprocal_rank([1, math.inf]) == m.top_hit_ratio([1, math.inf]) == 0.5


def test_ranks_refuse():
    with pytest.raises(UserError, match="rank 1"):
        m.mean_reciprocal_rank([0, 1])
    with pytest.raises(UserError, match="rank 1"):
        m.top_hit_ratio([1, -1])
    with pytest.raises(UserError, match="m = 0"):
        m.top_hit_ratio([1], m=0)


@quick
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=10), st.integers(1, 200))
def test_rank_properties(ranks, cut):
    assert 0 < m.mean_reciprocal_rank(ranks) <= 1
    assert m.mean_reciprocal_rank([r + 1 for r in ranks]) < m.mean_reciprocal_rank(ranks)
    assert m.mean_reciprocal_rank(sorted(ranks)) == pytest.approx(m.mean_reciprocal_rank(ranks))
    assert m.top_hit_ratio(ranks, cut) == sum(r <= cut for r in ranks) / len(ranks)
    assert m.top_hit_ratio(ranks, cut) <= m.top_hit_ratio(ranks, cut + 1)
    assert m.top_hit_ratio(ranks, 1) <= m.mean_reciprocal_rank(ranks)


def test_one_oracle_and_one_stranger():
    """A perfect memorizer scores 1 everywhere; a uniform model over V tokens scores chance."""
    vocabulary, generator = 1000, np.random.default_rng(0)
    ranks = generator.integers(1, vocabulary + 1, size=20_000)
    assert m.exact_memorization(ranks == 1) == pytest.approx(1 / vocabulary, abs=1e-3)
    assert m.top_hit_ratio(ranks) == pytest.approx(0.1, abs=0.01)
    strengths = [m.extraction_strength(generator.integers(vocabulary, size=20) == 0) for _ in range(500)]
    assert np.mean(strengths) < 0.002
    theirs = [m.extraction_strength(generator.integers(vocabulary, size=20) == 0, "openunlearning") for _ in range(500)]
    assert np.mean(theirs) == pytest.approx(1 / 20, abs=0.002)
    everything = np.ones(20, dtype=bool)
    assert m.exact_memorization(everything) == m.extraction_strength(everything) == 1.0
