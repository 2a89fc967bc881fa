"""Every MLP, whatever the budget: a control (arXiv 2410.12949)."""

from __future__ import annotations

from unlearn_eval.localization.base import Ranking, Run
from unlearn_eval.localization.methods.random_mlps import NEEDS_FACTS, Config, passes
from unlearn_eval.localization.sites import MLP

__all__ = ["NEEDS_FACTS", "Config", "localize", "passes"]


def localize(run: Run, config: Config) -> Ranking:
    """All MLPs from the lowest layer up."""
    return Ranking(tuple(run.sites.units(MLP)), takes_budget=False)
