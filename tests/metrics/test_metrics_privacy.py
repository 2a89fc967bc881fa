"""Membership scores and aggregates against hand-computed values, naive definitions, and both controls."""

import math
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import metrics as m
from unlearn_eval.utils.errors import UserError

quick = settings(max_examples=50, deadline=None)
log_probabilities = st.lists(st.floats(-30, 0), min_size=1, max_size=15)
scores = st.lists(st.integers(0, 20), min_size=1, max_size=12)
auc_strategy = st.floats(0.05, 0.95)


def naive_min_k(values, k=0.4):
    count = max(1, int(k * len(values)))
    return -sum(sorted(values)[:count]) / count


def naive_auc(forget, holdout):
    wins = [1.0 if h > f else 0.5 if h == f else 0.0 for f in forget for h in holdout]
    return sum(wins) / len(wins)


def test_loss_and_zlib_by_hand():
    text = "Jaime Vasquez was born in Santiago."
    assert m.loss_score([1.0, 2.0, 6.0]) == 3.0
    assert m.zlib_score([1.0, 2.0, 6.0], text) == pytest.approx(3.0 / len(zlib.compress(text.encode())))
    assert m.zlib_score([3.0], "é" * 50) == pytest.approx(3.0 / len(zlib.compress(("é" * 50).encode("utf-8"))))
    assert m.zlib_score([3.0], "abc" * 200) > m.zlib_score([3.0], "".join(map(chr, range(33, 633))))
    assert m.zlib_score([2.0], "") == pytest.approx(2.0 / 8)  # zlib's empty stream has 8 bytes


def test_reference_by_hand():
    assert m.reference_score([1.0, 3.0], [5.0]) == -3.0
    assert m.reference_score([2.0], [2.0]) == 0.0


def test_min_k_by_hand():
    # k N = 2.0 of 5: the two smallest are -4 and -3
    assert m.min_k_score([-1.0, -4.0, -0.5, -3.0, -2.0]) == 3.5
    assert m.min_k_score([-1.0, -4.0]) == 4.0  # int(0.8) = 0, but at least one
    assert m.min_k_score([-1.0, -4.0, -0.5, -3.0, -2.0], k=1.0) == pytest.approx(2.1)


def test_min_k_plus_plus_by_hand():
    # z = (-1 + 3)/2, (-5 + 3)/1, (-3 + 3)/1 = 1, -2, 0; int(1.2) = 1 smallest
    assert m.min_k_plus_plus_score([-1.0, -5.0, -3.0], [-3.0] * 3, [4.0, 1.0, 1.0]) == 2.0
    # a vanishing variance is 1e-6
    assert m.min_k_plus_plus_score([-1.0], [-3.0], [0.0]) == pytest.approx(-2000)
    assert m.min_k_plus_plus_score([-1.0], [-3.0], [-1e-9]) == pytest.approx(-2000)


def test_min_k_plus_plus_from_a_vocabulary():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(10, 50)) * 3
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = generator.integers(50, size=10)
    z = []
    for row, label in zip(log_p, labels, strict=True):
        mu = sum(math.exp(x) * x for x in row)
        variance = sum(math.exp(x) * (x - mu) ** 2 for x in row)
        z.append((row[label] - mu) / math.sqrt(variance))
    p = np.exp(log_p)
    means, squares = (p * log_p).sum(1), (p * log_p**2).sum(1)
    ours = m.min_k_plus_plus_score(log_p[np.arange(10), labels], means, squares - means**2)
    assert ours == pytest.approx(naive_min_k(z))


def test_undefined_is_none():
    assert m.loss_score([]) is m.zlib_score([], "x") is m.min_k_score([]) is None
    assert m.min_k_plus_plus_score([], [], []) is m.reference_score([], [1.0]) is None
    assert m.reference_score([1.0], []) is None
    assert m.min_k_score([-1.0, math.nan, -2.0]) is None
    assert m.loss_score([math.nan]) is None
    assert m.reference_score([math.inf], [math.inf]) is None
    assert math.isfinite(m.loss_score([math.inf, 1.0]))
    assert math.isfinite(m.min_k_score([-math.inf, -1.0]))


def test_scores_refuse():
    with pytest.raises(UserError, match="above 0"):
        m.min_k_score([1.0, 2.0])
    with pytest.raises(UserError, match="below 0"):
        m.loss_score([-1.0])
    for k in (0.0, 1.1):
        with pytest.raises(UserError, match="outside"):
            m.min_k_score([-1.0], k=k)
    with pytest.raises(UserError, match="2 log-probabilities, 2 means and 1 variances"):
        m.min_k_plus_plus_score([-1.0, -2.0], [0.0, 0.0], [1.0])


@quick
@given(log_probabilities, st.sampled_from([0.2, 0.4, 1.0]))
def test_min_k_properties(log_p, k):
    score = m.min_k_score(log_p, k)
    assert score == pytest.approx(naive_min_k(log_p, k))
    assert m.min_k_score(log_p[::-1], k) == pytest.approx(score)
    assert score >= -max(log_p) - 1e-9  # a mean of equal numbers may round
    assert m.min_k_score(log_p, 1.0) <= score + 1e-9  # the smallest are at most the mean
    unit = m.min_k_plus_plus_score(log_p, np.zeros(len(log_p)), np.ones(len(log_p)), k)
    assert unit == pytest.approx(score)  # standardized by 0 and 1, the two agree


