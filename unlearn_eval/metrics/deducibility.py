"""How far a fact can still be deduced after an edit, and what of its surroundings is left.

P(q) is the probability that a model answers a question rightly; of a chain of questions whose last answer is the old
fact, the reliability is R = prod P(q) over its n questions.

Source: ThinkEval and KnowGIC (arXiv 2506.01386).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from unlearn_eval.metrics.arrays import defined
from unlearn_eval.utils.errors import UserError

Pair = tuple[float, float]  # before and after the edit


def reliability(probabilities: Sequence[float]) -> float:
    """The probability that a model goes through all questions of a chain: their product."""
    return math.prod(probabilities)


def chain_recovery(chains: Sequence[Sequence[Pair]]) -> float | None:
    """KnowGIC's indirect fact recovery (IFR): the mean of R_after / R_before over chains, each weighted by 1/sqrt(n).

    1 where every chain leads to the old fact as before the edit, 0 where none does; above 1 where chains have become
    more reliable. Chains that the unedited model could not go through (R_before = 0) do not count; None without others.

    Args:
        chains: for each chain, (P before, P after) of its questions.

    Raises:
        UserError: a probability is not in 0..1.

    Source: arXiv 2506.01386, section 4, and the example in the README of manitbaser/KnowGIC.
    """
    total = weights = 0.0
    for chain in chains:
        _check(chain)
        before, after = (reliability([pair[i] for pair in chain]) for i in (0, 1))
        if chain and before > 0:
            weight = 1 / math.sqrt(len(chain))
            total, weights = total + weight * after / before, weights + weight
    return defined(total / weights) if weights else None


def preservation(pairs: Sequence[Pair]) -> float | None:
    """KnowGIC's preservation: the mean of P_after / P_before over questions on the surroundings of a fact.

    Questions that the unedited model never answered (P_before = 0) do not count; None without others.

    Args:
        pairs: (P before, P after) of each question.

    Raises:
        UserError: a probability is not in 0..1.

    Source: as `chain_recovery`.
    """
    _check(pairs)
    ratios = [after / before for before, after in pairs if before > 0]
    return defined(sum(ratios) / len(ratios)) if ratios else None


def _check(pairs: Sequence[Pair]) -> None:
    for value in (value for pair in pairs for value in pair):
        if not 0 <= value <= 1:
            raise UserError(f"{value} is no probability", "give numbers from 0 to 1")
