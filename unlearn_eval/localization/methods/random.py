"""Attention and MLPs of random layers: a control (arXiv 2410.12949)."""

from __future__ import annotations

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.methods.random_mlps import Config, passes, shuffled
from unlearn_eval.localization.sites import KINDS


def localize(run: Run, config: Config) -> Ranking:
    """All units in a random order."""
    return shuffled(run, KINDS)


LOCALIZER = Localizer("random", Config, localize, passes, needs_facts=False)
