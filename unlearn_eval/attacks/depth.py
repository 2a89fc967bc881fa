"""What the measures of depth share: from drops of log-probability by layer to metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unlearn_eval.attacks.base import NO_REFERENCE, REFERENCE, UNLEARNED, ItemScore, Observation
from unlearn_eval.attacks.folds import clusters
from unlearn_eval.attacks.summary import RESAMPLES, Summary
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.metrics import bootstrap
from unlearn_eval.metrics.robustness import LEAST_DROP, depth_score
from unlearn_eval.results.schema import Metric

SHARE = "share"


def by_layer(items: ForgetSet, observations: Sequence[Observation], model: str, value: str) -> dict[str, list[float]]:
    """Each item's value at every layer of one model, in the order in which the layers were measured."""
    found: dict[str, list[float]] = {item.id: [] for item in items}
    for one in observations:
        if one.model == model:
            for score in one.scores:
                own = score.values[value]
                assert own is not None
                found[score.id].append(own)
    return found


def by_item_and_layer(model: str, value: str, values: Mapping[str, Sequence[float]]) -> list[Observation]:
    """Each item's value at every layer (0, 1, ...) as observations of one model."""
    layers = max((len(own) for own in values.values()), default=0)
    return [
        Observation(model, layer, tuple(ItemScore(key, {value: own[layer]}) for key, own in values.items() if own))
        for layer in range(layers)
    ]


def shares(
    unlearned: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]], least: float = LEAST_DROP
) -> list[Observation]:
    """What each layer adds to an item's depth: of the unlearned model, and of the reference, where they sum to 1.

    D1 · clip(D2 / D1, 0, 1) / Σ D1 over the layers with D1 above `least`, 0 at the others: the sum over layers is the
    item's depth (`metrics.robustness.depth_score`). Items without a depth are left out.
    """
    own: dict[str, list[float]] = {}
    most: dict[str, list[float]] = {}
    for key, drops in reference.items():
        whole = [d1 if d1 > least else 0.0 for d1 in drops]
        if sum(whole) and unlearned[key]:
            most[key] = [d1 / sum(whole) for d1 in whole]
            own[key] = [min(d1, max(0.0, d2)) / sum(whole) for d1, d2 in zip(whole, unlearned[key], strict=True)]
    return by_item_and_layer(UNLEARNED, SHARE, own) + by_item_and_layer(REFERENCE, SHARE, most)


def depth_summary(
    items: ForgetSet,
    unlearned: Mapping[str, Sequence[float]],
    reference: Mapping[str, Sequence[float]] | None,
    drop: str,
    depth: str,
    skipped: str | None,
) -> Summary:
    """Drops of log-probability by layer as metrics: their mean, that of the last layer, and how deep they go.

    Args:
        items: the items.
        unlearned, reference: id -> the drop of each layer.
        drop, depth: names of the two kinds of metric.
        skipped: why nothing was measured, if nothing was.
    """
    scores: dict[str, dict[str, float]] = {f"forget_{drop}": {}, f"forget_last_{drop}": {}, f"forget_{depth}": {}}
    reason: str | None = skipped or (NO_REFERENCE if reference is None else None)
    for item in items:
        own = unlearned[item.id]
        if not own:
            continue
        scores[f"forget_{drop}"][item.id] = sum(own) / len(own)
        scores[f"forget_last_{drop}"][item.id] = own[-1]
        if reference is not None:
            found = depth_score(reference[item.id], own)
            if found.value is None:
                reason = reason or found.reason
            else:
                scores[f"forget_{depth}"][item.id] = found.value
    metrics: dict[str, Metric] = {}
    intervals: dict[str, list[float]] = {}
    for name, values in scores.items():
        metrics[name], ends = _mean(items, values, reason or "nothing was measured")
        intervals |= {} if ends is None else {name: ends}
    return Summary(metrics, intervals, scores)


def _mean(items: ForgetSet, values: Mapping[str, float], reason: str) -> tuple[Metric, list[float] | None]:
    """The mean over items, with a bootstrap over clusters of them."""
    n, left = len(values), len(items) - len(values)
    if not values:
        return Metric(None, None, 0, left, reason, True), None
    parts = [[values[items.items[i].id] for i in part if items.items[i].id in values] for part in clusters(items)]
    known = [np.array(part) for part in parts if part]
    found = bootstrap(
        lambda drawn: float(np.concatenate([known[i] for i in drawn]).mean()),
        np.arange(len(known)),
        n_resamples=RESAMPLES,
    )
    ends = None if found.low is None or found.high is None else [found.low, found.high]
    return Metric(sum(values.values()) / n, found.stderr, n, left, None, True), ends
