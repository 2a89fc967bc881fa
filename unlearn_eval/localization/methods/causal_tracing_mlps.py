"""Causal tracing among MLPs only (arXiv 2202.05262; as a control in arXiv 2410.12949, section 4)."""

from __future__ import annotations

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.methods.causal_tracing import traced, traced_passes
from unlearn_eval.localization.scores import NoiseConfig
from unlearn_eval.localization.sites import MLP


def localize(run: Run, config: NoiseConfig) -> Ranking:
    """MLPs of all layers, ranked; effects are those of `causal_tracing`."""
    return traced(run, config, (MLP,))


def passes(config: NoiseConfig, n_layers: int) -> float:
    """The MLP of every layer, of which on average half of the model is run again."""
    return traced_passes(config, n_layers)


LOCALIZER = Localizer("causal_tracing_mlps", NoiseConfig, localize, passes)
