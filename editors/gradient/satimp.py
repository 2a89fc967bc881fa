"""SatImp: gradient ascent, weighted by saturation and importance (Yang et al. 2025, arXiv 2505.11953).

    L(θ) = w_f E_forget (1/T) Σ_t π(y_t)^β₁ (1 − π(y_t))^β₂ ln π(y_t)  −  w_r E_retain (1/T) Σ_t ln π(y_t)

The weights are held fixed. Tokens that are forgotten already, and those that are certain whatever the fact, pull less.

No known difference from the forget term of OpenUnlearning@d3d7cf9e but the mean over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said


@dataclass(frozen=True)
class Config(GradientConfig):
    """SatImp's settings.

    Attributes:
        saturation: β₁.
        importance: β₂.
    """

    retain_weight: float = 0.1
    saturation: float = 5.0
    importance: float = 1.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above without w_f, for each item."""
    answer = said[ANSWER]
    return objectives.importance_weighted(answer.log_probs, answer.mask, config.saturation, config.importance)


EDITOR = editor(Method("satimp", forget_loss, {ANSWER: LOGITS}), Config, "2505.11953")
