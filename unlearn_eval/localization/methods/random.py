"""Attention and MLPs of random layers: a control (arXiv 2410.12949)."""

from __future__ import annotations

from unlearn_eval.localization.base import Ranking, Run
from unlearn_eval.localization.methods.random_mlps import NEEDS_FACTS, Config, passes, shuffled
from unlearn_eval.localization.sites import KINDS

__all__ = ["NEEDS_FACTS", "Config", "localize", "passes"]


def localize(run: Run, config: Config) -> Ranking:
    """All units in a random order."""
    return shuffled(run, KINDS)
