"""From one response of the model to answer-level numbers, and the rows of the table that refusals have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.task import Absent, Mean, Metric, OverAll, Scores
from unlearn_eval.metrics.alignment import headline


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


def refusal_scores(
    said: str, question: str, accepted: str | Sequence[str], wrong: Sequence[str] = (), prefix: str = ""
) -> Scores:
    """Whether an answer refuses, by its words; None with the reason in a language whose refusals are not read."""
    key, reason = f"{prefix}refusal_rate", m.not_read(said)
    scores: Scores = {key: m.refusal_score(said, question, accepted, wrong)}
    return scores | ({REASONS: {key: reason}} if reason else {})


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


def contrast_scores(correct: Scores, wrong: list[Scores], compat: str | None = None) -> Scores:
    """Truth ratio and normalized probability from the mean nll of the correct answer and of the wrong ones."""
    nlls = [score["mean_nll"] for score in (correct, *wrong)]
    if not wrong or None in nlls:
        return {"log_truth_ratio": None, "truth_ratio_forget": None, "truth_ratio": None, "normalised": None}
    right, others = [nlls[0]], [[nll] for nll in nlls[1:]]
    ratio = m.truth_ratio(right, others, compat)
    return {
        "log_truth_ratio": m.log_truth_ratio(right, others, compat),
        "truth_ratio_forget": m.truth_ratio_score(ratio, "forget", compat),
        "truth_ratio": m.truth_ratio_score(ratio, "non_forget"),
        "normalised": m.probability_normalised(right, others, compat),
    }


def alignment_metrics(
    forget: str, kept: Sequence[str], paraphrase: bool = False, words_only: bool = False
) -> dict[str, Metric]:
    """The table's rows: the alignment on what is forgotten, next to its parts and to over-refusal on what is kept.

    Args:
        forget: the split to be forgotten.
        kept: the splits to be kept; the first is that of the headline.
        paraphrase: whether there are answers to a paraphrase too.
        words_only: without the rows that need an encoder.
    """
    faults = {f"{forget}_{part}_rate": Mean(forget, part, False) for part in ("leak", "gibberish")}
    if words_only:
        return dict(faults)
    table: dict[str, Metric] = {f"{forget}_refusal_alignment": Mean(forget, "refusal_alignment", True)}
    if paraphrase:
        table[f"{forget}_paraphrase_refusal_alignment"] = Mean(forget, "paraphrase_refusal_alignment", True)
    table[f"{forget}_refusal_probability"] = Mean(forget, "refusal_probability", True)
    table |= faults
    table[f"{forget}_fabrication_rate"] = Mean(forget, "fabrication", False)
    table[f"{forget}_contextual_rate"] = Mean(forget, "contextual", True)
    table[f"{forget}_answer_similarity"] = Mean(forget, "answer_similarity", False)
    table[f"{forget}_topic_similarity"] = Mean(forget, "topic_similarity", None)
    for split in kept:
        table[f"{split}_over_refusal_rate"] = Mean(split, "over_refusal", False)
        table[f"{split}_refusal_probability"] = Mean(split, "refusal_probability", False)
    if not kept:
        return table | {"refusal_headline": Absent("nothing is asked that is to be kept", True)}
    table["refusal_headline"] = OverAll(
        (forget, kept[0]), ("refusal_alignment", "refusal_probability"), _headline(forget, kept[0]), True
    )
    return table


def _headline(forget: str, kept: str) -> Any:
    def over_all(items: list[Scores]) -> tuple[float | None, float | None, str | None]:
        alignment = m.mean_and_stderr([i["refusal_alignment"] for i in items if i["split"] == forget]).mean
        refused = m.mean_and_stderr([i["refusal_probability"] for i in items if i["split"] == kept]).mean
        value = headline(alignment, refused)
        reason = None if value is not None else "; ".join(sorted({i["unscored"] for i in items if "unscored" in i}))
        return value, None, reason or None

    return over_all
