"""Pruning: the smallest weights of every linear map set to zero; what an edit hides may go before what it hides.

Source: magnitude pruning (Han et al. 2015, arXiv 1506.02626), here by matrix and without training after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.changed_weights import levels
from unlearn_eval.utils.errors import UserError


@dataclass(frozen=True)
class Config:
    """Settings of pruning.

    Attributes:
        fractions: of the weights of every linear map that are set to zero; levels of the attack.
    """

    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise UserError(f"the fractions {list(self.fractions)} are not all between 0 and 1", "give 0.1,0.3")


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model as it is, and with each fraction pruned."""
    return levels(case, [(fraction, partial(pruned, fraction=fraction)) for fraction in config.fractions])


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every fraction."""
    return Work(answered=n_items * (1 + len(config.fractions)))


def pruned(weight: Tensor, fraction: float) -> Tensor:
    """The weight with its smallest numbers set to zero: the given fraction of them, rounded down."""
    flat = weight.flatten()
    n = int(fraction * flat.numel())
    new = flat.clone()
    new[flat.abs().topk(n, largest=False).indices] = 0
    return new.reshape(weight.shape)


ATTACK = Attack("prune", Config, attack, work, does="sets the smallest weights to zero", axis="fraction")
