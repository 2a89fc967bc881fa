"""RMU: representation misdirection (Li et al. 2024, arXiv 2403.03218).

    L(θ) = E_forget (1/T) Σ_t ‖h_t − c u‖² / d  +  w_r E_retain (1/T) Σ_t ‖h_t − h_r,t‖² / d

h is the output of one block (of d numbers) at the tokens by which the answer is predicted, h_r the same of the model
before, u a random unit vector. Only the down projections of that block and of the two below are trained, as in
the authors' code for its language models; `components` names others. Blocks above are not run.

`adaptive` takes c relative to ‖h_r,t‖ (Huu-Tien et al. 2024, arXiv 2408.06223): a residual stream's size differs by
orders of magnitude from model to model, and a fixed c does not carry over.

Differs from the authors' code (centerforaisafety/wmdp, as in OpenUnlearning@d3d7cf9e) in the tokens: theirs takes the
answer's own, ours those before each, the last of the question among them, by which the answer begins.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH = 7 / 32  # block 7 of Zephyr-7B's 32


@dataclass(frozen=True)
class Config(GradientConfig):
    """RMU's settings.

    Attributes:
        layer: the block whose output is steered; -1: the one at the depth of the paper's.
        steering: c.
        adaptive: whether c is in units of the hidden state's size before.
    """

    retain_term: str = "representation"
    layer: int = -1
    steering: float = 2.0
    adaptive: bool = False


def prepare(config: Config, model: PreTrainedModel) -> Config:
    """The layer by depth, and the down projections of it and of the two below unless components are given."""
    layer = block_at_depth(model, DEPTH) if config.layer < 0 else config.layer
    blocks_of(model).check_layers((layer,))
    if config.components:
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
