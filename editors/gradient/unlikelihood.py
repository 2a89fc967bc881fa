"""Unlikelihood: the forgetting loss of "Mechanistic Unlearning" (Guo et al. 2025, arXiv 2410.12949).

    L(θ) = −λ₁ E_forget (1/T) Σ_t 1[ln π(y_t) ≥ −5] ln(1 − π(y_t))  −  λ₂ E_retain (1/T) Σ_t ln π(y_t)

What is unlikely enough pulls no more: of a model that answers in sentences a bare answer may be so from the start
(`--no-chat` asks as the paper does). λ₁ is `forget_weight` (the paper sweeps 0.1 to 5), λ₂ `retain_weight`; where it
is trained is `components`. The paper's other loss, cross-entropy on a wrong answer, is `idk` with `--target wrong`.

Differs from the authors' code (magikarp01/mechanistic-unlearning) in that there is no third term, on a corpus of text,
in that answers of several tokens are a mean over tokens, and in that 1 − π is taken from the other tokens' logits,
which is exact where π is nearly 1. The paper sweeps learning rate and λ₁ for each model; the defaults are its choice
for Gemma-7B on athletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive, Size


@dataclass(frozen=True)
class Config(GradientConfig):
    """Unlikelihood's settings.

    Attributes:
        floor: labels less likely than this, as ln π, are left alone.
    """

    steps: Size = 50
    batch_size: Size = 64
    learning_rate: Positive = 2e-5
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    schedule: str = "cosine"
    forget_weight: float = 5.0
    floor: float = -5.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    answer = said[ANSWER]
    assert answer.logits is not None
    return objectives.unlikelihood(answer.logits, answer.labels, answer.mask, config.floor)


EDITOR = editor(Method("unlikelihood", forget_loss, {ANSWER: LOGITS}), Config, "2410.12949")
