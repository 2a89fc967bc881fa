"""Pure functions from answers and scores to numbers, without a model and without torch.

Each docstring states the definition and names its source. Undefined results (no tokens, a NaN, a missing reference) are
None, never 0: 0 is the best score of a forget metric. Impossible inputs (a negative loss, a rank of 0) raise a
`UserError`.
"""

from unlearn_eval.utils import lazy

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "intervals": (
            "Interval MeanAndStderr PairedComparison bootstrap mean_and_stderr paired_comparison summary_interval"
        ),
        "leakage": "leak_at_k leak_upper_bound",
        "memorization": (
            "exact_memorization extraction_strength log_truth_ratio mean_reciprocal_rank probability "
            "probability_normalised top_hit_ratio truth_ratio truth_ratio_score"
        ),
        "privacy": (
            "gradnorm_score loss_score membership_auc membership_auc_interval memorization_score "
            "min_k_plus_plus_score min_k_score privacy_score privleak reference_score s_attack zlib_score"
        ),
        "refusal": "has_refusal_cue is_refusal leaks_answer not_read refusal_score",
        "text": "contains_answer distinct_n ngram_entropy normalise repetition rouge",
        "utility": (
            "MODEL_UTILITY_PARTS ForgetQuality collapsed combined_score forget_quality harmonic_mean model_utility"
        ),
    },
)
