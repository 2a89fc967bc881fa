"""PDU: forget under a constraint on what is kept (Entesari et al. 2025, arXiv 2506.05314).

    min E_forget (1/T) Σ_t (max_v z_v − mean_v z_v)²   subject to   L_retain ≤ ε
    L(θ, λ) = L_forget + λ (L_retain − ε),   λ ← max(0, λ + η (L_retain − ε)) after every step

z are the logits by which the answer's tokens are predicted: they are made flat. L_retain is the mean −ln π(y_t) of
retain answers; ε has to be somewhat above what the model starts with. `retain_weight` is λ's first value.

Differs from OpenUnlearning@d3d7cf9e, where the mask is off by one (logits after each of the answer's tokens, so that
the first token's are left alone), and where λ moves with every micro-batch; the mean is over rows, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Dual, Said


@dataclass(frozen=True)
class Config(GradientConfig):
    """PDU's settings.

    Attributes:
        bound: ε.
        dual_step: η.
        dual_warmup_epochs: before λ moves.
    """

    retain_weight: float = 100.0
    bound: float = 0.3
    dual_step: float = 5.0
    dual_warmup_epochs: float = 5.0


def dual(config: Config, steps_per_epoch: float) -> Dual | None:
    """The multiplier of the constraint, if anything is retained."""
    if config.retain_term == "none":
        return None
    return Dual(
        config.retain_weight, config.bound, config.dual_step, round(config.dual_warmup_epochs * steps_per_epoch)
    )


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """What is minimized above, for each item."""
    assert said[ANSWER].logits is not None
    return objectives.flatness(said[ANSWER].logits, said[ANSWER].mask)  # type: ignore[arg-type]


EDITOR = editor(Method("pdu", forget_loss, {ANSWER: LOGITS}, dual=dual), Config, "2506.05314")
