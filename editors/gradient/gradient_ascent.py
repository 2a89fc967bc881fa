"""Gradient ascent: make the answers unlikely (Jang et al. 2022, arXiv 2210.01504; in TOFU, arXiv 2401.06121).

    L(θ) = E_forget (1/T) Σ_t ln π(y_t | x, y_<t)

The likelihood's loss with its sign turned. Nothing bounds it and nothing holds the rest: a model that is trained
for long says nothing sensible to anybody. That is the baseline.

`bound` B takes max(−B, (1/T) Σ_t ln π(y_t)) of each item in its place: an answer whose loss has reached B pulls no more
(Knowledge Swapping, arXiv 2502.08075, whose loss max(0, B − loss) has the same gradient; its B of 105 is of images).

Differs from the authors' code (locuslab/tofu@bdc209ea, OpenUnlearning@d3d7cf9e) in the mean over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said


@dataclass(frozen=True)
class AscentConfig(GradientConfig):
    """What every method has that ascends.

    Attributes:
        bound: B, the loss of an answer (nats per token) at which it pulls no more; 0: none.
    """

    bound: float = 0.0


@dataclass(frozen=True)
class Config(AscentConfig):
    """Gradient ascent's settings; by default nothing is retained."""

    retain_term: str = "none"


def forget_loss(said: Mapping[str, Said], config: AscentConfig) -> Tensor:
    """The equation above, for each item."""
    return objectives.ascent(said[ANSWER].log_probs, said[ANSWER].mask, config.bound)


EDITOR = editor(Method("gradient_ascent", forget_loss, {ANSWER: LOGITS}), Config, "2210.01504, 2401.06121")
