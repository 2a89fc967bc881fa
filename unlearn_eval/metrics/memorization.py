"""How well a model still knows one answer: scores from a single teacher-forced pass.

Symbols of the papers: labels y_1..y_T, the last of which is the end-of-sequence label; the loss of a token
l_t = -ln p(y_t | x, y_<t) is `token_nll`; L is the mean of l_t over an answer. N = T - 1 counts the answer's
own tokens; a hit says that the argmax at a position is its label; a rank is 1 for the most likely token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from unlearn_eval.metrics.arrays import FloatArray, Numbers, defined, mean_loss
from unlearn_eval.utils.errors import UserError, unknown_name

Hits = Sequence[bool] | npt.NDArray[np.bool_]
Ranks = Sequence[int] | Sequence[float] | npt.NDArray[np.integer] | npt.NDArray[np.floating]
TruthRatioKind = Literal["forget", "non_forget", "probability"]

FLOOR = 1e-10  # which OpenUnlearning adds to denominators
_LOG_LARGEST = math.log(np.finfo(np.float64).max)


def probability(token_nll: Numbers) -> float | None:
    """The length-normalized probability of an answer, exp(-mean l_t), or None if it has no tokens.

    Args:
        token_nll: (T,) losses in nats, the end-of-sequence label included.

    Raises:
        UserError: a loss is negative.

    Source: TOFU (arXiv 2401.06121), "Probability". No known difference.
    """
    loss = mean_loss(token_nll)
    return None if loss is None else math.exp(-loss)


def probability_normalised(
    correct_nll: Numbers, wrong_nlls: Sequence[Numbers], compat: str | None = None
) -> float | None:
    """The correct answer's share of the probabilities of all options, c / (c + sum_j w_j), in 0..1.

    c and w_j are length-normalized probabilities. None without wrong answers, or if any answer has no tokens.

    Args:
        correct_nll: (T,) losses of the correct answer in nats.
        wrong_nlls: one (T_j,) sequence of losses for each wrong answer; lengths may differ.
        compat: "openunlearning" adds 1e-10 to the denominator, as there.

    Raises:
        UserError: a loss is negative.

    Source: TOFU (arXiv 2401.06121), real authors and world facts. Differs from OpenUnlearning, which adds
    1e-10 to the denominator: here two hopeless options still share 1 between them.
    """
    correct, wrong = mean_loss(correct_nll), _mean_losses(wrong_nlls)
    if correct is None or wrong is None:
        return None
    if compat == "openunlearning":
        own = math.exp(-correct)
        return defined(own / (own + float(np.exp(-wrong).sum()) + FLOOR))
    # c / (c + sum w) = 1 / sum exp(L_correct - L_j): the smallest loss never underflows.
    losses = np.concatenate([[correct], wrong])
    with np.errstate(invalid="ignore"):  # infinite losses alone: 0/0, undefined
        weights = np.exp(losses.min() - losses)
    return defined(weights[0] / weights.sum())


def log_truth_ratio(correct_nll: Numbers, wrong_nlls: Sequence[Numbers], compat: str | None = None) -> float | None:
    """The natural logarithm of the truth ratio, L(correct) - mean_j L(wrong_j), finite.

    Below 0 the model prefers the correct answer. None without wrong answers, or if any answer has no tokens.
    Store this rather than the ratio: it cannot overflow, and `forget_quality` is the same on either.

    Args:
        correct_nll: (T,) losses in nats; the paraphrased answer on forget and retain, else the plain one.
        wrong_nlls: one (T_j,) sequence of losses for each wrong answer.
        compat: "openunlearning" adds 1e-10 to exp(-L(correct)), as there.

    Raises:
        UserError: a loss is negative.

    Source: TOFU (arXiv 2401.06121), "Truth Ratio", in logarithms. See `truth_ratio` for differences.
    """
    correct, wrong = mean_loss(correct_nll), _mean_losses(wrong_nlls)
    if correct is None or wrong is None:
        return None
    if compat == "openunlearning":
        return defined(-math.log(math.exp(-correct) + FLOOR) - float(wrong.mean()))
    return defined(correct - float(wrong.mean()))


def truth_ratio(correct_nll: Numbers, wrong_nlls: Sequence[Numbers], compat: str | None = None) -> float | None:
    """The raw truth ratio TR = exp(-mean_j L(wrong_j)) / exp(-L(correct)), finite and at least 0.

    The numerator is a geometric mean over the wrong answers. None where `log_truth_ratio` is None; a ratio
    beyond the largest float is given as the largest float.

    Args:
        correct_nll: (T,) losses in nats; the paraphrased answer on forget and retain, else the plain one.
        wrong_nlls: one (T_j,) sequence of losses for each wrong answer.
        compat: as for `log_truth_ratio`.

    Raises:
        UserError: a loss is negative.

    Source: TOFU (arXiv 2401.06121), "Truth Ratio"; its paper writes an arithmetic mean, its code, like this
    one, a geometric mean. Differs from OpenUnlearning, which adds 1e-10 to the denominator.
    """
    logarithm = log_truth_ratio(correct_nll, wrong_nlls, compat)
    return None if logarithm is None else math.exp(min(logarithm, _LOG_LARGEST))


def truth_ratio_score(ratio: float | None, kind: TruthRatioKind, compat: str | None = None) -> float | None:
    """One item's truth ratio as a score in 0..1, or None for an undefined ratio.

    Args:
        ratio: the raw truth ratio, 0 and infinity included.
        kind: "forget" is min(TR, 1/TR), 1 where wrong and correct are equally likely; "non_forget" is
            max(0, 1 - TR), 1 where only the correct answer is likely; "probability" is 1 / (1 + TR), the
            correct answer's share of the two.
        compat: "openunlearning" adds 1e-10 to the ratio before inverting it for "forget", as there.

    Raises:
        UserError: an unknown kind, or a negative ratio.

    Source: TOFU (arXiv 2401.06121) and OpenUnlearning (arXiv 2506.12618). Differs from OpenUnlearning, which
    adds 1e-10 to the ratio before inverting it.
    """
    if kind not in ("forget", "non_forget", "probability"):
        raise unknown_name("kind of truth ratio", kind, ("forget", "non_forget", "probability"))
    if ratio is None or math.isnan(ratio):
        return None
    if ratio < 0:
        raise UserError(f"a truth ratio of {ratio:.4g} is below 0", "pass the ratio, not its logarithm")
    if kind == "forget" and compat == "openunlearning":
        return min(float(ratio), 1 / (float(ratio) + FLOOR))
    if kind == "forget":
        return float(ratio) if ratio <= 1 else 1 / float(ratio)
    if kind == "non_forget":
        return max(0.0, 1 - float(ratio))
    return 1 / (1 + float(ratio))


def exact_memorization(hits: Hits) -> float | None:
    """The share of an answer's tokens that are the model's first choice, in 0..1, or None for N = 0.

    Args:
        hits: (N,) booleans, the end-of-sequence label already dropped.

    Source: OpenUnlearning (arXiv 2506.12618). No known difference.
    """
    hit = np.asarray(hits, dtype=np.bool_)
    return float(hit.mean()) if hit.size else None


def extraction_strength(hits: Hits, compat: str | None = None) -> float | None:
    """The share of an answer that the model can complete by itself, 1 - k/N in 0..1, or None for N = 0.

    k is the shortest prefix after which every argmax is right; a wrong last token gives k = N, so 0.

    Args:
        hits: (N,) booleans, the end-of-sequence label already dropped.
        compat: "openunlearning" for that evaluator's values, for cross-checks only.

    Raises:
        UserError: an unknown `compat`.

    Source: OpenUnlearning (arXiv 2506.12618). Differs from the authors' code (locuslab/open-unlearning
    @d3d7cf9e), whose loop stops at k = N - 1, so that no answer scores below 1/N; it scores N = 0 as 0.
    """
    if compat not in (None, "openunlearning"):
        raise unknown_name("compat", str(compat), ("openunlearning",))
    hit = np.asarray(hits, dtype=np.bool_)
    if not hit.size:
        return 0.0 if compat else None
    misses = np.flatnonzero(~hit)
    prefix = int(misses[-1]) + 1 if misses.size else 0
    if compat:
        prefix = min(prefix, hit.size - 1)
    return (hit.size - prefix) / hit.size


def mean_reciprocal_rank(ranks: Ranks) -> float | None:
    """The mean of 1/rank over an answer's tokens, in 0..1, or None without tokens.

    Args:
        ranks: (N,) ranks from 1, teacher forced. For the free-running form, infinity stands for a step after
            the end of the generation and adds 0.

    Raises:
        UserError: a rank is below 1.

    Source: "Editing as Unlearning" (arXiv 2505.19855). Differs from the authors' released code, which reads
    the distribution of free-running step j for gold token j.
    """
    rank = _ranks(ranks)
    return defined((1 / rank).mean()) if rank.size else None


def top_hit_ratio(ranks: Ranks, m: int = 100) -> float | None:
    """The share of an answer's tokens whose rank is at most m, in 0..1, or None without tokens.

    Args:
        ranks: (N,) ranks from 1, as for `mean_reciprocal_rank`.
        m: the largest rank that counts as a hit.

    Raises:
        UserError: a rank or m is below 1.

    Source: "Editing as Unlearning" (arXiv 2505.19855). Differs as `mean_reciprocal_rank` does.
    """
    if m < 1:
        raise UserError(f"m = {m}, but ranks start at 1", "pass m >= 1; the paper uses 100")
    rank = _ranks(ranks)
    return float((rank <= m).mean()) if rank.size and not np.isnan(rank).any() else None


def _mean_losses(wrong_nlls: Sequence[Numbers]) -> FloatArray | None:
    losses = [mean_loss(token_nll) for token_nll in wrong_nlls]
    known = [loss for loss in losses if loss is not None]
    return np.asarray(known) if known and len(known) == len(losses) else None


def _ranks(ranks: Ranks) -> FloatArray:
    rank = np.asarray(ranks, dtype=np.float64).ravel()
    if np.any(rank < 1):
        raise UserError(f"a rank of {rank.min():g} is below 1", "the most likely token has rank 1")
    return rank
