r"""Held-out relearning: a model is fine-tuned on some of the forgotten facts, and asked the others.

The facts are split into folds that share no subject and no group; each is tested once, by a model that was trained on
the rest. What comes back without having been shown was never gone. The same is done to the model before unlearning and,
if there is one, to a model that never knew the facts: the recovery is where the unlearned model ends between the two.
As a control every model is also trained on as many unrelated facts (`format`), which says what the format alone brings
back.

Source: RTT (Deeb and Roger 2024, arXiv 2410.08827); settings of Guo et al. (arXiv 2410.12949). Differs from RTT in free
answers instead of multiple choice and in the settings of training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.folds import check, split
from unlearn_eval.attacks.retraining import WHY_NO_MEMORY, RetrainingConfig, curve
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.edits.base import DENSE, LOW_RANK

FORMAT = "format"


@dataclass(frozen=True)
class Config(RetrainingConfig):
    """Settings of relearning.

    Attributes:
        folds: in how many parts the facts are split.
        control: whether each model is also trained on unrelated facts.
    """

    folds: int = 2
    control: bool = True


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model before training and at the measured steps, for each fold and seed."""
    with_control = config.control and case.others is not None
    if config.control and not with_control:
        case.skipped[FORMAT] = "there are no unrelated facts to train on (--retain)"
    folds = {seed: split(case.items, config.folds, seed) for seed in config.seeds}
    for name in case.names:
        with case.model(name) as loaded:
            before = {score.id: score for score in case.scores(loaded, case.rows(loaded, case.items))}
            for seed in config.seeds:
                for fold, (shown, tested) in enumerate(folds[seed]):
                    rows = case.rows(loaded, tested)
                    yield Observation(name, None, tuple(before[item.id] for item in tested), fold, seed)
                    yield from curve(case, config, loaded, shown, rows, Observation(name, 0, (), fold, seed))
                    if with_control:
                        unrelated = _as_many(case, len(shown), seed)
                        control = Observation(name, 0, (), fold, seed, FORMAT)
                        yield from curve(case, config, loaded, unrelated, rows, control)


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every fold and seed, with the control twice."""
    runs = (1 + config.control) * len(config.seeds)
    shown = n_items - n_items // config.folds
    rows = config.steps * min(config.batch_size, shown) * config.folds
    return Work(runs * rows, n_items * (1 + runs * len(config.points)))


def _as_many(case: Case, n: int, seed: int) -> list[ForgetItem]:
    assert case.others is not None
    others = list(case.others)
    return random.Random(seed).sample(others, min(n, len(others)))


ATTACK = Attack(
    "relearn",
    Config,
    attack,
    work,
    does="fine-tunes on some of the forgotten facts and asks the others",
    axis="step",
    kinds=(LOW_RANK, DENSE),
    headline="last",
    why_not=WHY_NO_MEMORY,
    retrains=True,
    check=check,
    first=True,
)