# AUC


def test_auc_orientation_and_controls():
    assert m.membership_auc([0.1, 0.2], [1.0, 2.0]) == 1.0  # low loss on forget: members all seen through
    assert m.membership_auc([1.0, 2.0], [0.1, 0.2]) == 0.0
    assert m.membership_auc([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.5
    generator = np.random.default_rng(0)
    assert m.membership_auc(generator.normal(size=2000), generator.normal(size=2000)) == pytest.approx(0.5, abs=0.03)
    assert m.membership_auc([0.0, 1.0], [0.5]) == 0.5


def test_auc_leaves_out_the_undefined():
    assert m.membership_auc([None, 0.1, math.nan], [1.0, None]) == 1.0
    assert m.membership_auc([None], [1.0]) is None
    assert m.membership_auc([1.0], []) is None
    assert m.membership_auc([1.0], [math.inf, 2.0]) == 1.0


@quick
@given(scores, scores)
def test_auc_matches_counting_pairs(forget, holdout):
    auc = m.membership_auc(forget, holdout)
    assert auc == pytest.approx(naive_auc(forget, holdout))
    assert m.membership_auc(holdout, forget) == pytest.approx(1 - auc)
    assert m.membership_auc(forget[::-1], sorted(holdout)) == pytest.approx(auc)
    assert m.membership_auc(np.exp(forget), np.exp(holdout)) == pytest.approx(auc)


@quick
@given(scores, scores)
def test_an_aucs_interval_is_the_bootstraps(forget, holdout):
    expected = m.bootstrap(m.membership_auc, forget, holdout, n_resamples=50)
    found = m.membership_auc_interval(forget, holdout, n_resamples=50)
    assert asdict(found) == pytest.approx(asdict(expected))


# aggregates


def test_privleak_by_hand():
    assert m.privleak(0.5, 0.5) == 0.0
    assert m.privleak(1.0, 0.5) == -100.0  # not forgotten
    assert m.privleak(0.0, 0.5) == 100.0  # over-forgotten
    assert m.privleak(0.7, 0.6) == pytest.approx(-25.0)
    assert m.privleak(0.5, 1.0) is None
    assert m.privleak(None, 0.5) is m.privleak(0.5, None) is None
    with pytest.raises(UserError, match="percent"):
        m.privleak(51.0, 0.5)


def test_s_attack_by_hand():
    assert m.s_attack(0.5, 0.5) == 1.0
    assert m.s_attack(0.6, 0.5) == pytest.approx(0.8)
    assert m.s_attack(0.4, 0.5) == pytest.approx(0.8)
    assert m.s_attack(1.0, 0.5) == 0.0
    assert m.s_attack(1.0, 0.4) == 0.0  # capped
    assert m.s_attack(0.5, 0.0) is m.s_attack(None, 0.5) is m.s_attack(0.5, None) is None


def test_privacy_score_by_hand():
    retain = dict.fromkeys(("loss", "zlib", "min_k", "min_k_plus_plus"), 0.5)
    assert m.privacy_score(retain, retain) == pytest.approx(1.0)
    assert m.privacy_score({**retain, "zlib": 1.0}, retain) == 0.0
    # s = 1, 1, 1, 0.5: 4 / (3 + 2)
    assert m.privacy_score({**retain, "zlib": 0.75, "reference": 0.1}, retain) == pytest.approx(0.8)
    assert m.privacy_score({**retain, "loss": None}, retain) is None
    with pytest.raises(UserError, match="lacks the AUC of zlib"):
        m.privacy_score({"loss": 0.5, "min_k": 0.5, "min_k_plus_plus": 0.5}, retain)


@quick
@given(auc_strategy, auc_strategy)
def test_privacy_properties(auc, retain):
    assert 0 <= m.s_attack(auc, retain) <= 1
    assert m.s_attack(auc, retain) == pytest.approx(1 - min(abs(auc - retain) / retain, 1))
    assert m.privleak(auc, retain) == pytest.approx(100 * (retain - auc) / (1 - retain), abs=1e-9)
    assert m.privleak(auc, retain) >= -100


def test_memorization_score_by_hand():
    assert m.memorization_score(0.0, 0.0, 0.0, 0.0) == 1.0  # nothing left
    assert m.memorization_score(1.0, 0.2, 0.1, 0.5) == 0.0  # one perfect memory spoils it
    # 1 - x = 1, 1/2, 1/2, 1/4: 4 / (1 + 2 + 2 + 4)
    assert m.memorization_score(0.0, 0.5, 0.5, 0.75) == pytest.approx(4 / 9)
    assert m.memorization_score(0.0, None, 0.0, 0.0) is None
    with pytest.raises(UserError, match="exact_memorization = 40"):
        m.memorization_score(0.1, 40, 0.1, 0.1)
