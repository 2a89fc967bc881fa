"""What a model can still do, and how it compares with one that never saw the forget set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from unlearn_eval.metrics.arrays import defined, drop_missing
from unlearn_eval.utils.errors import UserError

MODEL_UTILITY_PARTS = tuple(
    f"{split}_{metric}"
    for split in ("retain", "real_authors", "world_facts")
    for metric in ("probability", "rouge", "truth_ratio")
)

# Near the smallest float (2.2e-308) p loses its digits before it becomes 0.
_SMALLEST_TRUSTED_P = 1e-300
_ROUNDING = 1e-3  # by which the loss of a uniform choice, computed in float32, may miss ln V


@dataclass(frozen=True)
class ForgetQuality:
    """A two-sided Kolmogorov-Smirnov test of the model's truth ratios against the retain-only model's.

    Attributes:
        p_value: in 0..1; 0 where it is below the smallest float, and then `log10_p` still tells.
        log10_p: finite.
        statistic: D, the largest distance of the two distribution functions, in 0..1.
        n: truth ratios of the model that were defined.
        n_reference: truth ratios of the reference that were defined.
    """

    p_value: float
    log10_p: float
    statistic: float
    n: int
    n_reference: int


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """The harmonic mean of numbers >= 0: 0 if any is 0, None if any is undefined or there are none.

    Args:
        values: at least one number, each >= 0.

    Raises:
        UserError: a negative value.

    Source: `scipy.stats.hmean`, which TOFU's code uses; the same for zeros.
    """
    known = [defined(value) for value in values]
    numbers = [value for value in known if value is not None]
    if any(value < 0 for value in numbers):
        raise UserError(f"a harmonic mean of {min(numbers):g} and others is undefined", "every value must be >= 0")
    if not numbers or len(numbers) < len(known):
        return None
    if min(numbers) == 0:
        return 0.0
    # Scaled by the smallest, because 1/x overflows for the smallest floats.
    smallest = min(numbers)
    return smallest * (len(numbers) / math.fsum(smallest / value for value in numbers))


def model_utility(parts: Mapping[str, float | None]) -> float | None:
    """The harmonic mean of the nine parts in `MODEL_UTILITY_PARTS`, in 0..1; any 0 gives 0.

    None if a part is None.

    Args:
        parts: {retain, real_authors, world_facts} x {probability, rouge, truth_ratio}, joined by "_"; other
            names are ignored. The probability is plain on retain and normalized by the options elsewhere;
            the truth ratio is the non-forget score.

    Raises:
        UserError: a part is missing or negative.

    Source: TOFU (arXiv 2401.06121), "Model Utility". No known difference.
    """
    missing = [name for name in MODEL_UTILITY_PARTS if name not in parts]
    if missing:
        raise UserError(
            f"model utility lacks {', '.join(missing)}",
            "give all nine parts; None where one is undefined",
        )
    return harmonic_mean(parts[name] for name in MODEL_UTILITY_PARTS)


def forget_quality(
    ratios: Iterable[float | None], reference_ratios: Iterable[float | None] | None
) -> ForgetQuality | None:
    """The Kolmogorov-Smirnov test of per-item truth ratios against the retain-only model's.

    Undefined ratios are dropped; None without a reference, or if nothing is left on either side. p is the
    same for truth ratios, their logarithms, inverses and probability forms, so pass any, but the same, for
    both; logarithms cannot overflow into ties. Where p is below 1e-300, `log10_p` comes from the exact tail
    (2/C(n+m, n) for complete separation; for n = m the leading term of the reflection sum, whose next term is
    below double precision there), or else from the asymptotic 2 exp(-2 D^2 nm/(n+m)).

    Args:
        ratios: raw truth ratios (or a monotone map of them) of the model, one for each forget item.
        reference_ratios: the same of the retain-only model on the same items.

    Source: TOFU (arXiv 2401.06121), "Forget Quality"; `scipy.stats.ks_2samp` with its default method.
    Differs from OpenUnlearning in that a missing reference is None, and that D and log10 p stand beside p.
    """
    if reference_ratios is None:
        return None
    model, reference = drop_missing(ratios), drop_missing(reference_ratios)
    if not model.size or not reference.size:
        return None
    from scipy.stats import ks_2samp

    result = ks_2samp(model, reference)
    p_value, statistic = float(result.pvalue), float(result.statistic)
    if p_value > _SMALLEST_TRUSTED_P:
        log10_p = math.log10(p_value)
    else:
        log10_p = _log_tail(model.size, reference.size, statistic) / math.log(10)
    return ForgetQuality(p_value, log10_p, statistic, int(model.size), int(reference.size))


def collapsed(
    nlls: Iterable[float | None],
    uniform_nll: float | None,
    reference_nlls: Iterable[float | None] = (),
    retained_nlls: Iterable[float | None] = (),
) -> str | None:
    """The reason why a model is collapsed, `collapsed: ...`, or None if it is not.

    A model that has forgotten still writes its language, so its numbers mean what they mean of a model that never
    knew. A destroyed model's truth ratios are noise, and noise looks like never having known. It is collapsed where it
    gives half of the right answers no more probability than a uniform choice among all tokens would, of what is to be
    forgotten or of what is to be retained: no language is left there. That bound is nobody's choice. A model is not
    judged where the retain-only model does no better than it: then the texts are as strange to a sound one.

    Args:
        nlls: mean losses of the right answers to forget, in nats per token.
        uniform_nll: loss of a uniform choice, ln V of a vocabulary of V tokens; None if V is not known.
        reference_nlls: losses of right answers to forget under the retain-only model; empty if they are not known.
        retained_nlls: the model's losses of right answers to retain.

    Source: no paper; TOFU (arXiv 2401.06121) reports utility beside forget quality for the same reason.
    """
    if uniform_nll is None:
        return None
    bound = uniform_nll - _ROUNDING
    reference = drop_missing(reference_nlls)
    if reference.size and float(np.median(reference)) >= bound:
        return None
    for what, own in (("forget", drop_missing(nlls)), ("retain", drop_missing(retained_nlls))):
        if own.size and float(np.median(own)) >= bound:
            half = f"half of the right answers to {what} lose {float(np.median(own)):.1f} nats per token or more"
            return f"collapsed: {half}, a uniform choice among all tokens {uniform_nll:.1f}"
    return None


def combined_score(forget_rouge1: float | None, retain_rouge1: float | None) -> float | None:
    """1 - ROUGE-1 on forget + ROUGE-1 on retain, in 0..2 with 2 the best, or None if either is undefined.

    Args:
        forget_rouge1: mean ROUGE-1 recall on the forget set, in 0..1.
        retain_rouge1: mean ROUGE-1 recall on the retain set, in 0..1.

    Raises:
        UserError: a value outside 0..1.

    Source: "Editing as Unlearning" (arXiv 2505.19855). No known difference.
    """
    forget, retain = defined(forget_rouge1), defined(retain_rouge1)
    for name, value in (("forget_rouge1", forget), ("retain_rouge1", retain)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} = {value:g} is outside 0..1", "give it as a fraction, not in percent")
    return None if forget is None or retain is None else 1 - forget + retain


def _log_tail(n: int, m: int, statistic: float) -> float:
    """Natural logarithm of the two-sided KS p-value, for values too small for a float."""
    if statistic >= 1:
        return math.log(2) + math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)
    if n == m:
        # P(D >= h/n) = 2 [C(2n, n-h) - C(2n, n-2h) + ...] / C(2n, n)
        steps = round(n * statistic)
        return math.log(2) + 2 * math.lgamma(n + 1) - math.lgamma(n - steps + 1) - math.lgamma(n + steps + 1)
    return math.log(2) - 2 * statistic**2 * n * m / (n + m)
