"""How near facts are to each other in a model: by their keys, and by what learning one does to another's answer.

A key is what the last map of an MLP reads at the token where a fact is looked up (MEMIT, arXiv 2210.07229). Keys have
much in common whatever the fact, so their mean over all that are compared is taken away. To first order a step that
makes a target likelier changes the loss of another answer by the product of both gradients.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlearn_eval.editing.locate_then_edit.run import read
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.models.anatomy import anatomy, layers_at_depth
from unlearn_eval.models.gradient_norms import answer_loss
from unlearn_eval.models.scoring import Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH = (1 / 8, 1 / 4)  # of the layers where MEMIT edits
MOST = 3  # maps at which keys are read


def places(model: PreTrainedModel, names: Collection[str] = ()) -> list[str]:
    """The maps at which facts are compared: of those named the last ones of MLPs, else such at `DEPTH`; at most three.

    Raises:
        UserError: the model has no MLPs of plain matrices.
    """
    parts = anatomy(model)
    own = [parts.projection_name(layer) for layer in range(parts.n_layers)]
    found = [name for name in own if name in names] or [own[i] for i in layers_at_depth(parts.n_layers, *DEPTH)]
    few = min(MOST, len(found))
    return [found[round(i * (len(found) - 1) / max(1, few - 1))] for i in range(few)]


@torch.no_grad()
def key_similarities(
    model: PreTrainedModel, some: Sequence[EditRequest], others: Sequence[EditRequest], names: Sequence[str]
) -> Tensor:
    """The cosines of centered keys, as the mean over maps: (some, others)."""
    rows = [request.rows[0] for request in (*some, *others)]
    read_keys = [read(model, name, name, rows)[0].float() for name in names]
    unit = torch.cat([normalize(own - own.mean(0), dim=-1) for own in read_keys], dim=-1) / math.sqrt(len(names))
    return (unit[: len(some)] @ unit[len(some) :].T).cpu()


def nearest(
    model: PreTrainedModel,
    some: Sequence[EditRequest],
    others: Sequence[EditRequest],
    n: int,
    names: Collection[str] = (),
) -> list[int]:
    """The places of the `n` others that are nearest to any of some by their keys, the nearest first."""
    scores = key_similarities(model, some, others, places(model, names)).amax(0)
    return [int(i) for i in scores.argsort(descending=True, stable=True)[:n]]


def harms(
    model: PreTrainedModel, victims: Sequence[EditRequest], others: Sequence[EditRequest], names: Sequence[str]
) -> Tensor:
    """By how much a step toward each other's target raises the victims' loss, to first order and up to a factor.

    −cos of the gradients of the target's loss and of the victims' mean loss by the weights of the maps: (others,).
    """
    weights = [model.get_submodule(name).weight for name in names]
    before = [weight.requires_grad for weight in weights]  # type: ignore[union-attr]

    def gradient(request: EditRequest, labels: Sequence[int]) -> Tensor:
        loss = answer_loss(model, Query(request.prompt_ids, tuple(labels)), len(labels))
        return torch.cat([own.flatten().float() for own in torch.autograd.grad(loss, weights)])  # type: ignore[arg-type]

    try:
        for weight in weights:
            weight.requires_grad_(True)  # type: ignore[operator]
        total = sum(gradient(own, own.answer_ids) for own in victims)
        found = [-torch.cosine_similarity(gradient(own, own.target_ids), total, dim=0) for own in others]  # type: ignore[arg-type]
    finally:
        for weight, needed in zip(weights, before, strict=True):
            weight.requires_grad_(needed)  # type: ignore[operator, arg-type]
    return torch.stack(found).cpu()
