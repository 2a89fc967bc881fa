"""WGA: gradient ascent, weighted by what the model still believes (Wang et al. 2025, arXiv 2502.19301).

    L(θ) = E_forget (1/T) Σ_t π(y_t)^α ln π(y_t)  −  w_r E_retain (1/T) Σ_t ln π(y_t),   the weight π^α held fixed

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
    """WGA's settings.

    Attributes:
        power: α; 0 is gradient ascent.
    """

    power: float = 1.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    return objectives.probability_weighted(said[ANSWER].log_probs, said[ANSWER].mask, config.power)


EDITOR = editor(Method("wga", forget_loss, {ANSWER: LOGITS}), Config, "2502.19301")
