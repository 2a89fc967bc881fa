"""Pure functions from answers and scores to numbers, without a model and without torch.

Each docstring states the definition and names its source. Undefined results (no tokens, a NaN, a missing reference) are
None, never 0: 0 is the best score of a forget metric. Impossible inputs (a negative loss, a rank of 0) raise a
`UserError`.
"""

from unlearn_eval.metrics.intervals import (
    Interval,
    MeanAndStderr,
    PairedComparison,
    bootstrap,
    mean_and_stderr,
    paired_comparison,
    summary_interval,
)
from unlearn_eval.metrics.leakage import leak_at_k, leak_upper_bound
from unlearn_eval.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    log_truth_ratio,
    mean_reciprocal_rank,
    probability,
    probability_normalised,
    top_hit_ratio,
    truth_ratio,
    truth_ratio_score,
)
from unlearn_eval.metrics.privacy import (
    gradnorm_score,
    loss_score,
    membership_auc,
    membership_auc_interval,
    memorization_score,
    min_k_plus_plus_score,
    min_k_score,
    privacy_score,
    privleak,
    reference_score,
    s_attack,
    zlib_score,
)
from unlearn_eval.metrics.refusal import has_refusal_cue, is_refusal, leaks_answer, not_read, refusal_score
from unlearn_eval.metrics.text import contains_answer, distinct_n, ngram_entropy, normalise, repetition, rouge
from unlearn_eval.metrics.utility import (
    MODEL_UTILITY_PARTS,
    ForgetQuality,
    collapsed,
    combined_score,
    forget_quality,
    harmonic_mean,
    model_utility,
)

__all__ = [
    "MODEL_UTILITY_PARTS",
    "ForgetQuality",
    "Interval",
    "MeanAndStderr",
    "PairedComparison",
    "bootstrap",
    "collapsed",
    "combined_score",
    "contains_answer",
    "distinct_n",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "gradnorm_score",
    "harmonic_mean",
    "has_refusal_cue",
    "is_refusal",
    "leak_at_k",
    "leak_upper_bound",
    "leaks_answer",
    "log_truth_ratio",
    "loss_score",
    "mean_and_stderr",
    "mean_reciprocal_rank",
    "membership_auc",
    "membership_auc_interval",
    "memorization_score",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "ngram_entropy",
    "normalise",
    "not_read",
    "paired_comparison",
    "privacy_score",
    "privleak",
    "probability",
    "probability_normalised",
    "reference_score",
    "refusal_score",
    "repetition",
    "rouge",
    "s_attack",
    "summary_interval",
    "top_hit_ratio",
    "truth_ratio",
    "truth_ratio_score",
    "zlib_score",
]
