"""Causal tracing: which unit, given back what it gave, brings a corrupted subject's answer back (arXiv 2202.05262).

    IE(u, p) = m(subject with noise, u at position p as without noise) − m(subject with noise)

(section 2.1.) Noise of three standard deviations of the embeddings lies on the subject's tokens. A unit is an
MLP or the attention of one layer; it is ranked by its effect when all its positions are given back together.
m is by default the logit difference of the true and a wrong answer.

Differs from the authors' code (kmeng01/rome@0874014c) in that one layer is given back at a time, not a window of ten;
in m, which is theirs with `metric=probability`; and in that every sample is noisy and none clean. Layers below the
unit, and tokens before the subject, are not run again.
"""

from __future__ import annotations

import torch

from unlearn_eval.localization.activations import Corrupted
from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.scores import NoiseConfig, Tally, batches, check_heads, job_table
from unlearn_eval.localization.sites import ATTENTION, KINDS, Unit

USUAL_POSITIONS, USUAL_HEADS = 12, 16  # from the subject on, and of a layer; for estimates


def localize(run: Run, config: NoiseConfig) -> Ranking:
    """Attention and MLPs of all layers, ranked."""
    return traced(run, config, KINDS)


def _by_head(run: Run, batch: Corrupted, unit: Unit) -> torch.Tensor:
    """(R, heads): the effect of each head of one attention, given back at all positions."""
    rows, where, _ = job_table(batch.facts, run.model.device, single=False)
    found = [batch.restored(unit, rows, where, run.rows, head) - batch.baseline for head in range(run.sites.n_heads)]
    return torch.stack(found, dim=1)


def passes(config: NoiseConfig, n_layers: int) -> float:
    """Attention and MLP of every layer, of which on average half of the model is run again."""
    return traced_passes(config, n_layers * len(KINDS)) + config.heads * config.samples * n_layers * USUAL_HEADS / 2


def traced_passes(config: NoiseConfig, n_units: int) -> float:
    """Each unit restored everywhere, and at each position of a usual prompt."""
    return 1 + config.samples * (1 + n_units * (1 + USUAL_POSITIONS * config.positions) / 2)


def traced(run: Run, config: NoiseConfig, kinds: tuple[str, ...]) -> Ranking:
    """Units of some kinds ranked by their exact effects."""
    check_heads(config, kinds)
    tally = Tally(run.sites.units(*kinds), config.positions)
    for _, facts, noise in batches(run, config):
        batch = Corrupted.of(run, facts, noise, config.samples, config.metric)
        rows, where, places = job_table(batch.facts, run.model.device, config.positions)
        tally.begin(batch.facts, batch.total)
        for index, unit in enumerate(tally.units):
            effects = batch.restored(unit, rows, where, run.rows) - batch.baseline[rows]
            single, table = places >= 0, None
            if config.positions:
                table = torch.zeros(len(batch.facts), where.shape[1], device=effects.device, dtype=effects.dtype)
                table[rows[single], places[single]] = effects[single]
            tally.add(index, batch.facts, effects[~single], table)
            if config.heads and unit.kind == ATTENTION:
                tally.add_heads(unit.layer, _by_head(run, batch, unit))
    return tally.ranking(metric=config.metric)


LOCALIZER = Localizer("causal_tracing", NoiseConfig, localize, passes)
