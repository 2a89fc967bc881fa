"""SimNPO: NPO by length and without a reference (Fan et al. 2024, arXiv 2410.07163).

    L(θ) = −(2/β) E_forget ln σ(−(β/T) ln π(y) − γ)  −  w_r E_retain (1/T) Σ_t ln π(y_t)

γ stands as in the paper. It is multiplied by β in the authors' code (OPTML-Group/Unlearn-Simple@f1a355d3) and in
OpenUnlearning@d3d7cf9e. No known difference in the forget term with γ = 0, the default of all three. The authors set β
and w_f for each forget set: 2.5 and 0.1375 for TOFU's forget05, 4.5 and 0.125 for forget10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(GradientConfig):
    """SimNPO's settings.

    Attributes:
        beta: β.
        margin: γ.
    """

    forget_weight: float = 0.125
    beta: Positive = 4.5
    margin: float = 0.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    return objectives.simnpo(said[ANSWER].log_probs, said[ANSWER].mask, config.beta, config.margin)


EDITOR = editor(Method("simnpo", forget_loss, {ANSWER: LOGITS}), Config, "2410.07163")
