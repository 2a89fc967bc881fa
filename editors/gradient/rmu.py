"""RMU: representation misdirection (Li et al. 2024, arXiv 2403.03218).

    L(θ) = E_forget (1/T) Σ_t ‖h_t − c u‖² / d  +  w_r E_retain (1/T) Σ_t ‖h_t − h_r,t‖² / d

h is the output of one block (of d numbers) at the tokens by which the answer is predicted, h_r the same of the model
before, u a random unit vector. Blocks above the one that is read are not run. `variant` says where it is trained:

*   `wmdp` (centerforaisafety/wmdp@bc5e1ba0, for Zephyr 7B): the down projections of the block that is read, the seventh
    of 32, and of the two below it.
*   `openunlearning` (OpenUnlearning@d3d7cf9e, configs/trainer/RMU, for TOFU and Llama 3.2 1B): all weights up to the
    block that is read, the seventh of 16.

`components` and `layer` name others. With `adaptive`, the default, c is in units of ‖h_r,t‖ (Adaptive RMU, Huu-Tien et
al. 2024, arXiv 2408.06223): a residual stream's size differs by orders of magnitude from model to model, and a fixed c
does not carry over. 5 is its authors' for Zephyr 7B. `adaptive=false` is a c in the model's own units, as the authors
of both variants have it (6.5 and 2); their `retain_weight` is 1,200 and 1.

Differs from the authors' code in the tokens: theirs takes the answer's own, ours those before each, the last of the
question among them, by which the answer begins. Adaptive RMU's code (RebelsNLU-jaist/llm-unlearning@0da98e5c) takes
the mean norm over its first batch, where its paper and we take each token's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import (
    ANSWER,
    GradientConfig,
    Method,
    block_at_depth,
    editor,
    like,
    no_grad_norm,
)
from unlearn_eval.editing.training.settings import Said
from unlearn_eval.models.anatomy import anatomy, blocks_of
from unlearn_eval.utils.errors import unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTHS = {"wmdp": 7 / 32, "openunlearning": 7 / 16}  # variant -> block 7 of Zephyr 7B's 32, of Llama 3.2 1B's 16


@dataclass(frozen=True)
class Config(GradientConfig):
    """RMU's settings.

    Attributes:
        variant: weights that are trained: `wmdp` (three matrices) or `openunlearning` (all).
        layer: the block whose output is steered; -1: the one at the depth of the variant's.
        steering: c.
        adaptive: whether c is in units of the hidden state's size before.
    """

    retain_term: str = "representation"
    variant: str = "wmdp"
    layer: int = -1
    steering: float = 5.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in DEPTHS:
            raise unknown_name("variant of RMU", self.variant, DEPTHS)


def prepare(config: Config, model: PreTrainedModel) -> Config:
    """The layer by depth, and unless components are given, those of the variant."""
    layer = block_at_depth(model, DEPTHS[config.variant]) if config.layer < 0 else config.layer
    blocks_of(model).check_layers((layer,))
    if config.components or config.variant == "openunlearning":
        return replace(config, layer=layer)
    parts = anatomy(model)
    names = [parts.projection_name(i) for i in range(max(0, layer - 2), layer + 1)]
    return replace(config, layer=layer, components=",".join(names))


def path(config: Config, model: PreTrainedModel) -> str:
    """Where the steered block is."""
    return f"{blocks_of(model).blocks}.{config.layer}"


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The first term above, for each item."""
    answer = said[ANSWER]
    assert answer.hidden is not None and answer.reference_hidden is not None  # noqa: PT018
    u = like(answer.hidden, objectives.steering_direction(answer.hidden.shape[-1], config.seed))
    size = config.steering * (no_grad_norm(answer.reference_hidden) if config.adaptive else 1.0)
    return objectives.steering(answer.hidden, size * u, answer.mask)


EDITOR = editor(
    Method("rmu", forget_loss, {ANSWER: frozenset({"hidden", "reference_hidden"})}, prepare, path),
    Config,
    "2403.03218, 2408.06223",
)
