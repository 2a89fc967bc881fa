"""Fact lookup: the MLPs that enrich the subject, before heads extract the answer from it (arXiv 2410.12949).

Two ways (sections 3 and 4; appendix):

* by probe, for attributes with few values (an athlete's sport): the layers over which a linear probe of the answer on
  the bare subject gets better. The MLP of a layer scores accuracy after the block minus accuracy before it.
* by path patching, for any facts: (i) heads whose output at the last token, given back on a random subject, moves
  the logits directly; the first layer of the best ten is where extraction begins. (ii) The MLPs below it score
  by how much of the lost logit difference they bring back through that layer's input.

`way=auto` takes the probe where there are few answers with enough facts each. Without a budget, kept are MLPs that
score more than `threshold` (`rise` of probes), and the best one if none does.

Published layers for athletes: Gemma-7B 2-7, Gemma-2-9B 2-6, Llama-3-8B 1-4 in the authors' released scripts; notes of
the paper have 2-7, 2-8, 2-8. For CounterFact (16 facts): Gemma-7B 1,3,4,6,9,17-19, Gemma-2-9B 3,4,7-9,
Llama-3-8B 5,6,9,13.

Differs from the authors' code (magikarp01/mechanistic-unlearning) in that the layers of a probe follow from a rule and
are not read off a curve; probes are cross-validated; the first extraction layer is that of the best heads and not 14
for all facts (`extraction_layer=14`); effects are one ratio of sums over facts, so that no single fact divides by
nearly 0; and MLPs are kept by signed effect, not by its size.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.localization.base import Fact, Localizer, Ranking, Run, by_score
from unlearn_eval.localization.paths import Pair, head_effects, mlp_effects, pair
from unlearn_eval.localization.probes import check_classes, probe_accuracy
from unlearn_eval.localization.sites import MLP, Unit
from unlearn_eval.models.tracing import last_states
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Positive, Size

WAYS = ("auto", "probe", "path_patching")


@dataclass(frozen=True)
class Config:
    """Fact lookup's settings.

    Attributes:
        way: `probe`, `path_patching`, or `auto`.
        heads: how many heads count as extracting.
        extraction_layer: where extraction begins; -1: at the first of those heads.
        threshold: the share of the lost logit difference that a kept MLP brings back.
        rise: of the probe's accuracy over a kept MLP's layer.
        folds: of the probe's cross-validation.
        max_classes: with more answers than this, `auto` takes path patching.
        probe_facts: how many facts at most probes see: those of the set, and a sample of the others.
        regularization: the probe's, 1/C of scikit-learn.
    """

    way: str = "auto"
    heads: int = 10
    extraction_layer: int = -1
    threshold: float = 0.02
    rise: float = 0.02
    folds: int = 5
    max_classes: Size = 20
    probe_facts: Size = 500
    regularization: Positive = 1.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown_name("way", self.way, WAYS)
        if self.heads < 1 or self.folds < 2 or self.regularization <= 0:
            raise UserError(
                f"heads {self.heads}, folds {self.folds}, regularization {self.regularization} do not make sense",
                "give at least 1 head, 2 folds and a number above 0",
            )


def localize(run: Run, config: Config) -> Ranking:
    """MLPs ranked; by path patching only those below the first extracting head.

    Raises:
        UserError: too few facts or answers for a probe, or random subjects cost the answer nothing.
    """
    way = config.way
    if way == "auto":
        counts = Counter(fact.answer for fact in _probed(run, config))
        few = 2 <= len(counts) <= config.max_classes and min(counts.values()) >= config.folds
        way = "probe" if few else "path_patching"
    return _by_probe(run, config) if way == "probe" else _by_paths(run, config)


def passes(config: Config, n_layers: int) -> float:
    """By paths four, and for half of the MLPs half of the model; by probes two, without the time of the probes."""
    return 2.0 if config.way == "probe" else 4 + n_layers / 4


def _by_probe(run: Run, config: Config) -> Ranking:
    facts = _probed(run, config)
    labels = [fact.answer for fact in facts]
    check_classes(labels, config.folds)
    parts = run.sites.parts
    curves: dict[str, list[float]] = {}
    for name, rows in (
        ("bare subject", [fact.subject_ids for fact in facts]),
        ("whole prompt", [fact.prompt_ids for fact in facts]),
    ):
        states = last_states(run.model, parts, rows, run.rows).numpy()
        curves[name] = []
        for own in states:
            curves[name].append(probe_accuracy(own, labels, config.folds, config.regularization, run.seed))
            run.progress(f"probes, {name}", len(curves[name]), len(states))
    bare = curves["bare subject"]
    scores = {Unit(MLP, layer): bare[layer + 1] - bare[layer] for layer in range(parts.n_layers)}
    counts = Counter(labels)
    return Ranking(
        by_score(scores),
        scores,
        n_chosen=_n_above(scores, config.rise),
        tables={"probe_accuracy": curves},
        notes={"way": "probe", "n_facts": len(facts), "classes": dict(counts.most_common())},
    )


def check(config: Config, answers: Sequence[str]) -> None:
    """Refuse a probe of facts that have too few answers, or too few of one.

    Args:
        config: how facts are looked up.
        answers: of all facts that a probe may see.

    Raises:
        UserError: as in `probes.check_classes`.
    """
    if config.way == "probe":
        check_classes(answers, config.folds)


def _probed(run: Run, config: Config) -> list[Fact]:
    """The facts that probes see."""
    own = list(run.facts)
    n = max(0, config.probe_facts - len(own))
    return own + random.Random(run.seed).sample(list(run.others), min(n, len(run.others)))


def _by_paths(run: Run, config: Config) -> Ranking:
    by_head, total = torch.zeros(run.sites.parts.n_layers, run.sites.n_heads, dtype=torch.float64), 0.0
    for batch in _pairs(run, "heads"):
        total += float(batch.total.double().sum())
        by_head += head_effects(run, batch)
    if total <= 0:
        raise UserError(
            "with random subjects the true answers are no less likely against wrong ones: there is nothing to locate",
            "give facts that the model knows",
        )
    by_head /= total
    best = _best_heads(by_head, config.heads)
    receiver = _receiver(config, best, run.sites.parts.n_layers)
    effects = torch.zeros(receiver, dtype=torch.float64)
    for batch in _pairs(run, "MLPs"):  # made again and not kept: what all facts give may be more than fits in memory
        effects += mlp_effects(run, batch, receiver) / total
    scores = {Unit(MLP, layer): float(effects[layer]) for layer in range(receiver)}
    heads = [{"layer": layer, "head": head, "effect": float(by_head[layer, head])} for layer, head in best]
    notes: dict[str, Any] = {
        "way": "path_patching",
        "extraction_layer": receiver,
        "heads": heads,
        "total_effect": total / len(run.facts),
    }
    return Ranking(
        by_score(scores),
        scores,
        n_chosen=_n_above(scores, config.threshold),
        tables={"head_effects": by_head.tolist()},
        notes=notes,
    )


def _pairs(run: Run, what: str) -> Iterator[Pair]:
    for start in range(0, len(run.facts), run.rows):
        yield pair(run, run.facts[start : start + run.rows], start)
        run.progress(f"paths from {what}", min(start + run.rows, len(run.facts)), len(run.facts))


def _best_heads(effects: Tensor, n: int) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the greatest effects."""
    order = effects.flatten().argsort(descending=True, stable=True)[:n].tolist()
    return [divmod(place, effects.shape[1]) for place in order]


def _receiver(config: Config, heads: list[tuple[int, int]], n_layers: int) -> int:
    """Where extraction begins, from 1 on: below block 0 there is no MLP."""
    if config.extraction_layer >= n_layers or config.extraction_layer == 0:
        raise UserError(
            f"extraction_layer is {config.extraction_layer}, and the model has {n_layers} layers",
            f"give a layer from 1 to {n_layers - 1}, or -1",
        )
    return config.extraction_layer if config.extraction_layer > 0 else max(1, min(layer for layer, _ in heads))


def _n_above(scores: dict[Unit, float], threshold: float) -> int:
    return max(1, sum(score > threshold for score in scores.values()))


LOCALIZER = Localizer("fact_lookup", Config, localize, passes, check=check, first=True)
