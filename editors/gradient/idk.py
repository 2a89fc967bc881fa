"""IDK: fine-tuning on refusals in place of the answers (TOFU, Maini et al. 2024, arXiv 2401.06121).

    L(θ) = −E_forget (1/T) Σ_t ln π(refusal_t | x)  −  w_r E_retain (1/T) Σ_t ln π(y_t | x)

Differs from the authors' code (locuslab/tofu@bdc209ea) in that each of the two means is over its own items: theirs is
one over all tokens of both, so that short refusals count less than long answers. Theirs draw one of a hundred refusals
anew each time an item is seen; here each item has one, the edit's target (`--target pool` draws it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import LOGITS, TARGET, GradientConfig, Method, editor
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.utils.settings import Positive


@dataclass(frozen=True)
class Config(GradientConfig):
    """IDK's settings."""

    epochs: Positive = 5.0


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    return objectives.likelihood(said[TARGET].log_probs, said[TARGET].mask)


EDITOR = editor(Method("idk", forget_loss, {TARGET: LOGITS}), Config, "2401.06121")
