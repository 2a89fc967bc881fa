r"""Reverting directions: the largest singular directions of an edit's change of each matrix are taken away.

    ΔW = Σ_i σ_i u_i v_iᵀ   ->   Σ_{i > k} σ_i u_i v_iᵀ

An edit that only hides is often a few strong directions: without them the facts are back, and the rest of the change
does nothing. Tensors that are no matrices (norms, biases) keep their change.

Source: ours, in the line of low-rank analyses of fine-tuning. Of dense edits on large matrices the largest directions
come from a randomized SVD (Halko et al. 2011, arXiv 0909.4061) with its own seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.changed_weights import weaker_edits
from unlearn_eval.edits.base import DENSE, LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.edits.dense import DenseEdit

_EXACT_UP_TO = 1024  # the smaller side of a matrix; an exact SVD of it takes about a second


@dataclass(frozen=True)
class Config:
    """Settings of reverting.

    Attributes:
        directions: how many are taken away of each matrix; levels of the attack.
        seed: of the randomized SVD.
    """

    directions: Sizes = (1, 4, 16)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.directions or min(self.directions) < 1:
            raise UserError(f"directions {list(self.directions)} are not all above 0", "give --set directions=1,4")


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Both models as they are, and the unlearned one without so many directions."""

    def weaker(model: PreTrainedModel, k: float) -> Any:
        return without_directions(case.edit, model, int(k), config.seed)

    yield from weaker_edits(case, config.directions, weaker)


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every number of directions; without the time of the SVD."""
    return Work(answered=n_items * (1 + len(config.directions)))


@torch.no_grad()
def without_directions(edit: LowRankEdit | DenseEdit, model: PreTrainedModel, k: int, seed: int = 0) -> Any:
    """The edit without the k largest singular directions of its change of each matrix.

    Args:
        edit: low-rank or dense.
        model: the model it was made on, without it.
        k: at least 1; of a matrix whose change has no higher rank everything goes.
        seed: of the randomized SVD.
    """
    if isinstance(edit, LowRankEdit):
        return replace(edit, factors={name: _rest(u, v, k) for name, (u, v) in edit.factors.items()})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {}
    for name, tensor in edit.tensors.items():
        if tensor.ndim != 2:
            tensors[name] = tensor
            continue
        own = parameters[name].detach()
        wide = torch.promote_types(own.dtype, torch.float32)
        new = tensor.to(own.device, wide)
        top = _largest(new - own.to(wide), k, seed)
        tensors[name] = (new - top).to("cpu", own.dtype)  # to which applying would round it
    return replace(edit, tensors=tensors)


def _rest(u: Tensor, v: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The factors of U V without its k largest directions, from an SVD of the small matrix between two QR steps."""
    if u.shape[1] <= k:
        return u[:, :0], v[:0]
    wide = torch.float64
    q_u, r_u = torch.linalg.qr(u.to(wide))
    q_v, r_v = torch.linalg.qr(v.to(wide).T)
    left, sigma, right = torch.linalg.svd(r_u @ r_v.T, full_matrices=False)
    return (q_u @ left[:, k:]) * sigma[k:], right[k:] @ q_v.T


def _largest(change: Tensor, k: int, seed: int) -> Tensor:
    """The k largest singular directions of a matrix, as a matrix."""
    if min(change.shape) <= _EXACT_UP_TO:
        left, sigma, right = torch.linalg.svd(change, full_matrices=False)
        return torch.mm(left[:, :k] * sigma[:k], right[:k])
    with torch.random.fork_rng(devices=[change.device] if change.device.type == "cuda" else []):
        torch.manual_seed(seed)
        left, sigma, right = torch.svd_lowrank(change, q=min(min(change.shape), k + 16), niter=4)
    top: Tensor = (left[:, :k] * sigma[:k]) @ right[:, :k].T
    return top


ATTACK = Attack(
    "revert",
    Config,
    attack,
    work,
    does="takes the largest directions of the edit's change away",
    axis="directions",
    kinds=(LOW_RANK, DENSE),
    why_not="a memory has changed no weights: there are no directions of a change",
    controls_alone=False,
)
