"""Can an attacker tell that an answer was in the training data? Membership scores and their summary.

A score is one answer's, and higher means less likely a member. `membership_auc` compares the forget set
(members) with a holdout set (non-members); the aggregates of OpenUnlearning summarize the attacks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from unlearn_eval.metrics.arrays import (
    SIGN_TOLERANCE,
    FloatArray,
    Numbers,
    defined,
    drop_missing,
    mean_loss,
)
from unlearn_eval.metrics.intervals import Interval, percentile_interval, resample_counts
from unlearn_eval.metrics.utility import harmonic_mean
from unlearn_eval.utils.errors import UserError

GRADIENT_NORMS = (1.0, 2.0, math.inf)  # orders that OpenUnlearning has
PRIVACY_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")

# Below this the variance over the vocabulary is rounding error (OpenUnlearning's clamp).
_SMALLEST_VARIANCE = 1e-6


def loss_score(token_nll: Numbers) -> float | None:
    """The mean loss of an answer in nats per token, or None without tokens.

    Args:
        token_nll: (T,) losses in nats, the end-of-sequence label included.

    Raises:
        UserError: a loss is negative.

    Source: OpenUnlearning (arXiv 2506.12618), "loss" attack. No known difference.
    """
    return defined(mean_loss(token_nll))


def zlib_score(token_nll: Numbers, text: str) -> float | None:
    """The mean loss divided by the answer's compressed size in bytes, or None without tokens.

    Args:
        token_nll: (T,) losses in nats, the end-of-sequence label included.
        text: the answer, compressed as UTF-8 by zlib at its default level.

    Raises:
        UserError: a loss is negative.

    Source: OpenUnlearning (arXiv 2506.12618), "zlib" attack. No known difference.
    """
    loss = mean_loss(token_nll)
    return None if loss is None else defined(loss / len(zlib.compress(text.encode("utf-8", "surrogatepass"))))


def min_k_score(token_logprobs: Numbers, k: float = 0.4) -> float | None:
    """Minus the mean of an answer's max(1, int(kN)) smallest ln p_t, in nats, or None for N = 0.

    Args:
        token_logprobs: (N,) log-probabilities, the end-of-sequence label already dropped.
        k: the fraction of tokens that count, in (0, 1].

    Raises:
        UserError: a log-probability above 0, or k outside (0, 1].

    Source: OpenUnlearning (arXiv 2506.12618), "min-k" attack. Differs from the authors' code, which gives 0
    for an answer without tokens.
    """
    return _minus_mean_of_smallest(_log_probabilities(token_logprobs), k)


def min_k_plus_plus_score(token_logprobs: Numbers, means: Numbers, variances: Numbers, k: float = 0.4) -> float | None:
    """Minus the mean of an answer's max(1, int(kN)) smallest z_t, or None for N = 0.

    z_t = (ln p_t - mu_t) / sqrt(max(sigma_t^2, 1e-6)), with mu and sigma^2 of ln p over the vocabulary.

    Args:
        token_logprobs: (N,) log-probabilities of the labels, the end-of-sequence label already dropped.
        means: (N,) mu_t = sum_v p_v ln p_v, in nats.
        variances: (N,) sigma_t^2 = sum_v p_v (ln p_v)^2 - mu_t^2.
        k: the fraction of tokens that count, in (0, 1].

    Raises:
        UserError: lengths differ, a log-probability above 0, or k outside (0, 1].

    Source: OpenUnlearning (arXiv 2506.12618), "min-k++" attack. Differs from the authors' code, which gives 0
    for an answer without tokens.
    """
    log_p = _log_probabilities(token_logprobs)
    mu = np.asarray(means, dtype=np.float64).ravel()
    variance = np.asarray(variances, dtype=np.float64).ravel()
    if not log_p.size == mu.size == variance.size:
        raise UserError(
            f"{log_p.size} log-probabilities, {mu.size} means and {variance.size} variances",
            "pass one of each for every answer token, without the end-of-sequence label",
        )
    return _minus_mean_of_smallest((log_p - mu) / np.sqrt(np.maximum(variance, _SMALLEST_VARIANCE)), k)


def reference_score(token_nll: Numbers, reference_token_nll: Numbers) -> float | None:
    """The mean loss under the model minus that under a reference model, in nats per token.

    None if either has no tokens; the two may be tokenized differently.

    Args:
        token_nll: (T,) losses under the model, the end-of-sequence label included.
        reference_token_nll: (T',) losses of the same answer under the reference model.

    Raises:
        UserError: a loss is negative.

    Source: OpenUnlearning (arXiv 2506.12618), "reference" attack. No known difference.
    """
    loss, reference = mean_loss(token_nll), mean_loss(reference_token_nll)
    return None if loss is None or reference is None else defined(loss - reference)


def gradnorm_score(parameter_norms: Numbers) -> float | None:
    """The mean of the norms of a loss's gradient over a model's parameters, or None without any.

    Args:
        parameter_norms: (P,) of each parameter the norm of the gradient of the answer's mean loss, the end-of-sequence
            label left out.

    Source: OpenUnlearning (arXiv 2506.12618), "gradnorm" attack, after arXiv 2402.17012. Differs from its code,
    which switches dropout on.
    """
    norms = np.asarray(parameter_norms, dtype=np.float64).ravel()
    return defined(norms.mean()) if norms.size else None


def norm_named(value: object) -> float:
    """The order of a gradient's norm in the gradnorm attack: 1, 2 or infinity.

    Raises:
        UserError: another one.
    """
    try:
        order = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        order = math.nan
    if order not in GRADIENT_NORMS:
        raise UserError(f"the norm of gradients is {value!r}", "give 1, 2 or inf")
    return order


def membership_auc(forget_scores: Iterable[float | None], holdout_scores: Iterable[float | None]) -> float | None:
    """The area under the ROC curve of telling forget (0) from holdout (1) by a score, in 0..1.

    1: every forget answer looks more like a member than any holdout answer; 0.5: no telling. Undefined scores
    are dropped; None if nothing is left on either side.

    Args:
        forget_scores: scores of the members, higher = less likely a member.
        holdout_scores: scores of the non-members.

    Source: OpenUnlearning (arXiv 2506.12618); `sklearn.metrics.roc_auc_score`. Differs from the authors'
    code, where an answer without tokens scores 0.
    """
    forget, holdout = drop_missing(forget_scores), drop_missing(holdout_scores)
    if not forget.size or not holdout.size:
        return None
    return float(_aucs(forget, holdout, np.ones((1, forget.size)), np.ones((1, holdout.size)))[0])


def membership_auc_interval(
    forget_scores: Iterable[float | None], holdout_scores: Iterable[float | None], n_resamples: int = 1000
) -> Interval:
    """`bootstrap` of `membership_auc`, with the same draws, as products of matrices.

    Args:
        forget_scores: scores of the members; undefined ones are dropped.
        holdout_scores: scores of the non-members.
        n_resamples: resamples to draw.
    """
    forget, holdout = drop_missing(forget_scores), drop_missing(holdout_scores)
    if min(forget.size, holdout.size) < 2:
        return Interval(None, None, None, 0)
    counts = resample_counts(forget.size, holdout.size, n_resamples=n_resamples)
    return percentile_interval(_aucs(forget, holdout, *counts))


def _aucs(forget: FloatArray, holdout: FloatArray, n_forget: FloatArray, n_holdout: FloatArray) -> FloatArray:
    """The share of pairs in which the holdout answer scores higher, ties as halves, by how often each answer counts.

    Args:
        forget: (F,) scores of the members.
        holdout: (H,) scores of the non-members.
        n_forget: (R, F) how often each member counts.
        n_holdout: (R, H) how often each non-member counts.
    """
    order = np.argsort(holdout, kind="stable")
    up_to = np.concatenate([np.zeros((len(n_holdout), 1)), np.cumsum(n_holdout[:, order], axis=1)], axis=1)
    below, not_above = (np.searchsorted(holdout[order], forget, side=side) for side in ("left", "right"))
    total = up_to[:, -1:]
    n_higher = (n_forget * (total - (up_to[:, below] + up_to[:, not_above]) / 2)).sum(axis=1)
    return np.asarray(n_higher / (n_forget.sum(axis=1) * total[:, 0]), dtype=np.float64)


def privleak(auc: float | None, retain_auc: float | None) -> float | None:
    """The relative change of 1 - AUC against the retain-only model, in percent; 0 is ideal.

    Negative: the forget set still looks like training data. Positive: it was pushed too far. None without
    either AUC, and where the retain-only model's is 1.

    Args:
        auc: min-k AUC of the model, forget against holdout.
        retain_auc: the same AUC of the model that never saw the forget set.

    Raises:
        UserError: an AUC outside 0..1.

    Source: MUSE (arXiv 2407.06460), "PrivLeak", as OpenUnlearning orients it. Differs from OpenUnlearning,
    which adds 1e-10 to the denominator and assumes 0.5 for a missing reference.
    """
    model, retain = _fraction("auc", auc), _fraction("retain_auc", retain_auc)
    if model is None or retain is None or retain == 1:
        return None
    return defined(((1 - model) - (1 - retain)) / (1 - retain) * 100)


def s_attack(auc: float | None, retain_auc: float | None) -> float | None:
    """How near an attack's AUC is to the retain-only model's, 1 - min(|difference| / AUC_retain, 1), in 0..1.

    None without either AUC, and where the retain-only model's is 0.

    Args:
        auc: AUC of the model.
        retain_auc: AUC of the retain-only model under the same attack.

    Raises:
        UserError: an AUC outside 0..1.

    Source: OpenUnlearning (arXiv 2506.12618), which ships no code for it.
    """
    model, retain = _fraction("auc", auc), _fraction("retain_auc", retain_auc)
    if model is None or retain is None or retain == 0:
        return None
    return 1 - min(abs(model - retain) / retain, 1.0)


def privacy_score(aucs: Mapping[str, float | None], retain_aucs: Mapping[str, float | None]) -> float | None:
    """The harmonic mean of `s_attack` over the four attacks, in 0..1, or None if one is undefined.

    Args:
        aucs: AUC of the model under each of loss, zlib, min_k and min_k_plus_plus; other names are ignored.
        retain_aucs: the same of the retain-only model.

    Raises:
        UserError: an attack is missing, or an AUC lies outside 0..1.

    Source: OpenUnlearning (arXiv 2506.12618), "Privacy", which ships no code for it.
    """
    missing = [name for name in PRIVACY_ATTACKS if name not in aucs or name not in retain_aucs]
    if missing:
        raise UserError(
            f"privacy lacks the AUC of {', '.join(missing)}",
            f"give {', '.join(PRIVACY_ATTACKS)} for both models; None where one is undefined",
        )
    return harmonic_mean([s_attack(aucs[name], retain_aucs[name]) for name in PRIVACY_ATTACKS])


def memorization_score(
    extraction_strength: float | None,
    exact_memorization: float | None,
    paraphrase_probability: float | None,
    truth_ratio_probability: float | None,
) -> float | None:
    """The harmonic mean of 1 minus each of four forget-set metrics, in 0..1; high means forgotten.

    None if one of them is undefined.

    Args:
        extraction_strength: mean over the forget set, in 0..1, as are all four.
        exact_memorization: mean over the forget set.
        paraphrase_probability: mean probability of the paraphrased answers.
        truth_ratio_probability: mean truth ratio in its probability form.

    Raises:
        UserError: a value outside 0..1.

    Source: OpenUnlearning (arXiv 2506.12618), "Memorization", which ships no code for it.
    """
    parts = {
        "extraction_strength": extraction_strength,
        "exact_memorization": exact_memorization,
        "paraphrase_probability": paraphrase_probability,
        "truth_ratio_probability": truth_ratio_probability,
    }
    known = [_fraction(name, value) for name, value in parts.items()]
    return harmonic_mean([None if value is None else 1 - value for value in known])


def _log_probabilities(token_logprobs: Numbers) -> FloatArray:
    log_p = np.asarray(token_logprobs, dtype=np.float64).ravel()
    if np.any(log_p > SIGN_TOLERANCE):
        raise UserError(f"a log-probability of {log_p.max():.4g} is above 0", "pass ln p of each token, not -ln p")
    return log_p


def _minus_mean_of_smallest(values: FloatArray, k: float) -> float | None:
    if not 0 < k <= 1:
        raise UserError(f"k = {k} is outside (0, 1]", "k is the fraction of tokens that count, such as 0.4")
    # A NaN would sort last and be left out of the mean, as if it had not been there.
    if not values.size or np.isnan(values).any():
        return None
    count = max(1, int(k * values.size))
    return defined(-np.sort(values)[:count].mean())


def _fraction(name: str, value: float | None) -> float | None:
    if value is not None and not np.isnan(value) and not 0 <= value <= 1:
        raise UserError(f"{name} = {value:g} is outside 0..1", "give it as a fraction, not in percent")
    return defined(value)
