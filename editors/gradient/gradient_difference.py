"""Gradient difference: ascent on what is to be forgotten, descent on what is to be kept (Liu et al. 2022, 2203.12817).

    L(θ) = E_forget (1/T) Σ_t ln π(y_t)  −  w_r E_retain (1/T) Σ_t ln π(y_t)

In TOFU (arXiv 2401.06121). Differs from its code (locuslab/tofu@bdc209ea) in the mean over rows, not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, Method, editor
from unlearn_eval.editors.gradient.gradient_ascent import AscentConfig, forget_loss


@dataclass(frozen=True)
class Config(AscentConfig):
    """Gradient difference's settings."""


EDITOR = editor(Method("gradient_difference", forget_loss, {ANSWER: LOGITS}), Config, "2203.12817, 2401.06121")
