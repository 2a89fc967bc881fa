"""Benign fine-tuning: a model is trained on facts that have nothing to do with the forgotten ones, and asked those.

Nobody need attack: whoever adapts an unlearned model to a task of their own may bring back what was forgotten.

Source: Łucki et al. 2024 (arXiv 2409.18025), where ten unrelated samples bring back hazardous knowledge; Hu et al. 2024
(arXiv 2406.13356). Settings of `retraining.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.retraining import WHY_NO_MEMORY, RetrainingConfig, curve
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.edits.base import DENSE, LOW_RANK
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Size


@dataclass(frozen=True)
class Config(RetrainingConfig):
    """Settings of benign fine-tuning.

    Attributes:
        n: on how many facts.
    """

    n: Size = 100


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model before training and at the measured steps, for each seed."""
    check(case.items, case.others, config)
    assert case.others is not None
    for name in case.names:
        with case.model(name) as loaded:
            rows = case.rows(loaded, case.items)
            for seed in config.seeds:
                shown = random.Random(seed).sample(list(case.others), min(config.n, len(case.others)))
                yield case.observed(loaded, rows, name, None, seed=seed)
                yield from curve(case, config, loaded, shown, rows, Observation(name, 0, (), seed=seed))


def check(items: ForgetSet, others: ForgetSet | None, config: Config) -> None:
    """Refuse to train on nothing.

    Raises:
        UserError: there are no other facts.
    """
    if others is None:
        raise UserError("benign_finetune needs other facts to train on, and there are none", "give --retain SET")


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every seed."""
    rows = config.steps * min(config.batch_size, config.n)
    return Work(len(config.seeds) * rows, len(config.seeds) * n_items * (1 + len(config.points)))


ATTACK = Attack(
    "benign_finetune",
    Config,
    attack,
    work,
    does="fine-tunes on facts that have nothing to do with the forgotten ones",
    axis="step",
    kinds=(LOW_RANK, DENSE),
    headline="last",
    why_not=WHY_NO_MEMORY,
    retrains=True,
    check=check,
)
