"""The MLPs of random layers: the control without which no other localization says anything (arXiv 2410.12949)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.sites import MLP


@dataclass(frozen=True)
class Config:
    """There is nothing to set but the seed."""


def localize(run: Run, config: Config) -> Ranking:
    """All MLPs in a random order."""
    return shuffled(run, (MLP,))


def passes(config: Config, n_layers: int) -> float:
    """None: no fact is looked at."""
    return 0.0


def shuffled(run: Run, kinds: tuple[str, ...]) -> Ranking:
    """All units of some kinds in a random order."""
    units = run.sites.units(*kinds)
    random.Random(run.seed).shuffle(units)
    return Ranking(tuple(units))


LOCALIZER = Localizer("random_mlps", Config, localize, passes, needs_facts=False)
