"""NPO: negative preference optimization (Zhang et al. 2024, arXiv 2404.05868).

    L(θ) = −(2/β) E_forget ln σ(−β ln π(y)/π_r(y))  −  w_r E_retain (1/T) Σ_t ln π(y_t)

DPO without anything preferred. While the answer is as likely as before it is gradient ascent (for β → 0 it is so
everywhere); as it becomes less likely the gradient fades, which is what keeps the model whole.
π_r is the model before: its log-probabilities are computed once and kept, it itself is not.

No known difference from the forget term of OpenUnlearning@d3d7cf9e; the retain term is a mean over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, WITH_REFERENCE, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(GradientConfig):
    """NPO's settings.

    Attributes:
        beta: β, the smaller the more like gradient ascent.
    """

    beta: Positive = 0.1


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    answer = said[ANSWER]
    assert answer.reference is not None
    return objectives.npo(answer.log_probs, answer.reference, answer.mask, config.beta)


EDITOR = editor(Method("npo", forget_loss, {ANSWER: WITH_REFERENCE}), Config, "2404.05868")
