"""KL minimization: ascent on what is to be forgotten, and on the rest the distributions of before (TOFU, 2401.06121).

    L(θ) = E_forget (1/T) Σ_t ln π(y_t)  +  w_r E_retain (1/T) Σ_t KL(π_r(· | x, y_<t) ‖ π(· | x, y_<t))

π_r is the model before. Its distributions are not stored but made anew from what went into its output layer.

Differs from the authors' code (locuslab/tofu@bdc209ea) in that the divergence is taken at the answer's tokens only;
theirs takes the question's and the padding's as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, Method, editor
from unlearn_eval.editors.gradient.gradient_ascent import AscentConfig, forget_loss
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(AscentConfig):
    """KL minimization's settings."""

    epochs: Positive = 5.0
    retain_term: str = "kl"


EDITOR = editor(Method("kl", forget_loss, {ANSWER: LOGITS}), Config, "2401.06121")
