"""CE-U: the model's own beliefs without the answer (Yang 2025, arXiv 2503.01224).

    L(θ) = E_forget (1/T) Σ_t H(softmax(z_t with z_{y_t} = −∞), π(· | x, y_<t)),   the target held fixed

H is the cross-entropy. Nothing is retained. The first label of each answer is left out, as in the paper.

No known difference from OpenUnlearning@d3d7cf9e but the mean over rows, not tokens.
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
    """CE-U's settings.

    Attributes:
        skip: labels at the start of each answer that are left out.
    """

    retain_term: str = "none"
    skip: int = 1


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The equation above, for each item."""
    answer = said[ANSWER]
    assert answer.logits is not None
    return objectives.avoidance(answer.logits, answer.labels, answer.mask, config.skip)


EDITOR = editor(Method("ceu", forget_loss, {ANSWER: LOGITS}), Config, "2503.01224")
