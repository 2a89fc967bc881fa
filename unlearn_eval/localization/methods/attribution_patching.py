"""Attribution patching: causal tracing to first order, from one gradient (Nanda 2023; arXiv 2310.10348).

    IE(u, p) ≈ (a_u,p without noise − a_u,p with noise) · ∂m/∂a_u,p at the noisy pass

for all units and positions from two forward passes and one backward pass. Exact where m is linear in what
the unit gives. Corruption, m and the choice of units are those of `causal_tracing`.

No authors' code to differ from: arXiv 2410.12949 uses the estimate on heads and MLPs of a contrasting prompt.
"""

from __future__ import annotations

import torch

from unlearn_eval.localization.activations import activations, answer_metric
from unlearn_eval.localization.base import Localizer, Ranking, Run
from unlearn_eval.localization.scores import NoiseConfig, Tally, batches, check_heads
from unlearn_eval.localization.sites import KINDS


def localize(run: Run, config: NoiseConfig) -> Ranking:
    """Attention and MLPs of all layers, ranked."""
    return attributed(run, config, KINDS)


def passes(config: NoiseConfig, n_layers: int) -> float:
    """One without noise, and with each noise one forward and one backward."""
    return 1.0 + 3 * config.samples


def attributed(run: Run, config: NoiseConfig, kinds: tuple[str, ...]) -> Ranking:
    """Units of some kinds ranked by their estimated effects."""
    check_heads(config, kinds)
    tally, model = Tally(run.sites.units(*kinds), config.positions), run.model
    for _, facts, noise in batches(run, config):
        repeated = [fact for fact in facts for _ in range(config.samples)]
        clean = activations(model, run.sites, [fact.prompt_ids for fact in facts])
        noisy = activations(model, run.sites, [fact.prompt_ids for fact in repeated], noise, differentiable=True)
        value = answer_metric(noisy.logits, repeated, config.metric)
        of_heads = noisy.heads if config.heads else []
        gradients = torch.autograd.grad(value.sum(), [*(noisy.output(unit) for unit in tally.units), *of_heads])
        of_fact = torch.arange(len(facts), device=value.device).repeat_interleave(config.samples)
        kept = noise.shape[1]
        total = answer_metric(clean.logits, facts, config.metric)[of_fact] - value.detach()
        tally.begin(repeated, total)
        for index, (unit, gradient) in enumerate(zip(tally.units, gradients[: len(tally.units)], strict=True)):
            change = clean.output(unit)[of_fact].to(value.dtype) - noisy.output(unit).detach()
            effects = (change * gradient)[:, -kept:].sum(-1)  # (R, S), in at least float32
            tally.add(index, repeated, effects.sum(-1), effects if config.positions else None)
        for layer, gradient in enumerate(gradients[len(tally.units) :]):
            change = clean.heads[layer][of_fact].to(value.dtype) - noisy.heads[layer].detach()
            by_width = (change * gradient)[:, -kept:].sum(1)  # (R, heads · d_head)
            tally.add_heads(layer, by_width.reshape(len(by_width), run.sites.n_heads, -1).sum(-1))
    return tally.ranking(metric=config.metric)


LOCALIZER = Localizer("attribution_patching", NoiseConfig, localize, passes)
