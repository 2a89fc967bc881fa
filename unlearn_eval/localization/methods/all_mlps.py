"""Every MLP, whatever the budget: a control (arXiv 2410.12949)."""

from __future__ import annotations

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.methods.random_mlps import Config, passes
from unlearn_eval.localization.sites import MLP


def localize(run: Run, config: Config) -> Ranking:
    """All MLPs from the lowest layer up."""
    return Ranking(tuple(run.sites.units(MLP)), takes_budget=False)


LOCALIZER = Localizer("all_mlps", Config, localize, passes, needs_facts=False)
