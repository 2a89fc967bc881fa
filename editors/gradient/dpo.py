"""DPO: a refusal is preferred to the answer (Rafailov et al. 2023, arXiv 2305.18290, equation 7; in TOFU, 2401.06121).

    L(θ) = −(2/β) E_forget ln σ(β [ln π(refusal)/π_r(refusal) − ln π(y)/π_r(y)])  −  w_r E_retain (1/T) Σ_t ln π(y_t)

π_r is the model before: its log-probabilities are computed once and kept, it itself is not.

No known difference from the forget term of OpenUnlearning@d3d7cf9e but that each item has one refusal, and not another
each time it is seen; the retain term is a mean over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, TARGET, WITH_REFERENCE, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(GradientConfig):
    """DPO's settings.

    Attributes:
        beta: β, how far the model may go from what it was.
    """

    beta: Positive = 0.1


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    won, lost = said[TARGET], said[ANSWER]
    assert won.reference is not None and lost.reference is not None  # noqa: PT018
    return objectives.dpo(
        won.log_probs, won.reference, lost.log_probs, lost.reference, won.mask, lost.mask, config.beta
    )


EDITOR = editor(
    Method("dpo", forget_loss, {TARGET: WITH_REFERENCE, ANSWER: WITH_REFERENCE}), Config, "2305.18290, 2401.06121"
)
