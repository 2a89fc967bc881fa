"""Merging back: the unlearned model is averaged with the one before, so that a share of the change is gone.

    W = W_full + (1 - share) · (W_unlearned - W_full)

At a share of 1 it is the full model, bit for bit. How early the facts come back says how near to the edge the edit is.

Source: linear interpolation of weights (Wortsman et al. 2022, arXiv 2203.05482) between the two models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.changed_weights import weaker_edits
from unlearn_eval.edits.base import DENSE, LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.edits.dense import DenseEdit


@dataclass(frozen=True)
class Config:
    """Settings of merging back.

    Attributes:
        shares: of the change that are removed; levels of the attack.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"the shares {list(self.shares)} are not all above 0 and at most 1", "give 0.25,0.5")


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Both models as they are, and the unlearned one without each share of its change."""
    yield from weaker_edits(case, config.shares, lambda model, share: without_share(case.edit, model, share))


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every share."""
    return Work(answered=n_items * (1 + len(config.shares)))


@torch.no_grad()
def without_share(edit: LowRankEdit | DenseEdit, model: PreTrainedModel, share: float) -> Any:
    """The edit with a share of its change taken away.

    Args:
        edit: low-rank or dense.
        model: the model it was made on, without it.
        share: from 0 (the edit as it is) to 1 (no change).
    """
    if isinstance(edit, LowRankEdit):
        if share == 1:  # adding zero would turn -0.0 into 0.0
            return replace(edit, factors={name: (u[:, :0], v[:0]) for name, (u, v) in edit.factors.items()})
        return replace(edit, factors={name: (u * (1 - share), v) for name, (u, v) in edit.factors.items()})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {}
    for name, tensor in edit.tensors.items():
        wide = torch.promote_types(tensor.dtype, torch.float32)
        own, new = parameters[name].detach().to("cpu", wide), tensor.to(wide)
        mixed = own if share == 1 else new if share == 0 else own + (1 - share) * (new - own)
        tensors[name] = mixed.to(parameters[name].dtype)  # to which applying would round it
    return replace(edit, tensors=tensors)


ATTACK = Attack(
    "merge_back",
    Config,
    attack,
    work,
    does="takes a share of the edit's change away",
    axis="share",
    kinds=(LOW_RANK, DENSE),
    why_not="a memory has changed no weights: there is nothing to merge; without it the model is the full one",
    controls_alone=False,
)
