"""From one response of the model to the answer-level numbers of METRICS section 1."""

from __future__ import annotations

import math

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.harness.task import Scores


def answer_scores(response: Scores, compat: str | None = None) -> Scores:
    """All answer-level numbers of one response (METRICS section 1); None where they are undefined."""
    if "token_nll" not in response:
        mean = response.get("mean_nll")
        return {"mean_nll": mean, "probability": None if mean is None else math.exp(-mean)}
    nll, hits = response["token_nll"], response["hits"][: response["n_answer"]]
    ranks = response["ranks"][: response["n_answer"]]
    return {
        "mean_nll": float(np.mean(nll)),
        "probability": m.probability(nll),
        "exact_memorization": m.exact_memorization(hits),
        "extraction_strength": m.extraction_strength(hits, compat=compat),
        "mean_reciprocal_rank": m.mean_reciprocal_rank(ranks),
        "top_hit_ratio": m.top_hit_ratio(ranks),
    }


def free_running_scores(response: Scores) -> Scores:
    """The numbers that the released evaluation of PISTOL and LUNAR calls probability, MRR and hit ratio.

    Not comparable with ours: the ranks are read from the model's own answer, position by position, and count
    nothing where that has ended; the probability is the model's confidence on the prompt.
    """
    if not response.get("free_ranks"):
        return dict.fromkeys(("legacy_probability", "legacy_mean_reciprocal_rank", "legacy_top_hit_ratio"))
    ranks = [math.inf if rank is None else rank for rank in response["free_ranks"]]
    return {
        "legacy_probability": response["prompt_confidence"],
        "legacy_mean_reciprocal_rank": m.mean_reciprocal_rank(ranks),
        "legacy_top_hit_ratio": m.top_hit_ratio(ranks),
    }


def contrast_scores(correct: Scores, wrong: list[Scores]) -> Scores:
    """Truth ratio and normalised probability from the mean nll of the correct answer and of the wrong ones."""
    nlls = [score["mean_nll"] for score in (correct, *wrong)]
    if not wrong or None in nlls:
        return {"log_truth_ratio": None, "truth_ratio_forget": None, "truth_ratio": None, "normalised": None}
    right, others = [nlls[0]], [[nll] for nll in nlls[1:]]
    ratio = m.truth_ratio(right, others)
    return {
        "log_truth_ratio": m.log_truth_ratio(right, others),
        "truth_ratio_forget": m.truth_ratio_score(ratio, "forget"),
        "truth_ratio": m.truth_ratio_score(ratio, "non_forget"),
        "normalised": m.probability_normalised(right, others),
    }
