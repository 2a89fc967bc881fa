"""FT-M: fine-tuning of one MLP projection on the targets, the prompts masked (EasyEdit; Zhang et al. 2024, 2401.01286).

    L(θ) = −E_forget (1/T) Σ_t ln π(target_t | x)

The honest baseline of the editing field: cheap, and better than its older form FT-L, which is trained on the last
prompt token only and held in a small box. Nothing is retained, and only the down projection of one block is trained.

It ends when an epoch's mean loss is at most `stop_loss`. Differs from EasyEdit@14cea824 in that all items are trained
together, over `epochs` at most, and not one batch after another until it is learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unlearn_eval.editing.training.gradient import LOGITS, TARGET, GradientConfig, Method, block_at_depth, editor
from unlearn_eval.editors.gradient.idk import forget_loss
from unlearn_eval.models.anatomy import anatomy, blocks_of
from unlearn_eval.utils.settings import Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH = 21 / 32  # block 21 of Llama-2-7B's 32


@dataclass(frozen=True)
class Config(GradientConfig):
    """FT-M's settings.

    Attributes:
        layer: the block whose down projection is trained; -1: the one at the depth of EasyEdit's.
    """

    retain_term: str = "none"
    epochs: Positive = 25.0
    learning_rate: Positive = 5e-4
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    schedule: str = "constant"
    stop_loss: float = 1e-2
    layer: int = -1


def prepare(config: Config, model: PreTrainedModel) -> Config:
    """The layer by depth, and its down projection unless components are given."""
    layer = block_at_depth(model, DEPTH) if config.layer < 0 else config.layer
    blocks_of(model).check_layers((layer,))
    return replace(config, layer=layer, components=config.components or anatomy(model).projection_name(layer))


EDITOR = editor(Method("ft_m", forget_loss, {TARGET: LOGITS}, prepare), Config, "2401.01286")
