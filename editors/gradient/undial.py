"""UNDIAL: the model distills itself, with the answer's logits lowered (Dong et al. 2024, arXiv 2402.10052).

    L(θ) = E_forget (1/T) Σ_t H(softmax(z_r,t − β 1[y_t]), π(· | x, y_<t))  −  w_r E_retain (1/T) Σ_t ln π(y_t)

z_r are the logits of the model before, H the cross-entropy. A fixed target, so nothing runs away; the authors retain
nothing (w_r = 0).

Differs from OpenUnlearning@d3d7cf9e, which takes the mean over all positions: of the question and the padding as well,
with 1[y] wherever the ignored label -100 points. Here only the answer's tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(GradientConfig):
    """UNDIAL's settings.

    Attributes:
        strength: β, by how much the label's logit is lowered.
    """

    learning_rate: Positive = 1e-4
    retain_weight: float = 0.0
    strength: float = 10.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    answer = said[ANSWER]
    assert answer.logits is not None and answer.reference_logits is not None  # noqa: PT018
    return objectives.self_distillation(
        answer.logits, answer.reference_logits, answer.labels, answer.mask, config.strength
    )


EDITOR = editor(
    Method("undial", forget_loss, {ANSWER: frozenset({"logits", "reference_logits"})}), Config, "2402.10052"
)
