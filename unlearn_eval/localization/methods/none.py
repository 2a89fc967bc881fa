"""No localization: attention and MLPs of every layer, whatever the budget (arXiv 2410.12949, "nonlocalized")."""

from __future__ import annotations

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.methods.random_mlps import Config, passes
from unlearn_eval.localization.sites import KINDS


def localize(run: Run, config: Config) -> Ranking:
    """All units from the lowest layer up."""
    return Ranking(tuple(run.sites.units(*KINDS)), takes_budget=False)


LOCALIZER = Localizer("none", Config, localize, passes, needs_facts=False)
