"""CE-U: the model's own beliefs without the answer (Yang 2025, arXiv 2503.01224).

    L(θ) = E_forget (1/T) Σ_t H(softmax(z_t with z_{y_t} = −∞), π(· | x, y_<t)),   the target held fixed

H is the cross-entropy. The paper retains nothing. The first label of each answer is left out, as in the paper.
`variant=retain` adds w_r times the likelihood loss of retained answers, as the other methods have it.

No known difference from OpenUnlearning@d3d7cf9e but the mean over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.errors import unknown_name

VARIANTS = ("paper", "retain")


@dataclass(frozen=True)
class Config(GradientConfig):
    """CE-U's settings.

    Attributes:
        variant: `paper`, which retains nothing, or `retain`: the likelihood of retained answers is kept.
        skip: labels at the start of each answer that are left out.
    """

    retain_term: str = "none"
    variant: str = "paper"
    skip: int = 1

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown_name("variant of CE-U", self.variant, VARIANTS)
        if self.variant == "retain" and self.retain_term == "none":
            object.__setattr__(self, "retain_term", "likelihood")
        super().__post_init__()


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The equation above, for each item."""
    answer = said[ANSWER]
    assert answer.logits is not None
    return objectives.avoidance(answer.logits, answer.labels, answer.mask, config.skip)


EDITOR = editor(Method("ceu", forget_loss, {ANSWER: LOGITS}), Config, "2503.01224")
