"""Causal tracing among MLPs only (arXiv 2202.05262; as a control in arXiv 2410.12949, section 4)."""

from __future__ import annotations

from unlearn_eval.localization.base import Ranking, Run
from unlearn_eval.localization.causal_tracing import traced
from unlearn_eval.localization.scores import NoiseConfig
from unlearn_eval.localization.sites import MLP

NEEDS_FACTS = True
Config = NoiseConfig


def localize(run: Run, config: NoiseConfig) -> Ranking:
    """MLPs of all layers, ranked; effects are those of `causal_tracing`."""
    return traced(run, config, (MLP,))
