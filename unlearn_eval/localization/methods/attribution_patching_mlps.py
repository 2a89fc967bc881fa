"""Attribution patching among MLPs only (Nanda 2023, arXiv 2310.10348; as a control in arXiv 2410.12949, section 4)."""

from __future__ import annotations

from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.methods.attribution_patching import attributed
from unlearn_eval.localization.scores import NoiseConfig
from unlearn_eval.localization.sites import MLP


def localize(run: Run, config: NoiseConfig) -> Ranking:
    """MLPs of all layers, ranked; effects are those of `attribution_patching`."""
    return attributed(run, config, (MLP,))


def passes(config: NoiseConfig, n_layers: int) -> float:
    """One without noise, and with each noise one forward and one backward."""
    return 1.0 + 3 * config.samples


LOCALIZER = Localizer("attribution_patching_mlps", NoiseConfig, localize, passes)
